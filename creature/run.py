"""A run's folder, read in one place: its recipe, its fold table, and what each finished fold says of itself.

What has been read is kept with the object: make a new `Run` to see what has changed on disk since. N rows, K classes.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from creature.console import warn
from creature.data.arrow_tables import arrow_compute
from creature.data.folds import FoldTable, read_folds
from creature.errors import BrokenError, UserError
from creature.metrics.accuracy import Count
from creature.metrics.predictions import Predictions, concatenate, load_predictions
from creature.results import ClassCounts, FoldResult, read_result

if TYPE_CHECKING:
    from creature.metrics.recorded import RecordedPredictions
    from creature.recipe import Recipe

FOLD = re.compile(r"fold-(0|[1-9]\d*)")  # a fold's folder
RESTORE = "restore it, or train the fold again"


class Fold:
    """A finished fold: a model, and its predictions of the rows that it held out."""

    def __init__(self, folder: Path, run: "Run | None" = None):
        self.folder = folder
        self.run = run or Run(folder.parent)

    @property
    def name(self) -> str:
        """The folder's name: fold-0."""
        return self.folder.name

    def __str__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Fold({str(self.folder)!r})"

    @cached_property
    def result(self) -> FoldResult:
        """Its result.json."""
        return read_result(self.folder / "result.json", FoldResult, RESTORE)

    @property
    def score(self) -> Count:
        """Its accuracy on the rows that it held out."""
        return self.held_out.score

    @property
    def last_score(self) -> Count:
        """The same of the last epoch, where another one was selected."""
        return self.result.last.count

    @cached_property
    def held_out_rows(self) -> np.ndarray:
        """Which rows (N,) of the fold table it held out; raises BrokenError where the table has no such fold."""
        if self.result.fold >= self.run.fold_table.members:
            raise BrokenError(f"{self.folder / 'result.json'}: fold: {self.result.fold} is none of the run's folds")
        return self.run.fold_table.held_out(self.result.fold)

    @cached_property
    def held_out(self) -> Predictions:
        """Its predictions of the rows that it held out, by the selected epoch's weights."""
        return self._read_held_out(self.folder)

    @cached_property
    def held_out_last(self) -> Predictions:
        """The same by the last epoch's weights; raises BrokenError where `kept/` is gone."""
        return self._read_held_out(kept_epoch(self.folder, self.result.last.epoch - 1))

    def _read_held_out(self, folder: Path) -> Predictions:
        path, table = folder / "held_out.safetensors", self.run.fold_table
        held = load_predictions(path)
        expected = set(table.ids.filter(self.held_out_rows).to_pylist())
        if set(held.ids) != expected or held.class_names != table.class_names:
            raise BrokenError(f"{path}: its rows are not those that the run's fold table holds out")
        return with_labels(held, table)


class Run:
    """A run's folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __str__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def recipe(self) -> "Recipe":
        """Its recipe, with every setting; raises UserError where there is no run."""
        self._check_exists()
        from creature.recipe_file import load_recipe  # here, for a prediction need not wait for the schema

        return load_recipe(self.folder / "recipe.yaml")

    @cached_property
    def fold_table(self) -> FoldTable:
        """Which row is held out of which fold; raises UserError where there is no run."""
        self._check_exists()
        return read_folds(self.folder)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the class indices."""
        return self.fold_table.class_names

    @cached_property
    def folds(self) -> tuple[Fold, ...]:
        """Its finished folds, by number; a folder with another name is no fold, and is warned of.

        Raises UserError where there is no run, and for a copy of a fold under another fold's name.
        """
        self._check_exists()
        numbered: dict[int, Fold] = {}
        for path in sorted(self.folder.glob("fold-*/result.json")):
            name = FOLD.fullmatch(path.parent.name)
            if name is None:
                warn(
                    f"{path.parent} is left out: folds are called fold-0, fold-1, ...; rename it, or move it elsewhere"
                )
                continue
            fold = numbered[int(name[1])] = Fold(path.parent, self)
            if fold.result.fold != int(name[1]):
                raise UserError(
                    f"{fold.folder} holds fold {fold.result.fold}, as its result.json says; a fold counts once: move "
                    "the copy out of the run"
                )
        return tuple(numbered[number] for number in sorted(numbered))

    @cached_property
    def out_of_fold(self) -> Predictions:
        """The rows that finished folds held out, as predicted by the member that never saw them; each row once.

        Where the folds were drawn several times, those of the first repeat that has most of its folds. Raises UserError
        for a run without a finished fold.
        """
        if not self.folds:
            raise no_finished_fold(self.folder)
        return concatenate([fold.held_out for fold in full_repeats(self.folds)[0]])

    @cached_property
    def predictions(self) -> "dict[str, RecordedPredictions]":
        """What ensemble.py has predicted and kept: of the `holdout`, of new `images`, and of other ones, `images-*`."""
        from creature.metrics.recorded import load_recorded

        paths = sorted((self.folder / "ensemble").glob("*.safetensors"), key=lambda path: path.stem)
        return {path.stem: load_recorded(path) for path in paths}

    def _check_exists(self) -> None:
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder; give one that creature train has written")

    @cached_property
    def rows_by_content(self) -> dict[str, list[int]]:
        """The rows of the fold table by content hash."""
        rows: dict[str, list[int]] = {}
        for row, content in enumerate(self.fold_table.hashes.to_pylist()):
            rows.setdefault(content, []).append(row)
        return rows


def no_finished_fold(path: Path) -> UserError:
    """The error of a run, or a fold, that is not finished: where it stopped and the line that goes on, if it is one."""
    run = path if (path / "recipe.yaml").exists() else path.parent
    folds = sorted(run.glob("fold-*")) if run == path else [path]
    if not (run / "recipe.yaml").exists() or not all(map(Path.is_dir, folds)):
        return UserError(f"{path}: no finished fold here; give a run folder (runs/NAME) or a fold (runs/NAME/fold-0)")
    return UserError(f"{path}: no finished fold here; {_where_stopped(run, folds)}")


def unfinished(run: Path) -> str:
    """Which folds of a run were begun and are not finished, and the line that goes on; empty where there is none."""
    folds = [
        path
        for path in sorted(run.glob("fold-*"))
        if FOLD.fullmatch(path.name) and path.is_dir() and not (path / "result.json").exists()
    ]
    return _where_stopped(run, folds) if folds else ""


def _where_stopped(run: Path, folds: Sequence[Path]) -> str:
    stopped = []
    for fold in folds:
        history = fold / "history.jsonl"
        epochs = len(history.read_text(encoding="utf-8").splitlines()) if history.exists() else 0
        stopped.append(f"{fold.name} stopped {f'after epoch {epochs}' if epochs else 'in its first epoch'}")
    where = ", ".join(stopped) or "no fold was begun"
    return f"{where}; creature train --recipe {run / 'recipe.yaml'} --out {run} --resume goes on"


def by_repeat(members: Sequence[Fold]) -> dict[int, list[Fold]]:
    """The members of one run by the repeat that they belong to, whose folds hold out each row once."""
    repeats: dict[int, list[Fold]] = {}
    for member in members:
        repeats.setdefault(member.result.fold // member.run.fold_table.count, []).append(member)
    return dict(sorted(repeats.items()))


def full_repeats(members: Sequence[Fold]) -> list[list[Fold]]:
    """The members of one run by repeat, but for repeats that have fewer finished folds, and so rows, than others."""
    repeats = by_repeat(members).values()
    return [inside for inside in repeats if len(inside) == max(map(len, repeats))]


def most_frequent_class(folder: Path, class_names: Sequence[str]) -> str:
    """The class with the most images in training: what a submission says of an image that cannot be read.

    Empty for a folder without a result. Raises BrokenError for a result that does not say how many images each class
    had.
    """
    path = folder / "result.json"
    if not path.exists():
        return ""
    counts = read_result(path, ClassCounts, RESTORE).class_counts
    if len(counts) != len(class_names):
        raise BrokenError(f"{path}: class_counts: {len(counts)} numbers for {len(class_names)} classes; {RESTORE}")
    return class_names[max(range(len(counts)), key=counts.__getitem__)]


def kept_epoch(fold: Path, epoch: int) -> Path:
    """Folder of a kept epoch's weights and held-out predictions; epochs are named from 1."""
    return fold / "kept" / f"epoch-{epoch + 1:04d}"


def held_out_predictions(folds: FoldTable, rows: np.ndarray, logits: np.ndarray) -> Predictions:
    """Logits (n, K) of some rows (n,) of the fold table, with what it says of these rows."""
    return Predictions(
        ids=tuple(folds.ids.take(rows).to_pylist()),
        content_hashes=tuple(folds.hashes.take(rows).to_pylist()),
        labels=folds.labels[rows].astype(np.int64),
        logits=logits,
        class_names=folds.class_names,
    )


def with_labels(predictions: Predictions, folds: FoldTable) -> Predictions:
    """The predictions as they are, or those of an older version with labels and hashes from the fold table, by id.

    Raises ValueError for an id that the fold table does not have.
    """
    if (predictions.labels >= 0).all():
        return predictions
    rows = arrow_compute().index_in(list(predictions.ids), folds.ids)
    if rows.null_count:
        raise ValueError("a row is none of the fold table's")
    return held_out_predictions(folds, rows.to_numpy(), predictions.logits)
