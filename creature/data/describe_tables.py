"""Scanned images in tables, and what to do about them. N images."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from creature.data.class_folders import rare_classes, split_of
from creature.data.files import natural_key
from creature.data.order import epoch_steps
from creature.recipe_file import load_recipe
from creature.shipped import RECIPES

SHOWN = 20  # rows of a table


class ScannedImage(NamedTuple):
    """One image file: where it is, and what is in it once it was scanned."""

    id: str
    path: str
    split: str
    label: str  # empty where there is none
    by_csv: bool = False  # whether the CSV gave it, and not a class folder
    content: str = ""  # hash
    size: tuple[int, int] = (0, 0)  # width, height
    kind: str = ""  # format and mode
    bad: str = ""  # why it cannot be decoded
    sketch: bytes = b""


class CopiedImage(NamedTuple):
    """Two images that are the same file, or may be copies."""

    first: ScannedImage
    other: ScannedImage
    likeness: float | None = None  # up to 1; None for the same file

    @property
    def how(self) -> str:
        """How sure it is that one is a copy of the other."""
        return "the same file" if self.likeness is None else f"may be a copy ({self.likeness:.2f})"

    @property
    def conflicts(self) -> bool:
        """Whether the two have different labels."""
        return bool(self.first.label and self.other.label) and self.first.label != self.other.label

    @property
    def remark(self) -> str:
        """What is wrong with the two."""
        leak = "in two splits" if self.first.split != self.other.split else ""
        return ", ".join(filter(None, (leak, "two labels" if self.conflicts else "")))


COPIES_COLUMNS = ("image", "and", "how", "remark")


def splits_of(images: Sequence[ScannedImage]) -> list[str]:
    """The splits, in the order of the folders."""
    return list(dict.fromkeys(image.split for image in images))


SPLIT_COLUMNS = ("split", "images", "bad", "classes", "rarest", "most frequent", "imbalance")


def splits_table(images: Sequence[ScannedImage]) -> list[tuple[str, ...]]:
    """A row for each split."""
    rows = []
    for split in splits_of(images):
        in_split = [image for image in images if image.split == split]
        counts = Counter(image.label for image in in_split if image.label)
        bad = str(sum(bool(image.bad) for image in in_split))
        if counts:
            rare, often = min(counts.items(), key=lambda item: item[1]), max(counts.items(), key=lambda item: item[1])
            ends = (f"{rare[0]} {rare[1]}", f"{often[0]} {often[1]}", f"{often[1] / rare[1]:.1f} : 1")
        else:
            ends = ("", "", "")
        rows.append((split, str(len(in_split)), bad, str(len(counts)) if counts else "no labels", *ends))
    return rows


def classes_table(images: Sequence[ScannedImage]) -> list[tuple[str, ...]]:
    """Images of each class in each split, the rarest class first."""
    counts = Counter((image.label, image.split) for image in images if image.label)
    totals = Counter(image.label for image in images if image.label)
    order = sorted(totals, key=lambda name: (totals[name], natural_key(name)))
    return [(name, *(str(counts[name, split]) for split in splits_of(images))) for name in order]


def kinds_table(images: Sequence[ScannedImage]) -> list[tuple[str, ...]]:
    """Shorter sides, and how many images are of which format and mode, by split."""
    columns = [[image for image in images if image.split == split and image.kind] for split in splits_of(images)]
    sides = [np.array([min(image.size) for image in column] or [0]) for column in columns]
    rows = [
        (name, *(f"{value(side):.0f} px" for side in sides))
        for name, value in (("shortest side", np.min), ("median shorter side", np.median), ("longest shorter", np.max))
    ]
    kinds = Counter(image.kind for column in columns for image in column)
    for kind, _ in kinds.most_common(SHOWN):
        rows.append((kind, *(str(sum(image.kind == kind for image in column)) for column in columns)))
    return rows


def of_shown(rows: Sequence[object]) -> str:
    """The end of a title: which rows of a long table are shown."""
    return f" (the first {SHOWN})" if len(rows) > SHOWN else ""


def advice(images: Sequence[ScannedImage], copies: Sequence[CopiedImage], in_scene: int = 0) -> Iterator[str]:
    """What to do about it, and the folds that the images allow, of which some may share a scene."""
    splits = splits_of(images)
    for one, other in combinations(splits, 2):
        between = [copy for copy in copies if {copy.first.split, copy.other.split} == {one, other}]
        if n := sum(copy.likeness is None for copy in between):
            yield f"{other} has copies of images in {one} ({n}): its score would flatter; remove them there"
        if n := len(between) - n:
            yield f"{other} may have copies of images in {one} ({n}); look at them (--out FILE.png)"
    if n := sum(copy.conflicts for copy in copies if copy.likeness is None):
        yield f"copies with another label than their first: {n}; correct the labels"
    if n := sum(copy.conflicts for copy in copies if copy.likeness is not None):
        yield f"images that may be copies, with two labels: {n}; look at them (--out FILE.png)"
    if n := sum(bool(image.bad) for image in images):
        yield f"files that cannot be decoded: {n}; mend or remove them, or images.max_bad says how many may be left out"
    for split in splits:
        labels = [image.label for image in images if image.split == split]
        if any(labels) and (n := labels.count("")):
            yield f"{split} has images without a label: {n} of {len(labels)}"
    yield from _advice_on_folds(images)
    if not any(map(_is_trainable, images)):
        return
    if copies:
        yield "copies are kept in one fold by themselves; folds.group does the same for series of one animal or place"
    yield from _advice_on_series(images, [copy for copy in copies if copy.likeness is not None], in_scene)


SERIES = {  # what images of a series share in their ids, and the pattern of folds.group for it
    "folder": r"(.*)/",
    "camera": r"([^/]*\D)\d+\.\w+$",
    "minute": r"(\d{8}[-_T ]?\d{4})",
}
MANY = 10  # likenesses that may be a series
FEW_SERIES = 5  # as many as folds


def _advice_on_series(images: Sequence[ScannedImage], alike: Sequence[CopiedImage], in_scene: int) -> Iterator[str]:
    """Suggest folds.group where names tell folder, camera or minute, and many images of one look alike.

    Or where most images share a scene, which may be that of a camera.
    """
    classes = len({(image.split, image.label) for image in images})
    for kind, pattern in SERIES.items():
        keys = {image.id: match[1] for image in images if (match := re.search(pattern, image.id))}
        shared = [copy for copy in alike if keys.get(copy.first.id, "") == keys.get(copy.other.id)]
        series = len(set(keys.values()))
        if series <= classes or not all(image.id in keys for image in images if _is_trainable(image)):
            continue
        if len(shared) >= MANY and 2 * len(shared) >= len(alike):
            why = f"{len(shared)} of {len(alike)} pairs that look the same share a {kind}"
            yield f"suggested: folds.group='{pattern}', for {why}, such as {keys[shared[0].first.id]}"
            return
        if 2 * in_scene >= len(images) and FEW_SERIES <= series <= len(keys) // 2:
            why = f"{in_scene} of {len(images)} images share a scene, and their names tell the {kind}"
            yield f"suggested: folds.group='{pattern}', for {why}, such as {next(iter(keys.values()))}"
            return


def _is_trainable(image: ScannedImage) -> bool:
    return bool(image.label) and split_of(image.split.rpartition("/")[2]) != "test"


def _advice_on_folds(images: Sequence[ScannedImage]) -> Iterator[str]:
    trainable = [image for image in images if _is_trainable(image)]
    labelled = Counter[str]()
    for image in trainable:
        labelled[image.label] += not image.bad  # a class of bad files alone is there, too
    if not labelled:
        return
    if unknown := sorted({image.label for image in images} - {"", *labelled}):
        named = ", ".join(unknown[:SHOWN])
        yield f"classes that only test has ({len(unknown)}): {named}; correct the labels, or add images to train on"
    rare = rare_classes(labelled)
    yield from list(rare.values())[:SHOWN]
    rarest, n = min(((name, n) for name, n in labelled.items() if name not in rare), key=lambda item: item[1])
    sources = " and ".join(sorted({image.split for image in trainable}, key=splits_of(images).index))
    if n < 2:
        count = "one" if n else "none"
        yield f"suggested: more images of {rarest}, which has {count}: no fold can train on it and hold it out"
    elif n < 5:
        yield f"suggested: folds.count={n}, for {rarest} has {n} images, over {sources} pooled"
    else:
        why = f"{rarest}, the rarest {'of the others' if rare else 'class'}, has {n} images, so each of five folds "
        why += f"holds out {n // 5} or more"
        yield f"suggested: folds.count=5 over {sources} pooled: {why}"
    if n > 1:
        yield from _expected_steps(labelled.total(), min(n, 5))


def _expected_steps(images: int, folds: int) -> Iterator[str]:
    """How long the recipes for a CPU train on so many images in folds, a line each."""
    held_out = -(-images // folds)
    for name in ("head", "laptop"):
        recipe = load_recipe(RECIPES / f"{name}.yaml")
        asked, steps = recipe.schedule, epoch_steps(images - held_out, recipe.batch_size)
        epochs = asked.lengthened(steps).epochs
        more = f" instead of {asked.epochs}, for schedule.min_steps={asked.min_steps}" if epochs > asked.epochs else ""
        yield (
            f"{name}.yaml trains each of {folds} folds on {images - held_out} images: {steps * epochs} steps, {epochs} "
            f"epochs of {steps}{more}"
        )
