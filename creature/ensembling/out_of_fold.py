"""Honest scores: out-of-fold accuracy of members and of the small ensembles of repeats, and of new images.

N rows, K classes. Where the folds were drawn R times, a row has R members that never saw it, one of each repeat.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from creature.console import warn
from creature.data.arrow_tables import arrow_compute
from creature.data.dataset import read_images
from creature.data.folds import find_folds_file
from creature.data.sources import Columns
from creature.ensembling.recorded import Tally
from creature.errors import BrokenError, UserError
from creature.inference.members import folds_of, held_by, result_of
from creature.metrics.accuracy import Count, count_correct
from creature.metrics.blend import blend
from creature.metrics.predictions import Predictions, load_predictions
from creature.recipe import load_recipe
from creature.run import with_labels

if TYPE_CHECKING:
    from datasets import Dataset


def held_out(folder: Path, last: bool = False) -> tuple[Predictions, np.ndarray]:
    """A fold's predictions of the rows that it held out, and their labels (N,); of the selected or the last epoch.

    Raises UserError where they are not the rows that the run's fold file says.
    """
    path = (_last_epoch(folder) if last else folder) / "held_out.safetensors"
    folds, own = folds_of(folder.parent), held_by(folder)
    held = load_predictions(path)
    if set(held.ids) != set(folds.ids.filter(own).to_pylist()) or held.class_names != folds.class_names:
        raise UserError(f"{path}: its rows are not those that {find_folds_file(folder.parent)} holds out")
    held = with_labels(held, folds)
    return held, held.labels


def _last_epoch(folder: Path) -> Path:
    from creature.training.checkpoint import kept_epoch  # here, for few need it and its import of accelerate takes long

    return kept_epoch(folder, result_of(folder)["last"]["epoch"] - 1)


def out_of_fold(folder: Path, last: bool = False) -> Count:
    """A fold's accuracy on the rows that it held out; of its last epoch, where another one was selected."""
    if last:
        result = result_of(folder)
        return Count(result["last"]["correct"], result["last"]["n"])
    held, labels = held_out(folder)
    return count_correct(held.logits.argmax(1), labels)


def by_repeat(folders: Sequence[Path]) -> dict[int, list[Path]]:
    """The members of one run by the repeat that they belong to, whose folds hold out each row once."""
    count, found = folds_of(folders[0].parent).count, {}
    for folder in folders:
        found.setdefault(result_of(folder)["fold"] // count, []).append(folder)
    return dict(sorted(found.items()))


def full_repeats(folders: Sequence[Path]) -> list[list[Path]]:
    """The members of one run by repeat, but for repeats that have fewer finished folds, and so rows, than others."""
    repeats = by_repeat(folders).values()
    return [members for members in repeats if len(members) == max(map(len, repeats))]


def never_saw(folders: Sequence[Path], last: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,) of a run's fold file, and logits (R, N, K) of members that never saw them, one of each full repeat."""
    ids, tables = folds_of(folders[0].parent).ids, []
    for members in full_repeats(folders):
        held = [held_out(member, last)[0] for member in members]
        rows = np.concatenate([arrow_compute().index_in(each.ids, ids).to_numpy() for each in held])
        order, logits = np.argsort(rows), np.concatenate([each.logits for each in held])
        tables.append((rows[order], logits[order]))
    shared = reduce(np.intersect1d, [rows for rows, _ in tables])
    return shared, np.stack([logits[np.searchsorted(rows, shared)] for rows, logits in tables])


def ensemble_of_repeats(folders: Sequence[Path], strategy: str, last: bool = False) -> tuple[int, Count] | None:
    """R, and the accuracy of the R members of one run that never saw a row, with equal weights; each row counts once.

    None where fewer than two members never saw any row.
    """
    if len(full_repeats(folders)) < 2:
        return None
    rows, logits = never_saw(folders, last)
    if not len(rows):
        return None
    labels = folds_of(folders[0].parent).labels[rows]
    return len(logits), count_correct(blend(logits, strategy).argmax(1), labels)


def out_of_fold_table(folders: Sequence[Path], strategy: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the out-of-fold accuracy: of members, pooled for each run, and of the ensembles of repeats.

    Repeats are pooled apart: all of them together would count each row R times, and make the interval too narrow.
    """
    selected = any(result_of(folder)["selected"] for folder in folders)
    columns = ("member", "accuracy [95 %]", *(("the same at the last epoch",) if selected else ()))
    rows: list[tuple[str, ...]] = []
    for run in dict.fromkeys(folder.parent for folder in folders):
        own = [folder for folder in folders if folder.parent == run]
        repeated = len(folds_of(run).partitions) > 1
        pools = [
            (f"{run}, {f'repeat {repeat}, ' * repeated}{len(members)} folds pooled", members)
            for repeat, members in by_repeat(own).items()
            if len(members) > 1
        ]
        for name, of in [*((str(folder), [folder]) for folder in own), *pools]:
            mark = " selected" if any(result_of(folder)["selected"] for folder in of) else ""
            last = [str(pooled(out_of_fold(folder, last=True) for folder in of))] if selected else []
            rows.append((name, f"{pooled(out_of_fold(folder) for folder in of)}{mark}", *last))
        if found := ensemble_of_repeats(own, strategy):
            models, count = found
            mark = " selected" if any(result_of(folder)["selected"] for folder in own) else ""
            last = [_last_of_repeats(own, strategy)] if selected else []
            rows.append((f"{run}, ensemble of {models} models that never saw the image", f"{count}{mark}", *last))
    return columns, rows


def _last_of_repeats(folders: Sequence[Path], strategy: str) -> str:
    try:
        found = ensemble_of_repeats(folders, strategy, last=True)
    except BrokenError:  # kept/ may be deleted to save space
        return "not kept"
    return str(found and found[1])


def stand_ins(folders: Sequence[Path], strategy: str) -> Iterator[str]:
    """A sentence for each run with repeats: what their ensemble stands in for, or what it lacks."""
    for run in dict.fromkeys(folder.parent for folder in folders):
        own = [folder for folder in folders if folder.parent == run]
        if len(folds_of(run).partitions) == 1:
            continue
        found = ensemble_of_repeats(own, strategy)
        if found is None:
            yield f"{run}: an ensemble that never saw an image needs finished folds of two repeats that hold it out"
        elif found[0] < len(own):
            yield (
                f"The ensemble of {found[0]} (by {strategy}, equal weights) stands in for that of all {len(own)}, "
                "which is larger and can't be scored on these images: some of its members were trained on each of them"
            )


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
    repeated, once = ensemble_of_repeats(folders, strategy), full_repeats(folders)[0]
    return {
        "strategy": strategy,
        "mirror": mirror,
        "members": [
            {"fold": folder.name, "weight": weight, "out_of_fold": out_of_fold(folder).figures(), **_marks(folder)}
            for folder, weight in zip(folders, (weights / weights.sum()).tolist(), strict=True)
        ],
        "out_of_fold": pooled(out_of_fold(folder) for folder in once).figures(),
        "out_of_fold_last": pooled(out_of_fold(folder, last=True) for folder in once).figures(),
        **({"ensemble_of_repeats": {"models": repeated[0], **repeated[1].figures()}} if repeated else {}),
        "ensemble": {name: tally.figures() for name, tally in tallies.items()},
    }


def _marks(folder: Path) -> dict[str, Any]:
    return {"selected": result_of(folder)["selected"], "sha256": result_of(folder)["sha256"]["model.safetensors"]}
