"""Tables, figures and one page of a study.

creature report runs/*
creature report runs/* --labels test_labels.csv
"""

import argparse
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from creature.console import progress, say, show_cells
from creature.errors import UserError, check_installed

if TYPE_CHECKING:
    from creature.reporting.figures import CaptionedFigure
    from creature.reporting.gallery import Galleries
    from creature.reporting.page import EmbeddedFigure, RunSection
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
        "--explain", action="store_true", help="beside each image of the gallery, what in it speaks for its prediction"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="else RUN/report; for several runs, report beside them")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of all runs, and show its tables."""
    args = parse(argv)
    check_installed("report", "the report", "jinja2", "matplotlib")
    from creature.reporting.study import read_runs

    runs = read_runs(args.runs, args.labels)
    reference = find_reference(args.reference, runs)
    baseline = find_baseline(runs, args.baseline, reference)
    out = args.out or default_folder(runs)
    runs = order_runs(runs, reference)
    tables = make_tables(runs, baseline, reference)
    for table in tables:
        cells = [[(cell.text, cell.tone) for cell in row] for row in table.rows]
        show_cells(table.title, table.note, table.columns, rows=cells)
    try:
        write_report(runs, baseline, tables, out=out, explain=args.explain)
    except OSError as error:
        raise UserError(f"--out: cannot write to {out}: {error.strerror or error}; name another folder") from error
    say(f"{out} holds the tables (.md, .csv), the figures (.png, .svg) and the page; next: open {out / 'index.html'}")
    return 0


def find_reference(path: Path | None, runs: "Sequence[StudyRun]") -> "Reference | None":
    """The reference that was asked for; raises UserError where none of the runs is of its recipes."""
    if path is None:
        return None
    from creature.reporting.reference import load_reference

    reference = load_reference(path)
    if not any(reference.find(run.recipe.name) for run in runs):
        recipes = ", ".join(sorted({run.recipe.name for run in runs}))
        known = ", ".join(result.name for result in reference.results)
        raise UserError(f"--reference: {path} has none of the runs' recipes ({recipes}), but {known}; leave it out")
    return reference


def find_baseline(runs: "Sequence[StudyRun]", name: str | None, reference: "Reference | None") -> "StudyRun":
    """The named run, else the one that repeats the reference's baseline, else the first.

    Raises UserError for the name of no run.
    """
    if name is None:
        base = reference.find(reference.baseline) if reference else None
        repeats = (run for run in runs if reference and reference.find(run.recipe.name) is base)
        return next(repeats, runs[0])
    for run in runs:
        if name in (run.name, str(run.folder)) or os.path.abspath(name) == os.path.abspath(run.folder):
            return run
    raise UserError(f"--baseline: {name} is none of the runs: {', '.join(run.name for run in runs)}")


def order_runs(runs: "Sequence[StudyRun]", reference: "Reference | None") -> "list[StudyRun]":
    """Runs in the order of the reference's results, then all others as they were given."""
    results = reference.results if reference else ()
    rank = {recipe: place for place, result in enumerate(results) for recipe in result.recipes}
    return sorted(runs, key=lambda run: rank.get(run.recipe.name, len(rank)))


def default_folder(runs: "Sequence[StudyRun]") -> Path:
    """Within a run, or beside several."""
    folders = [os.path.abspath(run.folder) for run in runs]
    within = Path(folders[0] if len(folders) == 1 else os.path.commonpath(map(os.path.dirname, folders))) / "report"
    return within.relative_to(Path.cwd()) if within.is_relative_to(Path.cwd()) else within


def make_tables(
    runs: "Sequence[StudyRun]", baseline: "StudyRun", reference: "Reference | None" = None
) -> "list[Table]":
    """All tables that have rows."""
    from creature.reporting.comparison_table import comparison_table
    from creature.reporting.scores_table import scores_table
    from creature.reporting.seeds_table import seeds_table
    from creature.reporting.single_table import single_table
    from creature.reporting.strategies_table import strategies_table

    tables = (
        scores_table(runs, reference),
        comparison_table(runs, baseline, reference) if len(runs) > 1 else None,
        strategies_table(runs, reference),
        single_table(runs),
        seeds_table(runs, baseline),
    )
    return [table for table in tables if table]


def write_report(
    runs: "Sequence[StudyRun]", baseline: "StudyRun", tables: "Sequence[Table]", *, out: Path, explain: bool = False
) -> None:
    """Write tables, figures and the page."""
    from creature.reporting.figures import curve_figures
    from creature.reporting.gallery import Galleries
    from creature.reporting.page import render
    from creature.reporting.tables import to_csv, to_markdown

    out.mkdir(parents=True, exist_ok=True)
    for table in tables:
        _write(out / f"{table.name}.md", to_markdown(table))
        _write(out / f"{table.name}.csv", to_csv(table.records))
    curves = [_save(figure, out) for figure in curve_figures(runs, baseline)]
    finished, sections, galleries = [run for run in runs if run.folds], [], Galleries(explain)
    with progress("runs") as bar:
        task = bar.add_task("figures", total=len(finished), speed="")
        for run in finished:
            sections.append(_write_section(run, galleries, out))
            bar.update(task, advance=1, speed=f"{bar.tasks[task].speed or 0:.1f}")
    title = f"Report on {runs[0].name if len(runs) == 1 else f'{len(runs)} runs'}"
    lead = f"{len(finished)} of {len(runs)} runs have finished folds. "
    lead += "Accuracies in tables have their n and 95 % interval."
    _write(out / "index.html", render(title, lead, tables=tables, curves=curves, runs=sections))


def _write_section(run: "StudyRun", galleries: "Galleries", out: Path) -> "RunSection":
    """Write the figures and class table of a run; its section of the page."""
    from creature.reporting.class_scores import COLUMNS, score_classes
    from creature.reporting.figures import run_figures
    from creature.reporting.page import RunSection, class_cells
    from creature.reporting.tables import to_csv

    prefix = urllib.parse.quote(run.name, safe="")
    classes = score_classes(run.held)
    _write(out / f"{prefix}-classes.csv", to_csv(dict(zip(COLUMNS, score.values, strict=True)) for score in classes))
    return RunSection(
        name=run.name,
        score=f"{run.held.count}{' selected' * run.selected}",
        figures=[_save(figure, out, f"{prefix}-") for figure in run_figures(run)],
        columns=COLUMNS,
        classes=class_cells(classes),
        gallery=galleries.make(run),
    )


def _save(figure: "CaptionedFigure", out: Path, prefix: str = "") -> "EmbeddedFigure":
    """Write a figure as .png and .svg; what the page shows of it."""
    from creature.reporting.figures import to_bytes
    from creature.reporting.gallery import data_url
    from creature.reporting.page import EmbeddedFigure

    png, svg = (to_bytes(figure.figure, kind) for kind in ("png", "svg"))
    (out / f"{prefix}{figure.name}.png").write_bytes(png)
    (out / f"{prefix}{figure.name}.svg").write_bytes(svg)
    return EmbeddedFigure(figure.caption, data_url(svg, "svg+xml"))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")  # the same line ends everywhere
