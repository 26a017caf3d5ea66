"""A study: several runs, read from their folders, with their scores on images that no member was trained on.

N rows, K classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.special import softmax

from creature.console import say, warn
from creature.data.sources import short_names
from creature.ensembling.out_of_fold import UnseenRows, pooled, unseen_rows
from creature.ensembling.recorded import exposures, read_truth
from creature.errors import BrokenError, UserError
from creature.metrics.accuracy import Count, count_correct
from creature.metrics.blend import blend
from creature.metrics.calibration import cross_fit, enough_to_cross_fit
from creature.metrics.predictions import Predictions
from creature.metrics.recorded import RecordedPredictions
from creature.recipe import Recipe
from creature.results import FoldResult
from creature.run import Fold, Run, full_repeats, unfinished


@dataclass(frozen=True)
class ScoredRows:
    """Labelled images that a model was not trained on, and the classes that it predicts for them."""

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
        """How many are right."""
        return count_correct(self.predicted, self.labels)


@dataclass(frozen=True)
class UnseenPredictions:
    """Held-out rows as predicted by R members together, one of each repeat, that never saw them."""

    models: int  # R; 1 without repeats
    rows: ScoredRows
    probabilities: np.ndarray  # (N, K)


@dataclass(frozen=True)
class Epoch:
    """A row of a fold's history."""

    epoch: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class StudyRun:
    """One run of a study; without finished folds it has no rows."""

    name: str
    run: Run
    folds: tuple[Fold, ...]  # the finished ones
    histories: dict[int, list[Epoch]]  # by fold: a row for each epoch
    recorded: dict[str, RecordedPredictions]  # by `images` and `holdout`

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
        """The result.json of each finished fold."""
        return [fold.result for fold in self.folds]

    @cached_property
    def one_repeat(self) -> list[Fold]:
        """The finished folds of one full repeat: they hold out each row once."""
        return full_repeats(self.folds)[0]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of the held-out rows (N, K), in the order of `held`."""
        return softmax(self.run.out_of_fold.logits.astype(np.float64), axis=1)

    @cached_property
    def calibrated(self) -> np.ndarray | None:
        """As `probabilities`, each row by the temperature of its member's other rows; None where these are too few."""
        tables = [fold.held_out for fold in self.one_repeat]
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
        table = self.run.out_of_fold
        return _score(table, self.probabilities.argmax(1), table.class_names)

    @cached_property
    def unseen(self) -> UnseenPredictions:
        """The held-out rows as predicted by all members that never saw them; by one where a repeat lacks some rows."""
        alone = UnseenPredictions(1, self.held, self.probabilities)
        if len(full_repeats(self.folds)) < 2:
            return alone
        rows = unseen_rows(self.folds)
        if len(rows.ids) < len(self.held.ids):
            return alone
        probabilities = blend(rows.logits)
        scored = _score(rows, probabilities.argmax(1), self.run.classes)
        return UnseenPredictions(len(rows.logits), scored, probabilities)

    @property
    def selected(self) -> bool:
        """Whether an epoch was chosen on the held-out rows."""
        return any(result.selected for result in self.results)

    @property
    def last_score(self) -> Count:
        """The held-out score of the last epoch."""
        return pooled(fold.last_score for fold in self.one_repeat)

    @cached_property
    def exposed(self) -> dict[str, np.ndarray]:
        """By `images` and `holdout`: whether each image is unseen, selected or seen by the folds that predicted it."""
        named = {fold.name: fold for fold in self.folds}
        return {
            kind: exposures(table, [named[member] for member in table.members]) for kind, table in self.recorded.items()
        }

    def unseen_images(self, kind: str, by: str | None = None) -> ScoredRows | None:
        """The images of `images` or `holdout` that no member has seen; None where there are none.

        `by` is the strategy or member that predicts them; the ensemble's strategy where it is not named.
        """
        if kind not in self.recorded or not (self.exposed[kind] == "unseen").any():
            return None
        table, rows = self.recorded[kind], np.flatnonzero(self.exposed[kind] == "unseen")
        ids, hashes = (tuple(column[row] for row in rows) for column in (table.ids, table.content_hashes))
        predicted = table.predicted[by or table.strategy][rows]
        return ScoredRows(ids, hashes, labels=table.labels[rows], predicted=predicted, class_names=table.class_names)


def _score(table: Predictions | UnseenRows, predicted: np.ndarray, class_names: tuple[str, ...]) -> ScoredRows:
    return ScoredRows(
        table.ids, table.content_hashes, labels=table.labels, predicted=predicted, class_names=class_names
    )


def read_runs(folders: Sequence[str], labels: str | None) -> list[StudyRun]:
    """The runs of all folders, in the given order; a report among them, as runs/* gives it, is left out."""
    reports = [folder for folder in folders if (Path(folder) / "index.html").exists()]
    for report in reports:
        say(f"{report} holds a report, and no run")
    paths = [folder for folder in folders if folder not in reports]
    if not paths:
        raise UserError("no runs to report on; give run folders, such as runs/*")
    return [_read_run(name, Path(path), labels) for name, path in zip(short_names(paths, "runs"), paths, strict=True)]


def _read_run(name: str, folder: Path, labels: str | None) -> StudyRun:
    if not (folder / "recipe.yaml").exists():
        raise UserError(f"{folder} is no run: it has no recipe.yaml; give folders that train.py made, such as runs/*")
    run = Run(folder)
    histories = {
        int(path.parent.name.removeprefix("fold-")): _read_history(path)
        for path in folder.glob("fold-*/history.jsonl")
        if path.parent.name.removeprefix("fold-").isdecimal()
    }
    recorded = {}
    for kind, table in run.predictions.items() if run.folds else ():
        if kind in ("holdout", "images") and (
            checked := _check_recorded(table, run, labels if kind == "images" else None)
        ):
            recorded[kind] = checked
    if labels and run.folds and "images" not in recorded:
        warn(f"{folder} has no predictions to score; run creature ensemble {folder} --images DIR --labels {labels}")
    if run.folds and (stopped := unfinished(folder)):
        warn(f"{folder}: {stopped}")
    return StudyRun(name, run, run.folds, histories=histories, recorded=recorded)


def _read_history(path: Path) -> list[Epoch]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Epoch(float(row["epoch"]), float(row["loss"]), float(row["accuracy"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenError(f"{path}: cannot be read as a fold's history: {error}; restore it from a copy") from error


def _check_recorded(table: RecordedPredictions, run: Run, labels: str | None) -> RecordedPredictions | None:
    """The table with the labels of a file, if one is given; None where other weights made the predictions."""
    named = {fold.name: fold for fold in run.folds}
    if gone := [member for member in table.members if member not in named]:
        raise UserError(f"{run}/ensemble was made with {gone[0]}, which is not there; run creature ensemble again")
    weights = tuple(named[member].result.sha256.weights for member in table.members)
    if table.models not in ((), weights):  # older tables do not say
        warn(f"{run}/ensemble has predictions of other weights, which are left out; run creature ensemble again")
        return None
    if len(table.members) < len(run.folds):
        warn(f"{run}/ensemble was made with {len(table.members)} of {len(run.folds)} finished folds")
    if labels is None:
        return table
    return replace(table, labels=read_truth(labels, table.ids, table.class_names))
