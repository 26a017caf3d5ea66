"""The page of a study: one HTML file that needs no network and no other file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from creature.console import printable
from creature.reporting.class_scores import ClassScore
from creature.reporting.gallery import Gallery
from creature.reporting.tables import Table, Value


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure as the page shows it."""

    caption: str
    source: str  # a data URL


@dataclass(frozen=True)
class SortableCell:
    """A cell's text, and the number that its column is sorted by."""

    text: str
    key: float


@dataclass(frozen=True)
class RunSection:
    """What the page shows of one run."""

    name: str
    score: str
    figures: Sequence[EmbeddedFigure]
    columns: Sequence[str]  # of the classes
    classes: Sequence[Sequence[SortableCell]]
    gallery: Gallery


def class_cells(classes: Sequence[ClassScore]) -> list[list[SortableCell]]:
    """A row for each class; names of classes sort in the order of the class indices."""
    order = {score.name: float(k) for k, score in enumerate(classes)}

    def cell(value: Value) -> SortableCell:
        if isinstance(value, str) or value is None:
            return SortableCell(value or "", order.get(value or "", -1.0))
        return SortableCell(str(value) if isinstance(value, int) else f"{value:.4f}", float(value))

    return [[cell(value) for value in score.values] for score in classes]


def render(
    title: str, lead: str, *, tables: Sequence[Table], curves: Sequence[EmbeddedFigure], runs: Sequence[RunSection]
) -> str:
    """The page; every name in it is text, and none is markup."""

    def plain(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    loader = FileSystemLoader(Path(__file__).parent)
    # guard: autoescape
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=plain)
    page = environment.get_template("page.html")
    return page.render(title=title, lead=lead, tables=tables, curves=curves, runs=runs) + "\n"
