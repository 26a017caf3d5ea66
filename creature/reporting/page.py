"""The files of a study: its tables, its figures, and one HTML page that needs no network and no other file."""

import urllib.parse
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from creature.console import printable, progress
from creature.reporting.class_scores import COLUMNS, score_classes
from creature.reporting.figures import CaptionedFigure, curve_figures, run_figures, to_bytes
from creature.reporting.gallery import ReadImages, data_url, labelled_images, make_gallery
from creature.reporting.study import StudyRun
from creature.reporting.tables import Table, Value, to_csv, to_markdown


def write_report(
    runs: Sequence[StudyRun], baseline: StudyRun, tables: Sequence[Table], *, out: Path, explain: bool
) -> None:
    """Write tables, figures and the page; with `explain`, what in an image of the gallery speaks for its prediction."""
    out.mkdir(parents=True, exist_ok=True)
    for table in tables:
        _write(out / f"{table.name}.md", to_markdown(table))
        _write(out / f"{table.name}.csv", to_csv(table.records))
    curves = _save(curve_figures(runs, baseline), out)
    finished, sections = [run for run in runs if run.folds], []
    read_sources = cache(labelled_images)  # images that runs share are listed once
    with progress("runs") as bar:
        task = bar.add_task("figures", total=len(finished), speed="")
        for run in finished:
            sections.append(_write_section(run, out, explain=explain, read_sources=read_sources))
            bar.update(task, advance=1, speed=f"{bar.tasks[task].speed or 0:.1f}")
    title = f"Report on {runs[0].name if len(runs) == 1 else f'{len(runs)} runs'}"
    lead = f"{len(finished)} of {len(runs)} runs have finished folds. "
    lead += "Accuracies in tables have their n and 95 % interval."
    _write(out / "index.html", _render(title=title, lead=lead, tables=tables, curves=curves, runs=sections))


def _write_section(run: StudyRun, out: Path, *, explain: bool, read_sources: ReadImages) -> dict[str, Any]:
    """Write the figures and class table of a run; what the page shows of it."""
    prefix = urllib.parse.quote(run.name, safe="")
    classes = score_classes(run.held)
    _write(out / f"{prefix}-classes.csv", to_csv(dict(zip(COLUMNS, scores, strict=True)) for scores in classes))
    return {
        "name": run.name,
        "score": f"{run.held.count}{' selected' * run.selected}",
        "figures": _save(run_figures(run), out, f"{prefix}-"),
        "columns": COLUMNS,
        "classes": _sortable(classes, run.held.class_names),
        "gallery": make_gallery(run, explain, read_sources),
    }


def _sortable(rows: Iterable[Sequence[Value]], class_names: Sequence[str]) -> list[list[tuple[str, float]]]:
    """Cells of the class table, as text and the number that sorts them; class names sort by their class indices."""
    order = {name: float(k) for k, name in enumerate(class_names)}

    def cell(value: Value) -> tuple[str, float]:
        if isinstance(value, str) or value is None:
            return value or "", order.get(value or "", -1.0)
        return str(value) if isinstance(value, int) else f"{value:.4f}", float(value)

    return [[cell(value) for value in row] for row in rows]


def _save(figures: Iterable[CaptionedFigure], out: Path, prefix: str = "") -> list[tuple[str, str]]:
    """Write figures as .png and .svg; their captions and URLs for the page."""
    shown = []
    for figure in figures:
        png, svg = (to_bytes(figure.figure, kind) for kind in ("png", "svg"))
        (out / f"{prefix}{figure.name}.png").write_bytes(png)
        (out / f"{prefix}{figure.name}.svg").write_bytes(svg)
        shown.append((figure.caption, data_url(svg, "svg+xml")))
    return shown


def _render(**values: object) -> str:
    """The page; every name in it is text, and none is markup."""

    def plain(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    loader = FileSystemLoader(Path(__file__).parent)
    # guard: autoescape
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=plain)
    return environment.get_template("page.html").render(values) + "\n"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")  # the same line ends everywhere
