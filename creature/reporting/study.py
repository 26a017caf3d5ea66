"""A study: several runs, read from their folders, on the rows that none of their members saw. N rows, K classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from creature.console import say, warn
from creature.data.sources import short_names
from creature.ensembling.out_of_fold import pooled, unseen_rows
from creature.ensembling.recorded import exposures, read_truth
from creature.errors import BrokenError, UserError
from creature.metrics.accuracy import Count, count_correct
from creature.metrics.blend import blend
from creature.metrics.calibration import cross_fit, enough_to_cross_fit
from creature.metrics.recorded import RecordedPredictions
from creature.metrics.significance import PairedComparison, compare_paired
from creature.recipe import Recipe, recipe_changes
from creature.run import Fold, FoldResult, Run, full_repeats


@dataclass(frozen=True)
class ScoredRows:
    """Labelled images that a model was not trained on, and the classes that it predicts."""

    ids: tuple[str, ...]
    content_hashes: tuple[str, ...]
    labels: np.ndarray  # (N,)
    predicted: np.ndarray  # (N,)
    class_names: tuple[str, ...]

    @property
    def right(self) -> np.ndarray:
        """Whether each row (N,) is right."""
        return self.predicted == self.labels

    @property
    def count(self) -> Count:
        """How many are."""
        return count_correct(self.predicted, self.labels)


@dataclass(frozen=True)
class UnseenPredictions:
    """What R members that never saw a row predict together, one of each repeat; R is 1 where there is one repeat."""

    models: int  # R
    rows: ScoredRows
    probabilities: np.ndarray  # (N, K)


@dataclass(frozen=True)
class Scored:
    """What the file of a soup or student says of a model: its score, and its difference to the ensemble's accuracy."""

    parameters: int
    count: Count
    difference: float
    low: float
    high: float
    p: float

    @classmethod
    def read(cls, figures: Mapping[str, Any]) -> "Scored":
        """From a file's figures; raises what a damaged one does."""
        against = {key: float(figures["against_ensemble"][key]) for key in ("difference", "low", "high", "p")}
        return cls(int(figures["parameters"]), Count(int(figures["correct"]), int(figures["n"])), **against)


@dataclass(frozen=True)
class Epoch:
    """A row of a fold's history."""

    epoch: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class StudyRun:
    """One run of a study; `folds` are the finished ones, and without any there are no rows."""

    name: str
    run: Run
    folds: tuple[Fold, ...]
    histories: dict[int, list[Epoch]]  # fold -> a row an epoch
    recorded: dict[str, RecordedPredictions]  # images, holdout

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run.folder

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.run.recipe

    @property
    def results(self) -> list[FoldResult]:
        """What each finished fold says of itself."""
        return [fold.result for fold in self.folds]

    @cached_property
    def once(self) -> list[Fold]:
        """The finished folds of one repeat, which hold out no row twice: all repeats together have no more rows."""
        return full_repeats(self.folds)[0]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of the held-out rows (N, K), in the order of `held`."""
        return softmax(self.run.out_of_fold.logits.astype(np.float64), axis=1)

    @cached_property
    def calibrated(self) -> np.ndarray | None:
        """As `probabilities`, each row by the temperature of its member's other rows; None where these are too few."""
        tables = [fold.held_out for fold in self.once]
        if not all(enough_to_cross_fit(len(table.labels)) for table in tables):
            return None
        calibrated = [np.empty(table.logits.shape) for table in tables]
        for probabilities, table in zip(calibrated, tables, strict=True):
            for rows, fitted in cross_fit(table.logits, table.labels):
                probabilities[rows] = fitted.probabilities(table.logits[rows])
        return np.concatenate(calibrated)

    @cached_property
    def held(self) -> ScoredRows:
        """Every row that a finished fold held out, as predicted by the one member that never saw it."""
        held = self.run.out_of_fold
        return ScoredRows(
            held.ids, held.content_hashes, held.labels, self.probabilities.argmax(1), class_names=held.class_names
        )

    @cached_property
    def unseen(self) -> UnseenPredictions:
        """The held-out rows as predicted by all members that never saw them, where each repeat has them all."""
        alone = UnseenPredictions(1, self.held, self.probabilities)
        if len(full_repeats(self.folds)) < 2:
            return alone
        rows = unseen_rows(self.folds)
        if len(rows.ids) < len(self.held.ids):
            return alone
        probabilities = blend(rows.logits)
        scored = ScoredRows(
            rows.ids, rows.content_hashes, rows.labels, probabilities.argmax(1), class_names=self.run.classes
        )
        return UnseenPredictions(len(rows.logits), scored, probabilities)

    @cached_property
    def made(self) -> list[tuple[str, dict[str, Scored]]]:
        """What the run's soup and student were scored on, and the scores of all that they stood beside, by name."""
        weights, made = {result.sha256.weights for result in self.results}, []
        for path in (self.folder / name / "result.json" for name in ("soup", "student")):
            if not path.exists():
                continue
            try:
                result = json.loads(path.read_text(encoding="utf-8"))
                if not result["scores"]:
                    continue
                if {member["sha256"] for member in result["members"]} != weights:
                    warn(f"{path.parent} was made of other members than there are, and is left out; make it again")
                    continue
                way = f" by {result['strategy']}" * (result["strategy"] != "logits")
                source = f"{result['images']['source']}{way}{', with mirror images' * result['mirror']}"
                made.append((source, {name: Scored.read(figures) for name, figures in result["scores"].items()}))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                warn(f"{path} cannot be read ({error}), and is left out; make {path.parent} again")
        return made

    @property
    def selected(self) -> bool:
        """Whether an epoch was chosen on the held-out rows."""
        return any(result.selected for result in self.results)

    @property
    def last(self) -> Count:
        """The held-out score of the last epoch."""
        return pooled(fold.last_score for fold in self.once)

    @cached_property
    def exposed(self) -> dict[str, np.ndarray]:
        """How the images of `recorded` may be scored; by the folds that had predicted them."""
        named = {fold.name: fold for fold in self.folds}
        return {
            kind: exposures(table, [named[member] for member in table.members]) for kind, table in self.recorded.items()
        }

    def new(self, kind: str, by: str | None = None) -> ScoredRows | None:
        """The images of `images` or `holdout` that no member knows, by a strategy or member; None where there are none.

        The ensemble's own strategy is taken where none is named.
        """
        if kind not in self.recorded or not (self.exposed[kind] == "unseen").any():
            return None
        table, rows = self.recorded[kind], np.flatnonzero(self.exposed[kind] == "unseen")
        ids, hashes = (tuple(column[row] for row in rows) for column in (table.ids, table.content_hashes))
        predicted = table.predicted[by or table.strategy][rows]
        return ScoredRows(ids, hashes, table.labels[rows], predicted, class_names=table.class_names)


def read_runs(folders: Sequence[str], labels: str | None) -> list[StudyRun]:
    """The runs of all folders, in the given order; a report's own folder among them is passed over, and said so."""
    runs: list[StudyRun] = []
    reports = [folder for folder in folders if (Path(folder) / "index.html").exists()]
    for report in reports:
        say(f"{report} holds a report, and no run")
    paths = [folder for folder in folders if folder not in reports]
    if not paths:
        raise UserError("no runs to report on; give run folders, such as runs/*")
    for name, folder in zip(short_names(paths, "runs"), map(Path, paths), strict=True):
        if not (folder / "recipe.yaml").exists():
            raise UserError(
                f"{folder} is no run: it has no recipe.yaml; give folders that train.py made, such as runs/*"
            )
        runs.append(_read_run(name, folder, labels))
    return runs


def _read_run(name: str, folder: Path, labels: str | None) -> StudyRun:
    run = Run(folder)
    histories = {
        int(path.parent.name.removeprefix("fold-")): _read_history(path)
        for path in folder.glob("fold-*/history.jsonl")
        if path.parent.name.removeprefix("fold-").isdecimal()
    }
    recorded = {}
    for kind, table in run.predictions.items() if run.folds else ():
        if checked := _checked(table, run, labels if kind == "images" else None):
            recorded[kind] = checked
    if labels and run.folds and "images" not in recorded:
        warn(f"{folder} has no predictions to score; run creature ensemble {folder} --images DIR --labels {labels}")
    return StudyRun(name, run, run.folds, dict(sorted(histories.items())), recorded)


def _read_history(path: Path) -> list[Epoch]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Epoch(float(row["epoch"]), float(row["loss"]), float(row["accuracy"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenError(f"{path}: cannot be read as a fold's history: {error}; restore it from a copy") from error


def _checked(table: RecordedPredictions, run: Run, labels: str | None) -> RecordedPredictions | None:
    """The table with the labels of a file, if one is given; None where other weights made the predictions."""
    named = {fold.name: fold for fold in run.folds}
    if gone := [member for member in table.members if member not in named]:
        raise UserError(f"{run}/ensemble was made with {gone[0]}, which is not there; run creature ensemble again")
    now = tuple(named[member].result.sha256.weights for member in table.members)
    if table.models not in ((), now):  # older tables do not say
        warn(f"{run}/ensemble has predictions of other weights, which are left out; run creature ensemble again")
        return None
    if len(table.members) < len(run.folds):
        warn(f"{run}/ensemble was made with {len(table.members)} of {len(run.folds)} finished folds")
    if labels is None:
        return table
    return replace(table, labels=read_truth(labels, table.ids, table.class_names))


def same_rows(first: ScoredRows, second: ScoredRows) -> PairedComparison | None:
    """Two models on the images, told by content, that neither was trained on; None where there are no such."""
    where = {content: row for row, content in reversed(list(enumerate(second.content_hashes)))}
    shared = {content: row for row, content in reversed(list(enumerate(first.content_hashes))) if content in where}
    if not shared or first.class_names != second.class_names:
        return None
    return compare_paired(first.right[list(shared.values())], second.right[[where[content] for content in shared]])


def changes(baseline: StudyRun, run: StudyRun) -> list[str]:
    """Settings that differ from the baseline's and change the result; and whether the data or its folds do."""
    differing = recipe_changes(baseline.recipe, run.recipe)
    if run.folds and baseline.folds and run.results[0].folds != baseline.results[0].folds:
        differing.append("images or folds")
    if len(run.folds) != len(baseline.folds):
        differing.append(f"folds trained: {len(baseline.folds)} -> {len(run.folds)}")
    return differing


def seed_groups(runs: Sequence[StudyRun]) -> list[list[StudyRun]]:
    """Finished runs of the same folds that differ in the seed alone, two or more together."""
    groups: dict[str, list[StudyRun]] = {}
    for run in runs:
        if run.folds:
            trained = ",".join(fold.name for fold in run.folds)
            key = run.recipe.model_copy(update={"seed": 0}).identity() + run.results[0].folds + trained
            groups.setdefault(key, []).append(run)
    return [group for group in groups.values() if len(group) > 1]
