"""Runs that differ in the seed alone: mean and spread of their scores, which is what a recipe gives."""

import statistics
from collections.abc import Sequence
from itertools import combinations

from creature.reporting.study import StudyRun
from creature.reporting.tables import RECORDED, Cell, Record, Table, recorded_splits, rows_of

NOTE = "Mean and standard deviation of accuracy over runs that differ in the seed alone; points: to the baseline's."


def seeds_table(runs: Sequence[StudyRun], baseline: StudyRun) -> Table | None:
    """The table; None where no runs differ in the seed alone."""
    groups = seed_groups(runs)
    if not groups:
        return None
    splits = recorded_splits(runs)
    baseline_group = next((group for group in groups if baseline in group), [])
    rows: list[tuple[Cell, ...]] = []
    records: list[Record] = []
    for group in groups:
        names, seeds = (", ".join(run.name for run in group), ", ".join(str(run.recipe.seed) for run in group))
        compared = (*group, *baseline_group)
        cells = [Cell(names), Cell(seeds)]
        for split in ("held", *splits):
            scores, baseline_scores = _accuracies(group, split), _accuracies(baseline_group, split)
            if problem := _why_not_averaged(split, scores, compared):
                cells.append(Cell(problem, "weak"))
                continue
            mean, deviation = statistics.mean(scores), statistics.stdev(scores)
            text = f"{mean:.4f} ± {deviation:.4f} (n = {len(scores)} runs)"
            if baseline_scores and group is not baseline_group:
                text += f", {100 * (mean - statistics.mean(baseline_scores)):+.2f} points"
            selected = split == "held" and any(run.selected for run in compared)
            cells.append(Cell(f"{text}{' selected' * selected}"))
            records.append({"runs": names, "rows": split, "mean": mean, "deviation": deviation, "n": len(scores)})
        rows.append(tuple(cells))
    columns = ("runs", "seeds", "held out", *(RECORDED[split] for split in splits))
    return Table("seeds", "Seeds", NOTE, columns=columns, rows=rows, records=records)


def seed_groups(runs: Sequence[StudyRun]) -> list[list[StudyRun]]:
    """Finished runs of the same folds that differ in the seed alone, two or more together."""
    groups: dict[str, list[StudyRun]] = {}
    for run in runs:
        if run.folds:
            folds = ",".join(fold.name for fold in run.folds)
            key = run.recipe.model_copy(update={"seed": 0}).identity() + run.results[0].folds + folds
            groups.setdefault(key, []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def _accuracies(group: Sequence[StudyRun], split: str) -> list[float]:
    return [rows.count.accuracy for run in group if (rows := rows_of(run, split))]


def _why_not_averaged(split: str, scores: Sequence[float], runs: Sequence[StudyRun]) -> str:
    """Why a group's scores have no mean, or none to compare with the baseline's; empty where they have."""
    if len(scores) < 2:
        return "fewer than two scores"
    recorded = [run.recorded[split] for run in runs if split in run.recorded]
    if all(one.comparable_with(other) for one, other in combinations(recorded, 2)):
        return ""
    return f"predicted in different ways: {', '.join(sorted({table.how for table in recorded}))}"
