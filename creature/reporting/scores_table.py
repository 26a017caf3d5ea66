"""Table 1: what each run scores on images that it was not trained on, beside a reference's accuracies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from creature.metrics.accuracy import Count
from creature.metrics.uneven_classes import uneven_lines
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
    note = f"{NOTE} {NOTE_ON_REPEATS}" if "held out, ensemble of repeats" in columns else NOTE
    for run in runs:
        for line in uneven_lines(run.held.predicted, run.held.labels, run.held.class_names) if run.folds else ():
            note += f" {run.name}, held out: {line}."
    rows: list[tuple[Cell, ...]] = []
    records: list[Record] = []
    results = [reference.find(run.recipe.name) if reference else None for run in runs]
    for run, result in zip(runs, results, strict=True):
        if run.folds:
            entries = [column(run) for column in columns.values()]
        else:
            entries = [Entry(Cell("no finished fold", "weak")), *[Entry(Cell(""))] * (len(columns) - 1)]
        rows.append((name_cell(run), *(entry.cell for entry in entries)))
        records += [entry.record | _reference_record(result) for entry in entries if entry.record]
    table = Table("scores", "Table 1. Scores", note, columns=("run", *columns), rows=rows, records=records)
    if reference is None:
        return table
    missing = reference.missing(run.recipe.name for run in runs)
    for result in missing:
        record = dict.fromkeys(FIELDS) | {"run": result.name, "split": "held_out", "status": "missing"}
        records.append(record | _reference_record(result))
    counts = ", ".join(f"{name} n = {split.n}" for name, split in reference.splits.items())
    return reference.beside(
        table,
        results,
        missing,
        splits=reference.splits,
        show=lambda result: show_accuracies(result.accuracy, reference.splits),
        note=f"{reference.source}; {counts}",
    )


def _reference_record(result: Result | None) -> Record:
    return {f"reference_{split}": accuracy for split, accuracy in result.accuracy.items()} if result else {}


def _columns(runs: Sequence[StudyRun]) -> dict[str, Callable[[StudyRun], Entry]]:
    """The columns that these runs need."""
    finished = [run for run in runs if run.folds]
    columns: dict[str, Callable[[StudyRun], Entry]] = {
        "held out": lambda run: _scored(run, "held_out", run.held.count, selected=run.selected)
    }
    if any(run.selected for run in finished):
        columns["held out, last epoch"] = lambda run: _scored(run, "held_out_last_epoch", run.last_score)
    if any(run.unseen.models > 1 for run in finished):
        columns["held out, ensemble of repeats"] = _ensemble_of_repeats
    for split in recorded_splits(runs):
        columns[RECORDED[split]] = partial(_recorded, split=split)
    columns["cost"] = _cost
    return columns


def _scored(run: StudyRun, split: str, count: Count, *, selected: bool = False, more: str = "") -> Entry:
    record = {"run": run.name, "split": split, "status": "selected" if selected else "scored", **count.figures()}
    return Entry(Cell(f"{count}{more}{' selected' * selected}"), dict.fromkeys(FIELDS) | record)


def _ensemble_of_repeats(run: StudyRun) -> Entry:
    models, count = run.unseen.models, run.unseen.rows.count
    if models == 1:
        return Entry(Cell(""))
    name = f"held_out_ensemble_of_{models}"
    return _scored(run, name, count, selected=run.selected, more=f" by {models} members")


def _recorded(run: StudyRun, split: str) -> Entry:
    name = RECORDED[split]
    if rows := run.unseen_images(split):
        mirror = ", with mirror images" * run.recorded[split].mirror
        seen = int((run.exposed[split] == "seen").sum())
        return _scored(run, name, rows.count, more=f"{mirror}; {seen} more seen" if seen else mirror)
    status = "not predicted"
    if split in run.recorded:
        exposed = run.exposed[split]
        status = next((exposure for exposure in ("seen", "selected") if exposure in exposed), "no labels")
    return Entry(Cell(status, "weak"), dict.fromkeys(FIELDS) | {"run": run.name, "split": name, "status": status})


def _cost(run: StudyRun) -> Entry:
    parameters = sorted({result.parameters for result in run.results})
    minutes = sum(result.seconds for result in run.results) / 60
    sizes = " and ".join(f"{number / 1e6:.1f} M" for number in parameters)
    return Entry(Cell(f"{len(run.folds)} x {sizes}, {minutes:.1f} min"))
