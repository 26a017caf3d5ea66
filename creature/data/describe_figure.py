"""A data set as a figure: how many images each class has, and how large they are."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from creature.console import printable
from creature.data.describe_tables import ScannedImage, splits_of
from creature.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 40  # classes, at most, that are named


def draw_figure(images: Sequence[ScannedImage], path: Path) -> None:
    """Draw the images of each class, by split, and their shorter sides; the file's ending says the format.

    Raises UserError where the file cannot be written.
    """
    from matplotlib.figure import Figure

    classes = len({image.label for image in images if image.label})
    figure = Figure(figsize=(8, max(3.2, 1.2 + 0.17 * min(classes, NAMED))), layout="constrained", dpi=160)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    _draw_classes(left, images)
    _draw_sides(right, images)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        for text in (*axes.get_yticklabels(), axes.title):
            text.set_parse_math(False)  # a class may be called $x$
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--out: cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def _draw_classes(axes: "Axes", images: Sequence[ScannedImage]) -> None:
    """A bar for each class, the most frequent first, with a part for each split."""
    splits = splits_of(images)
    order = [name for name, _ in Counter(image.label for image in images if image.label).most_common()]
    places, left = np.arange(len(order)), np.zeros(len(order))
    for split in splits:
        counts = Counter(image.label for image in images if image.split == split and image.label)
        lengths = np.array([counts[name] for name in order])
        if lengths.any():
            axes.barh(places, lengths, left=left, label=printable(split), height=0.8)
            left += lengths
    named = len(order) <= NAMED
    axes.set_yticks(places if named else [], [printable(name) for name in order] if named else [])
    axes.invert_yaxis()
    axes.set_title(f"Images of {len(order)} classes", loc="left", fontsize=10)
    if left.any():
        axes.legend(frameon=False, fontsize=8, ncols=len(splits), loc="lower right", bbox_to_anchor=(1, 1))


def _draw_sides(axes: "Axes", images: Sequence[ScannedImage]) -> None:
    """A histogram of shorter sides, with a part for each split."""
    splits = splits_of(images)
    sides = [np.array([min(image.size) for image in images if image.split == s and image.kind]) for s in splits]
    axes.hist(sides, bins=20, stacked=True, label=splits)
    axes.set_title("Shorter side, pixels", loc="left", fontsize=10)
