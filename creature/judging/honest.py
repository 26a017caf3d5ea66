"""Honest scores: out-of-fold accuracy of members, and what an ensemble is scored on."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from creature.images.manifest import read_images
from creature.images.sources import Columns
from creature.judging.answers import Tally
from creature.judging.count import Count, count_correct
from creature.judging.members import folds_of, result_of
from creature.learning.predictions import Predictions, load_predictions
from creature.recipe import load_recipe
from creature.terminal import UserError, warn

if TYPE_CHECKING:
    from datasets import Dataset


def held_out(folder: Path) -> tuple[Predictions, np.ndarray]:
    """A fold's predictions of the rows that it held out, and their labels (N,).

    Raises UserError where they are not the rows that the run's fold file says.
    """
    folds, held = folds_of(folder.parent), load_predictions(folder / "held_out.safetensors")
    own = folds.fold == result_of(folder)["fold"]
    expected = dict(zip(folds.ids.filter(own).to_pylist(), folds.labels[own], strict=True))
    if set(held.ids) != set(expected) or held.names != folds.names:
        raise UserError(
            f"{folder / 'held_out.safetensors'}: its rows are not those that {folder.parent / 'folds.json'} holds out"
        )
    return held, np.array([expected[name] for name in held.ids])


def out_of_fold(folder: Path, last: bool = False) -> Count:
    """A fold's accuracy on the rows that it held out; of its last epoch, where another one was selected."""
    if last:
        result = result_of(folder)
        return Count(result["last"]["correct"], result["last"]["n"])
    held, labels = held_out(folder)
    return count_correct(held.logits.argmax(1), labels)


def out_of_fold_table(folders: Sequence[Path]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the members' out-of-fold accuracy, per fold and pooled for each run."""
    selected = any(result_of(folder)["selected"] for folder in folders)
    columns = ("member", "accuracy [95 %]", *(("the same at the last epoch",) if selected else ()))
    rows: list[tuple[str, ...]] = []
    for run in dict.fromkeys(folder.parent for folder in folders):
        own = [folder for folder in folders if folder.parent == run]
        lines = [(str(folder), [folder]) for folder in own] + [(f"{run}, {len(own)} folds pooled", own)]
        for name, of in lines[: None if len(own) > 1 else 1]:
            mark = " selected" if any(result_of(folder)["selected"] for folder in of) else ""
            last = [str(pooled(out_of_fold(folder, last=True) for folder in of))] if selected else []
            rows.append((name, f"{pooled(out_of_fold(folder) for folder in of)}{mark}", *last))
    return columns, rows


def pooled(counts: Iterator[Count]) -> Count:
    """The count of all rows together; folds hold out different rows."""
    every = list(counts)
    return Count(sum(count.correct for count in every), sum(count.n for count in every))


def read_holdout(folders: Sequence[Path], names: Sequence[str]) -> "Dataset | None":
    """The images.holdout of the members' recipes; None where no recipe has one, or it is not to be found here."""
    recipes = [load_recipe(run / "recipe.yaml") for run in dict.fromkeys(folder.parent for folder in folders)]
    images = next((recipe.images for recipe in recipes if recipe.images.holdout), None)
    if images is None:
        return None
    columns = Columns(images.image_column, images.label_column, images.labels)
    try:
        return read_images(images.holdout, columns, "images.holdout", names)
    except UserError as error:
        warn(f"the holdout is not scored: {error}")
        return None


def summary(
    folders: Sequence[Path], weights: np.ndarray, strategy: str, tallies: Mapping[str, Tally], mirror: bool = False
) -> dict[str, Any]:
    """What ensemble/result.json says: members, weights and scores; those of the ensemble may be with mirror images."""
    return {
        "strategy": strategy,
        "mirror": mirror,
        "members": [
            {"fold": folder.name, "weight": weight, "out_of_fold": out_of_fold(folder).figures(), **_marks(folder)}
            for folder, weight in zip(folders, (weights / weights.sum()).tolist(), strict=True)
        ],
        "out_of_fold": pooled(out_of_fold(folder) for folder in folders).figures(),
        "out_of_fold_last": pooled(out_of_fold(folder, last=True) for folder in folders).figures(),
        "ensemble": {name: tally.figures() for name, tally in tallies.items()},
    }


def _marks(folder: Path) -> dict[str, Any]:
    return {"selected": result_of(folder)["selected"], "sha256": result_of(folder)["sha256"]["model.safetensors"]}
