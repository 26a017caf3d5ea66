"""Reference accuracies: what others reported for some recipes, to be shown beside one's own runs.

A JSON file of one's own, or of a paper's; recipes/paper/reference.json is an example:

{
  "name": "the report",
  "source": "accuracies of a course report, on other images",
  "splits": {"val": {"n": 300, "selected": true}, "public": {"n": 1172}},
  "baseline": "resnext",
  "results": [
    {"recipes": ["resnext", "fair_baseline"], "accuracy": {"val": 0.9, "public": 0.9317}},
    {"recipes": ["all"], "accuracy": {"val": null, "public": 0.9522}, "strategies": {"vote": {"public": 0.948}}}
  ]
}
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from creature.errors import UserError, first_problem
from creature.reporting.study import StudyRun
from creature.reporting.tables import Cell, Table

Accuracy = Annotated[float, Field(ge=0, le=1)]
Strategy = Annotated[str, Field(pattern="^(logits|softmax|vote|member)$")]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Split(_Entry):
    """A set of images that accuracies were measured on."""

    n: int = Field(ge=1, description="number of images")
    selected: bool = Field(default=False, description="epochs were chosen on it, so no differences are shown for it")


class Result(_Entry):
    """The accuracies of one method."""

    recipes: tuple[str, ...] = Field(min_length=1, description="names of the recipes that repeat it; it has the first")
    accuracy: dict[str, Accuracy | None] = Field(description="by split; null: the model had been trained on the images")
    strategies: dict[Strategy, dict[str, Accuracy]] = Field(
        default={}, description="by ensemble strategy and split; member: one model of the ensemble"
    )

    @property
    def name(self) -> str:
        """The name of the recipe that repeats it first of all."""
        return self.recipes[0]


class Reference(_Entry):
    """What a reference file holds."""

    name: str = Field(description="of whoever reported the accuracies; heads their column")
    source: str = Field(description="where the accuracies are from, and what to know about them; ends in no full stop")
    splits: dict[str, Split] = Field(min_length=1, description="in the order in which they are shown")
    baseline: str = Field(description="recipe of the result that differences are taken from")
    results: tuple[Result, ...] = Field(min_length=1, description="in the order in which they are shown")

    @model_validator(mode="after")
    def _names_fit_together(self) -> Self:
        recipes = [recipe for result in self.results for recipe in result.recipes]
        for recipe in recipes:
            if recipes.count(recipe) > 1:
                raise ValueError(f"results: {recipe} is named twice; a recipe has one result")
        if self.baseline not in recipes:
            raise ValueError(f"baseline: {self.baseline} is none of the results; name one of {', '.join(recipes)}")
        for result in self.results:
            for accuracies in (result.accuracy, *result.strategies.values()):
                if unknown := accuracies.keys() - self.splits.keys():
                    raise ValueError(f"results: {result.name} has the split {min(unknown)}, which splits does not list")
        return self

    @property
    def compared(self) -> tuple[str, ...]:
        """The splits that differences are shown for."""
        return tuple(name for name, split in self.splits.items() if not split.selected)

    def find(self, recipe: str) -> Result | None:
        """The result that a recipe repeats."""
        return next((result for result in self.results if recipe in result.recipes), None)

    def missing(self, recipes: Iterable[str]) -> list[Result]:
        """The results that none of these recipes repeats."""
        given = set(recipes)
        return [result for result in self.results if not given.intersection(result.recipes)]

    def differences(self, result: Result) -> str:
        """Points of accuracy above the baseline on each split that is compared; empty for the baseline itself."""
        base = self.find(self.baseline)
        if base is None or result is base:
            return ""
        pairs = [(result.accuracy.get(split), base.accuracy.get(split)) for split in self.compared]
        return ", ".join("-" if a is None or b is None else f"{100 * (a - b):+.2f}" for a, b in pairs)

    def beside(
        self,
        table: Table,
        results: Iterable[Result | None],
        missing: Iterable[Result],
        *,
        splits: Iterable[str],
        show: Callable[[Result], str],
        note: str,
    ) -> Table:
        """The table with a column of the result that each row repeats, and a row for each result that is missing."""
        columns = (*table.columns, f"{self.name}: {', '.join(splits)}")
        rows = [
            (*row, Cell(show(result) if result else "", "weak"))
            for row, result in zip(table.rows, results, strict=True)
        ]
        blank = [Cell("")] * (len(table.columns) - 2)
        rows += [
            (Cell(result.name, "weak"), Cell("missing", "weak"), *blank, Cell(show(result), "weak"))
            for result in missing
        ]
        return replace(table, columns=columns, rows=rows, note=f"{table.note} {self.name}: {note}.")


def show_accuracies(accuracy: Mapping[str, float | None], splits: Iterable[str]) -> str:
    """Accuracies in the order of the splits, as text."""
    shown = {split: "seen" if value is None else f"{value:.4f}" for split, value in accuracy.items()}
    return ", ".join(shown.get(split, "-") for split in splits)


def load_reference(path: Path, runs: Sequence[StudyRun]) -> Reference:
    """Read a reference file; raises UserError where it cannot be used, or none of the runs is of its recipes."""
    try:
        reference = Reference.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"--reference: cannot read {path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise UserError(f"--reference: {path}: {first_problem(error)}") from error
    if not any(reference.find(run.recipe.name) for run in runs):
        recipes = ", ".join(sorted({run.recipe.name for run in runs}))
        known = ", ".join(result.name for result in reference.results)
        raise UserError(f"--reference: {path} has none of the runs' recipes ({recipes}), but {known}; leave it out")
    return reference


def find_baseline(runs: Sequence[StudyRun], name: str | None, reference: Reference | None) -> StudyRun:
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


def order_runs(runs: Sequence[StudyRun], reference: Reference | None) -> list[StudyRun]:
    """Runs in the order of the reference's results, then all others as they were given."""
    results = reference.results if reference else ()
    rank = {recipe: place for place, result in enumerate(results) for recipe in result.recipes}
    return sorted(runs, key=lambda run: rank.get(run.recipe.name, len(rank)))
