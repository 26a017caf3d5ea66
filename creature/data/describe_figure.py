"""A data set as a figure: how many images each class has, and how large they are."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from creature.console import printable
from creature.errors import UserError

if TYPE_CHECKING:
    from creature.data.describe import ScannedImage

NAMED = 40  # classes, at most, that are named


def draw_figure(found: "Sequence[ScannedImage]", path: Path) -> None:
    """Draw the images of each class, by split, and their shorter sides; the file's ending says the format.

    Raises UserError where matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--out needs matplotlib, which is not installed: pip install 'creature[report]'") from error
    splits = list(dict.fromkeys(picture.split for picture in found))
    totals = Counter(picture.label for picture in found if picture.label)
    order = [name for name, _ in totals.most_common()]
    figure = Figure(figsize=(8, max(3.2, 1.2 + 0.17 * min(len(order), NAMED))), layout="constrained", dpi=160)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    before = np.zeros(len(order))
    for split in splits:
        counts = Counter(picture.label for picture in found if picture.split == split and picture.label)
        own = np.array([counts[name] for name in order])
        if own.any():
            left.barh(np.arange(len(order)), own, left=before, label=printable(split), height=0.8)
            before += own
    named = len(order) <= NAMED
    left.set_yticks(np.arange(len(order)) if named else [], [printable(name) for name in order] if named else [])
    left.invert_yaxis()
    left.set_title(f"Images of {len(order)} classes", loc="left", fontsize=10)
    if before.any():
        left.legend(frameon=False, fontsize=8, ncols=len(splits), loc="lower right", bbox_to_anchor=(1, 1))
    sides = [[min(picture.size) for picture in found if picture.split == split and picture.kind] for split in splits]
    right.hist([np.array(some) for some in sides], bins=20, stacked=True, label=splits)
    right.set_title("Shorter side, pixels", loc="left", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        for text in (*axes.get_yticklabels(), axes.title):
            text.set_parse_math(False)  # a class may be called $x$
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--out: cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
