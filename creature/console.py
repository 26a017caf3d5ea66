"""The terminal: messages, tables, progress bars, and errors in one sentence."""

import errno
import io
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from creature.errors import BrokenError, Interrupted, UserError

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

TONES = {"up": "green", "down": "red", "up sure": "bold green", "down sure": "bold red", "weak": "dim", "": ""}
BROKEN_IMAGES = 3  # exit code of a prediction in which at least one image could not be read

# C0 and C1 controls, marks that change the direction of text, and lone surrogates of file names that are no UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """The text with control characters written out, so that a hostile name cannot steer the terminal."""
    return _UNPRINTABLE.sub(lambda match: f"\\x{ord(match.group()):02x}", str(text))  # guard: printable


def _printable_lines(text: object) -> str:
    return "\n".join(printable(line) for line in str(text).split("\n"))


def say(text: object = "", style: str = "") -> None:
    """Print one message; the terminal wraps long lines, so that paths can be copied from logs."""
    console.print(Text(_printable_lines(text), style=style), soft_wrap=True)


def warn(text: object) -> None:
    """Print a warning on the error stream; only the main process does."""
    if not console.quiet:
        errors.print(Text(f"warning: {_printable_lines(text)}", style="yellow"), soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; the first column is left-aligned, the others, mostly numbers, right-aligned."""
    table = Table(title=Text(printable(title)), title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(Text(printable(column)), justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def show_cells(title: str, note: str, columns: Sequence[str], *, rows: Iterable[Iterable[tuple[str, str]]]) -> None:
    """Print a table of (text, tone) cells, and the note below it; tones are the keys of TONES."""
    table = Table(title=Text(printable(title)), title_justify="left", title_style="bold", show_lines=True)
    for column in columns:
        table.add_column(Text(printable(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(text), style=TONES[tone]) for text, tone in row))
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


@contextmanager
def only_errors_of(library: str) -> Iterator[None]:
    """Within the block, a library logs errors alone; its logger's level is what it was afterwards."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def wait_patiently() -> None:
    """Let OpenMP's threads spin for half a millisecond and then sleep, unless the environment says how they wait.

    libgomp's default is thirty times as long: beside another program on the same cores a thread then spins through its
    time slice while the one that it waits for has no core, and steps take ten times as long. To sleep at once
    (OMP_WAIT_POLICY=PASSIVE) makes the many short waits of a small network slower on idle cores, by half.
    benchmarks/neighbours.py measures both. libgomp reads the variable when torch is loaded.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"


# What the user mends: rights, and room on the disk.
DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def run(main: Callable[[], int]) -> NoReturn:
    """Run a script's main function and exit with its code, or for a CreatureError with its message and a code.

    2: a mistake, or something is broken. 75 (EX_TEMPFAIL): it saved and stopped, and goes on where it is started again.
    130: interrupted. 141 (SIGPIPE): whoever read the output has left. With CREATURE_DEBUG set, the traceback of an
    error and of its causes is printed, too.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on odd metadata of good images
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it: a pipe may not take every name
    wait_patiently()
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except (UserError, BrokenError) as error:
        if os.environ.get("CREATURE_DEBUG"):
            errors.print(Text(_printable_lines(traceback.format_exc())), soft_wrap=True)
        rank = os.environ.get("RANK", "0")
        process = f"[process {rank}] " if rank != "0" else ""
        errors.print(Text(f"{process}error: {_printable_lines(error)}", style="red"), soft_wrap=True)
        code = 2
    except OSError as error:
        if error.errno not in DISK_ERRORS or not error.filename or os.environ.get("CREATURE_DEBUG"):
            raise
        errors.print(Text(f"error: {printable(error.filename)}: {error.strerror}", style="red"), soft_wrap=True)
        code = 2
    except Interrupted as stopped:
        errors.print(Text(printable(stopped), style="yellow"), soft_wrap=True)
        code = 75
    except KeyboardInterrupt:
        errors.print("interrupted", style="yellow")
        code = 130
    sys.stdout.flush()
    sys.exit(code)
