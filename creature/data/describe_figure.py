"""A data set as a figure: how many images each class has, and how large they are."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from creature.console import printable
from creature.data.decode import BadImage, decode, read
from creature.data.describe_tables import CopiedImage, ScannedImage, splits_of
from creature.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NAMED = 40  # classes, at most, that are named
PAIRS, PAIRS_ABREAST = 24, 3


def draw_figure(images: Sequence[ScannedImage], alike: Sequence[CopiedImage], path: Path) -> None:
    """Draw the images of each class, shorter sides, and pairs that look the same; the file's ending says the format.

    Raises UserError where the file cannot be written.
    """
    from matplotlib.figure import Figure

    classes = len({image.label for image in images if image.label})
    shown = alike[:PAIRS]
    heights = [max(3.2, 1.2 + 0.17 * min(classes, NAMED)), *[1.85 * -(-len(shown) // PAIRS_ABREAST)] * bool(shown)]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained", dpi=160)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    left, right = parts[0].subplots(1, 2, width_ratios=(2, 1))
    if shown:
        _draw_pairs(parts[1], shown, len(alike))
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


def _shortened(name: str, most: int = 24) -> str:
    """A name with its end, which tells files of a series apart."""
    return name if len(name) <= most else f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"


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


def _draw_pairs(figure: "SubFigure", alike: Sequence[CopiedImage], count: int) -> None:
    """Two images side by side for each pair, with their likeness and labels."""
    figure.suptitle(f"May be copies: {len(alike)} of {count} pairs", x=0.01, ha="left", fontsize=10)
    rows = -(-len(alike) // PAIRS_ABREAST)
    for axes in (places := figure.subplots(rows, 2 * PAIRS_ABREAST, squeeze=False).ravel()):
        axes.set_axis_off()
    for number, copy in enumerate(alike):
        for axes, image in zip(places[2 * number :], (copy.first, copy.other), strict=False):
            try:
                pixels = decode(read({"path": image.path}))
            except BadImage:  # gone since it was looked at
                continue
            pixels.thumbnail((200, 200))
            axes.imshow(pixels)
            label, name = (_shortened(printable(text)) for text in (image.label or image.split, Path(image.path).name))
            axes.set_title(f"{label}\n{name}", fontsize=6, parse_math=False)
        places[2 * number].text(
            1.05,
            -0.05,
            f"{copy.likeness:.2f}",
            transform=places[2 * number].transAxes,
            fontsize=7,
            ha="center",
            va="top",
        )
