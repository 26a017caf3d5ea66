"""A study: several runs, read from their folders, on the rows that none of their members saw. N rows, K classes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from creature.console import say, warn
from creature.data.sources import short_names
from creature.ensembling.compare import PairedComparison, compare_paired
from creature.ensembling.out_of_fold import full_repeats, held_out, never_saw, out_of_fold, pooled
from creature.ensembling.recorded import RecordedPredictions, exposure_of, load_recorded, read_truth
from creature.errors import UserError
from creature.inference.members import folds_of, result_of
from creature.metrics.accuracy import Count, count_correct
from creature.metrics.blend import blend
from creature.metrics.calibration import cross_fit, enough_to_cross_fit
from creature.recipe import Recipe, load_recipe, recipe_changes


@dataclass(frozen=True)
class ScoredRows:
    """Labelled images that a model was not trained on, and what it says of them."""

    ids: tuple[str, ...]
    hashes: tuple[str, ...]
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
class Scored:
    """What the file of a soup or student says of a model: its score, and its difference to the ensemble's accuracy."""

    parameters: int
    count: Count
    difference: float
    low: float
    high: float
    p: float

    @classmethod
    def read(cls, figures: dict[str, Any]) -> "Scored":
        """From a file's figures; raises what a damaged one does."""
        against = (float(figures["against_ensemble"][key]) for key in ("difference", "low", "high", "p"))
        return cls(int(figures["parameters"]), Count(int(figures["correct"]), int(figures["n"])), *against)


@dataclass(frozen=True)
class StudyRun:
    """One run of a study; `folds` are the finished ones, and without any there are no rows."""

    name: str
    folder: Path
    recipe: Recipe
    folds: tuple[Path, ...]
    histories: dict[int, list[dict[str, Any]]]  # fold -> a row an epoch
    answered: dict[str, RecordedPredictions]  # images, holdout

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        """What each finished fold says of itself."""
        return [result_of(fold) for fold in self.folds]

    @cached_property
    def once(self) -> list[Path]:
        """The finished folds of one repeat, which hold out no row twice: what all repeats say of it is no more rows."""
        return full_repeats(self.folds)[0]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of the held-out rows (N, K), in the order of `held`."""
        return softmax(np.concatenate([held_out(fold)[0].logits for fold in self.once]).astype(np.float64), axis=1)

    @cached_property
    def calibrated(self) -> np.ndarray | None:
        """As `probabilities`, each row by the temperature of its member's other rows; None where these are too few."""
        tables = [held_out(fold) for fold in self.once]
        if not all(enough_to_cross_fit(len(labels)) for _, labels in tables):
            return None
        after = [np.empty(held.logits.shape) for held, _ in tables]
        for found, (held, labels) in zip(after, tables, strict=True):
            for own, fitted in cross_fit(held.logits, labels):
                found[own] = fitted.probabilities(held.logits[own])
        return np.concatenate(after)

    @cached_property
    def held(self) -> ScoredRows:
        """Every row that a finished fold held out, as the one member says that never saw it."""
        folds = folds_of(self.folder)
        content = dict(zip(folds.ids.to_pylist(), folds.hashes.to_pylist(), strict=True))
        tables = [held_out(fold) for fold in self.once]
        ids = tuple(name for table, _ in tables for name in table.ids)
        labels = np.concatenate([labels for _, labels in tables])
        hashes = tuple(content[name] for name in ids)
        return ScoredRows(ids, hashes, labels, self.probabilities.argmax(1), folds.class_names)

    @cached_property
    def judged(self) -> tuple[int, ScoredRows, np.ndarray]:
        """R, and as `held` and `probabilities` what R members that never saw a row say together, one of each repeat."""
        alone = 1, self.held, self.probabilities
        if len(full_repeats(self.folds)) < 2:
            return alone
        rows, logits = never_saw(self.folds)
        if len(rows) < len(self.held.ids):
            return alone
        folds, said = folds_of(self.folder), blend(logits)
        ids, hashes = (tuple(column.take(rows).to_pylist()) for column in (folds.ids, folds.hashes))
        return len(logits), ScoredRows(ids, hashes, folds.labels[rows], said.argmax(1), folds.class_names), said

    @cached_property
    def made(self) -> list[tuple[str, dict[str, Scored]]]:
        """What the run's soup and student were scored on, and the scores of all that they stood beside, by name."""
        weights, found = {result["sha256"]["model.safetensors"] for result in self.results}, []
        for path in (self.folder / name / "result.json" for name in ("soup", "student")):
            if not path.exists():
                continue
            try:
                said = json.loads(path.read_text(encoding="utf-8"))
                if not said["scores"]:
                    continue
                if {member["sha256"] for member in said["members"]} != weights:
                    warn(f"{path.parent} was made of other members than there are, and is left out; make it again")
                    continue
                way = f" by {said['strategy']}" * (said["strategy"] != "logits")
                source = f"{said['images']['source']}{way}{', with mirror images' * said['mirror']}"
                found.append((source, {name: Scored.read(figures) for name, figures in said["scores"].items()}))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                warn(f"{path} cannot be read ({error}), and is left out; make {path.parent} again")
        return found

    @property
    def selected(self) -> bool:
        """Whether an epoch was chosen on the held-out rows."""
        return any(result["selected"] for result in self.results)

    @property
    def last(self) -> Count:
        """The held-out score of the last epoch."""
        return pooled(out_of_fold(fold, last=True) for fold in self.once)

    @cached_property
    def stands(self) -> dict[str, np.ndarray]:
        """How the images of `answered` may be scored; by the folds that had answered."""
        return {name: exposure_of(table, self.answering(table)) for name, table in self.answered.items()}

    def answering(self, table: RecordedPredictions) -> list[Path]:
        """The folds that answered a table."""
        return [self.folder / member for member in table.members]

    def new(self, kind: str, decider: str | None = None) -> ScoredRows | None:
        """The images of `images` or `holdout` that no member knows; None where there are none."""
        if kind not in self.answered or not (self.stands[kind] == "unseen").any():
            return None
        table, chosen = self.answered[kind], np.flatnonzero(self.stands[kind] == "unseen")
        said = table.decisions[decider or table.strategy][chosen]
        hashes = tuple(table.hashes[row] for row in chosen)
        return ScoredRows(
            tuple(table.ids[row] for row in chosen), hashes, table.labels[chosen], said, table.class_names
        )


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
    finished = tuple(sorted((path.parent for path in folder.glob("fold-*/result.json")), key=_number))
    histories = {
        _number(path.parent): _read_history(path)
        for path in sorted(folder.glob("fold-*/history.jsonl"), key=lambda path: _number(path.parent))
    }
    answered = {}
    for kind in ("images", "holdout"):
        path = folder / "ensemble" / f"{kind}.safetensors"
        table = load_recorded(path) if finished and path.exists() else None
        if table and (checked := _checked(table, folder, finished, labels if kind == "images" else None)):
            answered[kind] = checked
    if labels and finished and "images" not in answered:
        warn(f"{folder} has no predictions to score; run creature ensemble {folder} --images DIR --labels {labels}")
    return StudyRun(name, folder, load_recipe(folder / "recipe.yaml"), finished, histories, answered)


def _read_history(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{key: float(row[key]) for key in ("epoch", "loss", "accuracy")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a fold's history: {error}; restore it from a copy") from error


def _number(fold: Path) -> int:
    return int(fold.name.removeprefix("fold-"))


def _checked(
    table: RecordedPredictions, folder: Path, finished: Sequence[Path], labels: str | None
) -> RecordedPredictions | None:
    """The table with the labels of a file, if one is given; None where other weights gave the answers."""
    if gone := [member for member in table.members if folder / member not in finished]:
        raise UserError(f"{folder}/ensemble was made with {gone[0]}, which is not there; run creature ensemble again")
    now = tuple(result_of(folder / member)["sha256"]["model.safetensors"] for member in table.members)
    if table.models not in ((), now):  # older tables do not say
        warn(f"{folder}/ensemble has answers of other weights, which are left out; run creature ensemble again")
        return None
    if len(table.members) < len(finished):
        warn(f"{folder}/ensemble was made with {len(table.members)} of {len(finished)} finished folds")
    if labels is None:
        return table
    truth = read_truth(labels, table.ids, table.class_names)
    return replace(table, labels=truth)


def same_rows(first: ScoredRows, second: ScoredRows) -> PairedComparison | None:
    """Two models on the images, told by content, that neither was trained on; None where there are no such."""
    where = {content: row for row, content in reversed(list(enumerate(second.hashes)))}
    shared = {content: row for row, content in reversed(list(enumerate(first.hashes))) if content in where}
    if not shared or first.class_names != second.class_names:
        return None
    return compare_paired(first.right[list(shared.values())], second.right[[where[content] for content in shared]])


def changes(baseline: StudyRun, run: StudyRun) -> list[str]:
    """Settings that differ from the baseline's and change the result; and whether the data or its folds do."""
    found = recipe_changes(baseline.recipe, run.recipe)
    if run.folds and baseline.folds and run.results[0]["folds"] != baseline.results[0]["folds"]:
        found.append("images or folds")
    if len(run.folds) != len(baseline.folds):
        found.append(f"folds trained: {len(baseline.folds)} -> {len(run.folds)}")
    return found


def seed_groups(runs: Sequence[StudyRun]) -> list[list[StudyRun]]:
    """Finished runs of the same folds that differ in the seed alone, two or more together."""
    groups: dict[str, list[StudyRun]] = {}
    for run in runs:
        if run.folds:
            trained = ",".join(fold.name for fold in run.folds)
            key = run.recipe.model_copy(update={"seed": 0}).identity() + run.results[0]["folds"] + trained
            groups.setdefault(key, []).append(run)
    return [group for group in groups.values() if len(group) > 1]
