"""Table 2: each run against the baseline, on the same images, beside a reference's differences."""

from collections.abc import Sequence

import numpy as np

from creature.metrics.significance import PairedComparison, compare_paired, holm
from creature.recipe import recipe_changes
from creature.reporting.reference import Reference
from creature.reporting.study import ScoredRows, StudyRun
from creature.reporting.tables import (
    RECORDED,
    Cell,
    Record,
    Table,
    comparison_cell,
    name_cell,
    recorded_splits,
    rows_of,
)

FIELDS = ("run", "baseline", "rows", "status", "n", "run_alone_right", "baseline_alone_right", "difference", "p")
FIELDS += ("p_holm",)
SPLITS = {"held": "held out", **RECORDED}


def comparison_table(runs: Sequence[StudyRun], baseline: StudyRun, reference: Reference | None = None) -> Table:
    """Table 2."""
    others = [run for run in runs if run is not baseline]
    splits = ["held", *recorded_splits(runs)]
    outcomes = {(run.name, split): compare_on(split, run, baseline) for run in others for split in splits}
    pairs = {key: pair for key, pair in outcomes.items() if isinstance(pair, PairedComparison)}
    p_holm = dict(zip(pairs, holm([pair.p for pair in pairs.values()]), strict=True))
    rows: list[tuple[Cell, ...]] = []
    records: list[Record] = []
    for run in others:
        cells = [name_cell(run), Cell(", ".join(changes(baseline, run)).replace(" -> ", " → ") or "nothing")]
        for split in splits:
            outcome, p = outcomes[run.name, split], p_holm.get((run.name, split), 1.0)
            record: Record = {"run": run.name, "baseline": baseline.name, "rows": SPLITS[split]}
            if isinstance(outcome, PairedComparison):
                selected = split == "held" and (run.selected or baseline.selected)
                cells.append(comparison_cell(outcome, p, " selected" * selected))
                record |= {"status": "compared", "n": outcome.n, "difference": outcome.difference}
                record |= {"run_alone_right": outcome.first, "baseline_alone_right": outcome.second}
                record |= {"p": outcome.p, "p_holm": p}
            else:
                cells.append(Cell(outcome, "weak"))
                record["status"] = outcome
            records.append(dict.fromkeys(FIELDS) | record)
        rows.append(tuple(cells))
    below = [f"{run} ({SPLITS[split]})" for (run, split), p in p_holm.items() if p < 0.05]
    columns = ("run", "differs in", *(SPLITS[split] for split in splits))
    title = f"Table 2. Each run against {baseline.name}"
    table = Table("tricks", title, _note(baseline, len(pairs), below), columns=columns, rows=rows, records=records)
    if reference is None:
        return table
    missing = reference.missing(run.recipe.name for run in runs)
    for result in missing:
        record = {"run": result.name, "baseline": baseline.name, "status": "missing"}
        records.append(dict.fromkeys(FIELDS) | record)
    return reference.beside(
        table,
        [reference.find(run.recipe.name) for run in others],
        missing,
        splits=reference.compared,
        show=reference.differences,
        note=f"differences to its own {reference.baseline}; {reference.source}",
    )


def compare_on(split: str, run: StudyRun, baseline: StudyRun) -> PairedComparison | str:
    """A run and the baseline on the images of a split, or why there is no comparison."""
    first, second = rows_of(run, split), rows_of(baseline, split)
    if first is None or second is None:
        return "not scored" if first is None else f"{baseline.name} is not scored"
    if split != "held" and not run.recorded[split].comparable_with(baseline.recorded[split]):
        return f"{baseline.name} predicted in another way: {baseline.recorded[split].how}"
    return compare_shared(first, second) or "the rows differ"


def compare_shared(first: ScoredRows, second: ScoredRows) -> PairedComparison | None:
    """Two models on the images, told by content, that neither was trained on; None where there are none."""
    hashes = np.array(first.content_hashes), np.array(second.content_hashes)
    shared, first_rows, second_rows = np.intersect1d(*hashes, return_indices=True)
    if not len(shared) or first.class_names != second.class_names:
        return None
    return compare_paired(first.right[first_rows], second.right[second_rows])


def changes(baseline: StudyRun, run: StudyRun) -> list[str]:
    """Settings that differ from the baseline's and change the result; and whether the data or its folds do."""
    differing = recipe_changes(baseline.recipe, run.recipe)
    if run.folds and baseline.folds and run.results[0].folds != baseline.results[0].folds:
        differing.append("images or folds")
    if len(run.folds) != len(baseline.folds):
        differing.append(f"folds trained: {len(baseline.folds)} -> {len(run.folds)}")
    return differing


def _note(baseline: StudyRun, comparisons: int, below: Sequence[str]) -> str:
    return (
        f"Difference to {baseline.name} in points of accuracy (right where {baseline.name} is wrong : the reverse), on "
        "the n images that neither was trained on. p: McNemar's exact test, of two trained models, not two recipes: "
        f"another seed gives other models. Holm: corrected for the {comparisons} comparisons of this table. "
        f"Below 0.05 after the correction: {', '.join(below) or 'none'}."
    )
