"""The folds of a run's images: made once from the recipe, and checked against the images of each later start."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from creature.console import warn
from creature.data.arrow_tables import arrow_compute
from creature.data.class_folders import rare_classes
from creature.data.dataset import column, fingerprint, read_images
from creature.data.duplicates import near_duplicates
from creature.data.eval_transform import EvalTransform
from creature.data.folds import FoldTable, assign_folds, first_equal, group_copies
from creature.data.scan import Details, scan_images, sketches_of
from creature.data.sources import SourceFormat
from creature.errors import UserError
from creature.recipe import Folds, Images, Recipe


def rows_as_saved(folds: FoldTable, dataset: Any, hashes: Any, *, roots: Sequence[str]) -> np.ndarray | None:
    """The rows (N,) of a data set in the order of a fold table, None where it has other contents, labels or names.

    The sources themselves may have other names than then; `roots` are those that lead the ids now.
    """
    if folds.class_names != tuple(dataset.features["label"].names) or len(folds.ids) != len(dataset):
        return None
    ids, labels = column(dataset, "id"), column(dataset, "label").to_numpy()
    now = pa.table({"hash": hashes, "label": labels, "id": ids})
    then = pa.table({"hash": folds.hashes, "label": folds.labels, "id": folds.ids})
    if now.equals(then):
        return np.arange(len(ids))
    by_content = [(name, "ascending") for name in now.column_names]
    order, saved = (arrow_compute().sort_indices(table, by_content).to_numpy() for table in (now, then))
    if not now.take(order).drop_columns("id").equals(then.take(saved).drop_columns("id")):
        return None
    rows = np.empty(len(ids), np.int64)
    rows[saved] = order
    sources = column(dataset, "source").to_pylist()
    within = [name.removeprefix(roots[source]) for name, source in zip(ids.to_pylist(), sources, strict=True)]
    moved = zip(folds.ids.to_pylist(), rows.tolist(), strict=True)
    return rows if all(name.endswith(within[row]) for name, row in moved) else None


def make_folds(recipe: Recipe, dataset: Any, checked: pa.Table, *, bad: dict[str, str]) -> FoldTable:
    """The folds of rows that were checked: stratified and grouped, or with count 1 images.validation as fold 0.

    Warns of rare classes and of copies; raises UserError where a fold would have too little to train on.
    """
    ids, labels, names = column(dataset, "id"), column(dataset, "label").to_numpy(), dataset.features["label"].names
    hashes = checked["hash"]
    alike = np.arange(len(ids))
    if "sketch" in checked.column_names:
        alike = near_duplicates(sketches_of(checked), Details(dataset), first_equal(hashes) == alike).first
    if recipe.folds.count == 1:
        in_validation = column(dataset, "source").to_numpy() >= len(recipe.images.train)
        partitions = (_validation_fold(in_validation, hashes.to_numpy(), alike),)
        trained = labels[partitions[0] < 0]
    else:
        count, seed = recipe.folds.count, recipe.folds.seed
        groups = group_copies(
            column(dataset, "group"), hashes, labels, class_names=names, alike=alike, largest=-(-len(ids) // count)
        )
        partitions = tuple(
            assign_folds(labels, groups, count, seed=seed, repeat=repeat) for repeat in range(recipe.folds.repeats)
        )
        trained = labels
    if len(missing := np.setdiff1d(np.arange(len(names)), trained)):
        listed = ", ".join(names[k] for k in missing[:10])
        raise UserError(f"images.train: no image of the classes {listed}; add some, or remove their folders")
    _warn_of_rare_classes(recipe.folds, labels, names)
    folds = FoldTable(
        count=recipe.folds.count,
        seed=recipe.folds.seed,
        class_names=tuple(names),
        fingerprint=fingerprint(ids, labels, hashes, class_names=names),
        ids=ids,
        labels=labels,
        partitions=partitions,
        hashes=hashes,
        bad=bad,
    )
    if min((~folds.held_out(fold)).sum() for fold in range(folds.members)) < 2:
        raise UserError(f"images.train: {len(ids)} images leave fewer than 2 to train on; add images, or fewer folds")
    return folds


def _validation_fold(in_validation: np.ndarray, contents: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """Fold 0 for the rows of images.validation, -1 for those of images.train and their copies (N,)."""
    fold = np.where(in_validation, 0, -1)
    trained_on = in_validation & np.isin(contents, contents[~in_validation])
    if trained_on.any():
        fold[trained_on] = -1
        warn(f"images.validation: {trained_on.sum()} of its images are in images.train, too, and will not be scored")
    if not (fold == 0).any():
        raise UserError(
            "images.validation: it has no image that can be decoded and is not in images.train, too; name others"
        )
    if n := int((fold[alike] != fold).sum()):
        warn(
            f"images.validation: it shares {n} images that look the same with images.train, so its score "
            "flatters; creature inspect lists them"
        )
    return fold


def _warn_of_rare_classes(folds: Folds, labels: np.ndarray, names: list[str]) -> None:
    counts = np.bincount(labels, minlength=len(names))
    rare = rare_classes(dict(zip(names, counts.tolist(), strict=True)))
    for line in list(rare.values())[:5]:
        warn(f"images.train: {line}")
    if not rare and (few := counts < folds.count).any():
        rarest = counts.argmin()
        warn(
            f"folds.count: classes with fewer images than its {folds.count} folds: {few.sum()}, such as "
            f"{names[rarest]} with {counts[rarest]}; correct a label, add images, or set fewer folds"
        )


def warn_of_holdout_copies(
    images: Images, folds: FoldTable, dataset: Any, *, checked: pa.Table, transform: EvalTransform
) -> None:
    """Warn of images of images.holdout that are trained on, or look like one that is: they are no fair score."""
    if not images.holdout or "sketch" not in checked.column_names:
        return
    from datasets import concatenate_datasets

    columns = SourceFormat(images.image_column, images.label_column, images.holdout_labels or images.labels)
    holdout = read_images(images.holdout, columns, "images.holdout", class_names=folds.class_names)
    held = scan_images(holdout, None, "images.holdout", kind="off", transform=transform).table
    trained = np.flatnonzero(folds.partitions[0] < 0) if folds.count == 1 else np.arange(len(checked))
    checked, trained_on = checked.take(trained), dataset.select(trained)
    same = np.isin(held["hash"].to_numpy(), checked["hash"].to_numpy())
    sketches = np.concatenate([sketches_of(checked), sketches_of(held)])
    details = Details(concatenate_datasets([part.select_columns(["id", "image"]) for part in (trained_on, holdout)]))
    contents = pa.chunked_array([*checked["hash"].chunks, *held["hash"].chunks])
    once = first_equal(contents) == np.arange(len(sketches))
    first_alike = near_duplicates(sketches, details, once).first[len(checked) :]
    if same.any():
        warn(f"images.holdout: {same.sum()} of its {len(held)} images are trained on, too, and will not be scored")
    if n := int((~same & (first_alike < len(checked))).sum()):
        warn(
            f"images.holdout: {n} of its {len(held)} images look the same as one that is trained on, so its score "
            "flatters; creature inspect lists them"
        )
