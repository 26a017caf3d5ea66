"""Table 1: what each run scores on images that it was not trained on, beside a reference's accuracies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from creature.metrics.accuracy import Count
from creature.reporting.reference import Reference, Result, show_accuracies
from creature.reporting.study import StudyRun
from creature.reporting.tables import RECORDED, Cell, Record, Table, name_cell, recorded_splits

FIELDS = ("run", "split", "status", "accuracy", "correct", "n", "low", "high")
NOTE = (
    "Held out: rows that the predicting member never saw, pooled over its folds. Intervals: Wilson, 95 %. "
    "selected: the epoch was chosen on these rows. seen: a member was trained on the image, which is no "
    "accuracy. Cost: members, parameters and minutes of training steps, without reading, features and predictions."
)
NOTE_ON_REPEATS = (
    "Of a run whose folds were drawn several times, held out is one repeat, for each row counts once; its "
    "ensemble is the mean of the logits of members, one of each repeat, that never saw the row. The ensemble "
    "of all members is larger and cannot be scored on these rows: each was trained on by some of them."
)


@dataclass(frozen=True)
class Entry:
    """A run's cell in a column, and the record of its score; None where the column has none."""

    cell: Cell
    record: Record | None = None


def scores_table(runs: Sequence[StudyRun], reference: Reference | None = None) -> Table:
    """Table 1."""
    columns = _columns(runs)
    names, notes = ["run", *columns], [NOTE]
    if "held out, ensemble of repeats" in columns:
        notes.append(NOTE_ON_REPEATS)
    rows: list[tuple[Cell, ...]] = []
    records: list[Record] = []
    for run in runs:
        entries = [column(run) for column in columns.values()] if run.folds else _unfinished(len(columns))
        result = reference.find(run.recipe.name) if reference else None
        rows.append((name_cell(run), *(entry.cell for entry in entries), *_reference_cells(reference, result)))
        records += [entry.record | _reference_record(result) for entry in entries if entry.record]
    if reference:
        names.append(f"{reference.name}: {', '.join(reference.splits)}")
        for result in reference.missing(run.recipe.name for run in runs):
            rows.append((*missing_cells(result, len(names) - 1), *_reference_cells(reference, result)))
            record = dict.fromkeys(FIELDS) | {"run": result.name, "split": "held_out", "status": "missing"}
            records.append(record | _reference_record(result))
        counts = ", ".join(f"{name} n = {split.n}" for name, split in reference.splits.items())
        notes.append(f"{reference.name}: {reference.source}; {counts}.")
    return Table("scores", "Table 1. Scores", " ".join(notes), columns=tuple(names), rows=rows, records=records)


def missing_cells(result: Result, columns: int) -> list[Cell]:
    """The row of a reference's result that no run repeats, without the reference's own column."""
    return [Cell(result.name, "weak"), Cell("missing", "weak"), *[Cell("")] * (columns - 2)]


def _columns(runs: Sequence[StudyRun]) -> dict[str, Callable[[StudyRun], Entry]]:
    """The columns that these runs need."""
    finished = [run for run in runs if run.folds]
    columns: dict[str, Callable[[StudyRun], Entry]] = {"held out": _held_out}
    if any(run.selected for run in finished):
        columns["held out, last epoch"] = _last_epoch
    if any(run.unseen.models > 1 for run in finished):
        columns["held out, ensemble of repeats"] = _ensemble_of_repeats
    for split in recorded_splits(runs):
        columns[RECORDED[split]] = partial(_recorded, split=split)
    columns["cost"] = _cost
    return columns


def _held_out(run: StudyRun) -> Entry:
    status = "selected" if run.selected else "scored"
    return Entry(Cell(f"{run.held.count}{_mark(run)}"), _record(run, "held_out", run.held.count, status=status))


def _last_epoch(run: StudyRun) -> Entry:
    count = run.last_score
    return Entry(Cell(str(count)), _record(run, "held_out_last_epoch", count, status="scored"))


def _ensemble_of_repeats(run: StudyRun) -> Entry:
    models, count = run.unseen.models, run.unseen.rows.count
    if models == 1:
        return Entry(Cell(""))
    status = "selected" if run.selected else "scored"
    record = _record(run, f"held_out_ensemble_of_{models}", count, status=status)
    return Entry(Cell(f"{count} by {models} members{_mark(run)}"), record)


def _recorded(run: StudyRun, split: str) -> Entry:
    name = RECORDED[split]
    if rows := run.unseen_images(split):
        seen = int((run.exposed[split] == "seen").sum())
        more = f"; {seen} more seen" if seen else ""
        mirror = ", with mirror images" * run.recorded[split].mirror
        return Entry(Cell(f"{rows.count}{mirror}{more}"), _record(run, name, rows.count, status="scored"))
    status = _why_not_scored(run, split)
    return Entry(Cell(status, "weak"), dict.fromkeys(FIELDS) | {"run": run.name, "split": name, "status": status})


def _why_not_scored(run: StudyRun, split: str) -> str:
    if split not in run.recorded:
        return "not predicted"
    for exposure in ("seen", "selected"):
        if (run.exposed[split] == exposure).any():
            return exposure
    return "no labels"


def _cost(run: StudyRun) -> Entry:
    parameters = sorted({result.parameters for result in run.results})
    minutes = sum(result.seconds for result in run.results) / 60
    sizes = " and ".join(f"{number / 1e6:.1f} M" for number in parameters)
    return Entry(Cell(f"{len(run.folds)} x {sizes}, {minutes:.1f} min"))


def _unfinished(columns: int) -> list[Entry]:
    return [Entry(Cell("no finished fold", "weak")), *[Entry(Cell(""))] * (columns - 1)]


def _mark(run: StudyRun) -> str:
    return " selected" * run.selected


def _record(run: StudyRun, split: str, count: Count, *, status: str) -> Record:
    return dict.fromkeys(FIELDS) | {"run": run.name, "split": split, "status": status, **count.figures()}


def _reference_cells(reference: Reference | None, result: Result | None) -> list[Cell]:
    if reference is None:
        return []
    return [Cell(show_accuracies(result.accuracy, reference.splits) if result else "", "weak")]


def _reference_record(result: Result | None) -> Record:
    return {f"reference_{split}": accuracy for split, accuracy in result.accuracy.items()} if result else {}
