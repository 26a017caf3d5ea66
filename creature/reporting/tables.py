"""A table of a study, and how it is written: Markdown and CSV here; the terminal and the page show the same cells."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from creature.console import printable
from creature.metrics.significance import PairedComparison, shown_p
from creature.reporting.study import ScoredRows, StudyRun

Value = str | int | float | None
Record = dict[str, Value]  # a row of a CSV file, by column

RECORDED = {"holdout": "holdout", "images": "test"}  # what ensemble.py has kept, and what tables call it


class Cell(NamedTuple):
    """A cell's text, and its tone: a key of console.TONES."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """One table: cells for people, records for programs."""

    name: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    records: list[Record]


def recorded_splits(runs: Sequence[StudyRun]) -> list[str]:
    """The keys of RECORDED that any run has predictions of."""
    return [split for split in RECORDED if any(split in run.recorded for run in runs)]


def rows_of(run: StudyRun, split: str) -> ScoredRows | None:
    """The scored rows of `held` or of a key of RECORDED; None where the run has none."""
    if not run.folds:
        return None
    return run.held if split == "held" else run.unseen_images(split)


def name_cell(run: StudyRun) -> Cell:
    """A run's name, and how many of its folds are finished."""
    folds, members = len(run.folds), run.recipe.folds.members
    return Cell(run.name if members == 1 else f"{run.name} ({folds} of {members} folds)")


def comparison_cell(comparison: PairedComparison, p_holm: float, mark: str = "") -> Cell:
    """A difference of two models, with its n and p before and after the correction."""
    text = f"{comparison}{mark}, n = {comparison.n}, p {shown_p(comparison.p)}, Holm"
    return difference_cell(comparison.difference, text, p_holm)


def difference_cell(difference: float, text: str, p_holm: float) -> Cell:
    """A text on a difference, with its corrected p, direction, and whether that is below 0.05."""
    if not difference:
        return Cell(f"{text} {shown_p(p_holm)}")
    tone, mark = ("up", "▲") if difference > 0 else ("down", "▼")
    return Cell(f"{mark} {text} {shown_p(p_holm)}", f"{tone} sure" if p_holm < 0.05 else tone)


def to_markdown(table: Table) -> str:
    """The table for a README or a model card."""
    rows = [table.columns, ("---",) * len(table.columns), *([cell.text for cell in row] for row in table.rows)]
    lines = [f"| {' | '.join(map(escape_markdown, row))} |" for row in rows]
    return f"**{escape_markdown(table.title)}**\n\n" + "\n".join(lines) + f"\n\n{escape_markdown(table.note)}\n"


def escape_markdown(text: str) -> str:
    """The text without markup."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~!$])", r"\\\1", printable(text))
    return escaped.replace("&", "&amp;")


def to_csv(records: Iterable[Mapping[str, Value]]) -> str:
    """Records as CSV, with a column for every key in the order of their appearance."""
    rows = list(records)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: harmless(value) for column, value in row.items()} for row in rows)
    return out.getvalue()


def harmless(value: Value) -> Value:
    """The value; a text that a spreadsheet would take for a formula gets the apostrophe that spreadsheets put there."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
