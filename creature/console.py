"""What a person sees: messages, progress bars, and errors in one sentence."""

import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from creature.errors import BrokenError, Interrupted, UserError

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

BROKEN_IMAGES = 3  # exit code of a prediction in which at least one image could not be read

# C0 and C1 controls, and lone surrogates of file names that are no UTF-8: none may reach a terminal as it is.
_UNPRINTABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """The text with control characters written out, so that a hostile name cannot steer the terminal."""
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found.group()):02x}", str(text))


def say(text: object = "", style: str = "") -> None:
    """Print one message; long lines are left to the terminal, so that paths can be copied from logs."""
    lines = str(text).split("\n")
    console.print(Text("\n".join(printable(line) for line in lines), style=style), soft_wrap=True)


def warn(text: object) -> None:
    """Print a warning on the error stream; only the main process does."""
    if not console.quiet:
        lines = "\n".join(printable(line) for line in str(text).split("\n"))
        errors.print(Text(f"warning: {lines}", style="yellow"), soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; the first column is left-aligned, the others, mostly numbers, right-aligned."""
    table = Table(title=Text(printable(title)), title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(Text(printable(column)), justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def show_cells(title: str, note: str, columns: Sequence[str], rows: Iterable[Iterable[tuple[str, str]]]) -> None:
    """Print a table whose cells are (text, tone): up, down, weak or none; and below it what it means."""
    styles = {"up": "green", "down": "red", "up sure": "bold green", "down sure": "bold red", "weak": "dim", "": ""}
    table = Table(title=Text(printable(title)), title_justify="left", title_style="bold", show_lines=True)
    for column in columns:
        table.add_column(Text(printable(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(text), style=styles[tone]) for text, tone in row))
    console.print(table)
    console.print(Text(printable(note), style="dim"))
    console.print()


def progress(unit: str = "images", shown: bool = True) -> Progress:
    """A progress bar with rate and time left; it shows nothing where the output is no terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(show_speed=False),
        TextColumn("{task.fields[speed]}" + f" {unit}/s"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not shown or not console.is_terminal or os.environ.get("RANK", "0") != "0",
    )


def wait_patiently() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says how they wait.

    By default they spin, and beside another program on the same cores a wait lasts for time slices of the kernel: steps
    took about ten times as long (benchmarks/neighbours.py). OpenMP reads the variable when torch is loaded.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def run(main: Callable[[], int]) -> NoReturn:
    """Run a script's main function and exit: 2 and one sentence for a mistake, 75 if it saved and stopped, else 130.

    75 is EX_TEMPFAIL: what is started again goes on. With CREATURE_DEBUG set, an error's causes and places are shown.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on odd metadata of good images
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a name that a pipe cannot take ends no run
    wait_patiently()
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code = main()
    except (UserError, BrokenError) as error:
        if os.environ.get("CREATURE_DEBUG"):
            traceback.print_exc()
        lines = "\n".join(printable(line) for line in str(error).split("\n"))
        rank = f"[process {os.environ['RANK']}] " if os.environ.get("RANK", "0") != "0" else ""
        errors.print(Text(f"{rank}error: {lines}", style="red"), soft_wrap=True)
        code = 2
    except Interrupted as stopped:
        errors.print(Text(printable(stopped), style="yellow"), soft_wrap=True)
        code = 75
    except KeyboardInterrupt:
        errors.print("interrupted", style="yellow")
        code = 130
    sys.stdout.flush()
    sys.exit(code)
