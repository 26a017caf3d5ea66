"""Table 2: each run against the baseline, on the same images, beside a reference's differences."""

from collections.abc import Sequence
from dataclasses import dataclass

from creature.metrics.significance import PairedComparison, compare_paired, holm
from creature.recipe import recipe_changes
from creature.reporting.reference import Reference, Result
from creature.reporting.scores_table import missing_cells
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


@dataclass(frozen=True)
class Compared:
    """A run and the baseline on the images of one split."""

    run: StudyRun
    baseline: StudyRun
    split: str
    comparison: PairedComparison
    p_holm: float

    @property
    def name(self) -> str:
        """The run, and the images."""
        return f"{self.run.name} ({SPLITS[self.split]})"

    @property
    def cell(self) -> Cell:
        """For people."""
        selected = self.split == "held" and (self.run.selected or self.baseline.selected)
        return comparison_cell(self.comparison, self.p_holm, " selected" * selected)

    @property
    def figures(self) -> Record:
        """For programs."""
        return {
            "status": "compared",
            "n": self.comparison.n,
            "run_alone_right": self.comparison.first,
            "baseline_alone_right": self.comparison.second,
            "difference": self.comparison.difference,
            "p": self.comparison.p,
            "p_holm": self.p_holm,
        }


def comparison_table(runs: Sequence[StudyRun], baseline: StudyRun, reference: Reference | None = None) -> Table:
    """Table 2."""
    others = [run for run in runs if run is not baseline]
    splits = ["held", *recorded_splits(runs)]
    columns = ["run", "differs in", *(SPLITS[split] for split in splits)]
    rows: list[tuple[Cell, ...]] = []
    records: list[Record] = []
    compared = compare_all(others, baseline, splits)
    for run, comparisons in zip(others, compared, strict=True):
        result = reference.find(run.recipe.name) if reference else None
        changed = Cell(", ".join(changes(baseline, run)).replace(" -> ", " → ") or "nothing")
        cells = [Cell(item, "weak") if isinstance(item, str) else item.cell for item in comparisons]
        rows.append((name_cell(run), changed, *cells, *_reference_cells(reference, result)))
        for split, item in zip(splits, comparisons, strict=True):
            record = dict.fromkeys(FIELDS) | {"run": run.name, "baseline": baseline.name, "rows": SPLITS[split]}
            records.append(record | ({"status": item} if isinstance(item, str) else item.figures))
    note = _note(baseline, [item for row in compared for item in row if isinstance(item, Compared)])
    if reference:
        columns.append(f"{reference.name}: {', '.join(reference.compared)}")
        for result in reference.missing(run.recipe.name for run in runs):
            rows.append((*missing_cells(result, len(columns) - 1), *_reference_cells(reference, result)))
            record = {"run": result.name, "baseline": baseline.name, "status": "missing"}
            records.append(dict.fromkeys(FIELDS) | record)
        note += f" {reference.name}: differences to its own {reference.baseline}; {reference.source}."
    title = f"Table 2. Each run against {baseline.name}"
    return Table("tricks", title, note, columns=tuple(columns), rows=rows, records=records)


def compare_all(runs: Sequence[StudyRun], baseline: StudyRun, splits: Sequence[str]) -> list[list[Compared | str]]:
    """For each run, the comparison on each split, or why there is none; p is corrected for all of them."""
    pairs = [[compare_on(split, run, baseline) for split in splits] for run in runs]
    corrected = iter(holm([pair.p for row in pairs for pair in row if isinstance(pair, PairedComparison)]))
    return [
        [
            Compared(run, baseline, split, comparison=pair, p_holm=next(corrected))
            if isinstance(pair, PairedComparison)
            else pair
            for split, pair in zip(splits, row, strict=True)
        ]
        for run, row in zip(runs, pairs, strict=True)
    ]


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
    first_rows = {content: row for row, content in reversed(list(enumerate(first.content_hashes)))}
    second_rows = {content: row for row, content in reversed(list(enumerate(second.content_hashes)))}
    shared = [content for content in first_rows if content in second_rows]
    if not shared or first.class_names != second.class_names:
        return None
    return compare_paired(
        first.right[[first_rows[content] for content in shared]],
        second.right[[second_rows[content] for content in shared]],
    )


def changes(baseline: StudyRun, run: StudyRun) -> list[str]:
    """Settings that differ from the baseline's and change the result; and whether the data or its folds do."""
    differing = recipe_changes(baseline.recipe, run.recipe)
    if run.folds and baseline.folds and run.results[0].folds != baseline.results[0].folds:
        differing.append("images or folds")
    if len(run.folds) != len(baseline.folds):
        differing.append(f"folds trained: {len(baseline.folds)} -> {len(run.folds)}")
    return differing


def _note(baseline: StudyRun, compared: Sequence[Compared]) -> str:
    below = [item.name for item in compared if item.p_holm < 0.05]
    return (
        f"Difference to {baseline.name} in points of accuracy (right where {baseline.name} is wrong : the reverse), on "
        "the n images that neither was trained on. p: McNemar's exact test, of two trained models, not two recipes: "
        f"another seed gives other models. Holm: corrected for the {len(compared)} comparisons of this table. "
        f"Below 0.05 after the correction: {', '.join(below) or 'none'}."
    )


def _reference_cells(reference: Reference | None, result: Result | None) -> list[Cell]:
    if reference is None:
        return []
    return [Cell(reference.differences(result) if result else "", "weak")]
