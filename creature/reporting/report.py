"""Tables, figures and one page of a study.

creature report runs/*
creature report runs/* --labels test_labels.csv
"""

import argparse
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from creature.console import say, show_cells
from creature.errors import UserError

if TYPE_CHECKING:
    from creature.reporting.page import Figure
    from creature.reporting.reference import Reference
    from creature.reporting.study import StudyRun
    from creature.reporting.tables import Table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument(
        "--labels",
        metavar="FILE.csv",
        help="labels (image_name,label) of the images that creature ensemble has predicted",
    )
    parser.add_argument("--baseline", metavar="RUN", help="compare with this run; else the reference's, or the first")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE.json",
        help="accuracies that others reported, to show beside the runs, such as recipes/paper/reference.json",
    )
    parser.add_argument(
        "--explain", action="store_true", help="beside each image of the gallery, what in it speaks for the answer"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="else RUN/report; for several runs, report beside them")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of all runs, and show its tables."""
    args = parse(argv)
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the report needs {error.name}, which is not installed: pip install 'creature[report]'"
        ) from error

    from creature.reporting import study, tables

    runs = study.read_runs(args.runs, args.labels)
    reference = find_reference(args.reference, runs)
    baseline = find_baseline(runs, args.baseline, reference)
    out = args.out or default_folder(runs)
    runs = tables.order_runs(runs, reference) if reference else runs
    made = [
        tables.scores_table(runs, reference),
        *([tables.tricks_table(runs, baseline, reference)] if len(runs) > 1 else []),
        tables.strategies_table(runs, reference),
        tables.single_table(runs),
        tables.seeds_table(runs, baseline),
    ]
    shown = [table for table in made if table]
    for table in shown:
        show_cells(table.title, table.note, table.columns, [[(c.text, c.tone) for c in row] for row in table.rows])
    try:
        write_report(runs, baseline, shown, out, args.explain)
    except OSError as error:
        raise UserError(f"--out: cannot write to {out}: {error.strerror or error}; name another folder") from error
    say(f"{out} holds the tables (.md, .csv), the figures (.png, .svg) and the page; next: open {out / 'index.html'}")
    return 0


def write_report(
    runs: "Sequence[StudyRun]", baseline: "StudyRun", shown: "Sequence[Table]", out: Path, explain: bool = False
) -> None:
    """Write tables, figures and the page."""
    from creature.reporting import page, tables

    out.mkdir(parents=True, exist_ok=True)
    for table in shown:
        write(out / f"{table.name}.md", tables.to_markdown(table))
        write(out / f"{table.name}.csv", tables.to_csv(table.records))
    curves, sections = draw(runs, baseline, out, explain)
    title = f"Report on {runs[0].name if len(runs) == 1 else f'{len(runs)} runs'}"
    finished = sum(bool(each.folds) for each in runs)
    lead = f"{finished} of {len(runs)} runs have finished folds. Accuracies in tables have their n and 95 % interval."
    write(out / "index.html", page.render(title, lead, shown, curves, sections))


def find_reference(path: Path | None, runs: "Sequence[StudyRun]") -> "Reference | None":
    """The reference that was asked for; raises UserError where none of the runs is of its recipes."""
    if path is None:
        return None
    from creature.reporting.reference import load_reference

    reference = load_reference(path)
    if not any(reference.find(each.recipe.name) for each in runs):
        recipes = ", ".join(sorted({each.recipe.name for each in runs}))
        known = ", ".join(result.name for result in reference.results)
        raise UserError(f"--reference: {path} has none of the runs' recipes ({recipes}), but {known}; leave it out")
    return reference


def find_baseline(runs: "Sequence[StudyRun]", name: str | None, reference: "Reference | None" = None) -> "StudyRun":
    """The run that was asked for; raises UserError where it is none of the runs."""
    from creature.reporting.tables import choose_baseline

    if name is None:
        return choose_baseline(runs, reference)
    for each in runs:
        if name in (each.name, str(each.folder)) or os.path.abspath(name) == os.path.abspath(each.folder):
            return each
    raise UserError(f"--baseline: {name} is none of the runs: {', '.join(each.name for each in runs)}")


def default_folder(runs: "Sequence[StudyRun]") -> Path:
    """Within a run, or beside several."""
    folders = [os.path.abspath(each.folder) for each in runs]
    within = Path(folders[0] if len(folders) == 1 else os.path.commonpath(map(os.path.dirname, folders))) / "report"
    return within.relative_to(Path.cwd()) if within.is_relative_to(Path.cwd()) else within


def draw(
    runs: "Sequence[StudyRun]", baseline: "StudyRun", out: Path, explain: bool
) -> tuple[list["Figure"], list[dict[str, Any]]]:
    """Write all figures and class tables; the page's curves, and its section on each run with rows."""
    from creature.console import progress
    from creature.reporting import figures, page, tables

    def saved(name: str, caption: str, figure: Any) -> page.Figure:
        for kind in ("png", "svg"):
            (out / f"{name}.{kind}").write_bytes(content := figures.to_bytes(figure, kind))
        return page.Figure(caption, page.data_url(content, "svg+xml"))

    curves = [saved(name, *drawn) for name, drawn in figures.curve_figures(runs, baseline).items()]
    sections: list[dict[str, Any]] = []
    finished = [each for each in runs if each.folds]
    with progress("runs") as bar:
        task = bar.add_task("figures", total=len(finished), speed="")
        for each in finished:
            prefix = urllib.parse.quote(each.name, safe="")
            classes = page.class_table(each)
            write(out / f"{prefix}-classes.csv", tables.to_csv(classes))
            mistakes, note = page.gallery(each, explain)
            sections.append(
                {
                    "name": each.name,
                    "score": f"{each.held.count}{' selected' * each.selected}",
                    "figures": [saved(f"{prefix}-{name}", *drawn) for name, drawn in figures.run_figures(each).items()],
                    "columns": page.CLASS_COLUMNS,
                    "classes": page.class_cells(classes),
                    "gallery": mistakes,
                    "gallery_note": note,
                }
            )
            bar.update(task, advance=1, speed=f"{bar.tasks[task].speed or 0:.1f}")
    return curves, sections


def write(path: Path, text: str) -> None:
    """Write a text as it is, with the same line ends everywhere."""
    path.write_text(text, encoding="utf-8", newline="\n")
