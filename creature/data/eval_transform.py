"""The one view of held-out and new pictures. Pillow alone, so that a model without torch sees the same pixels."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image

FITS = ("squash", "center", "border")


def evaluation_view(size: int, fit: str, mean: Sequence[float]) -> Callable[[Image.Image], np.ndarray]:
    """A picture as uint8 (3, size, size): the pixels of timm's `create_transform` with crop_pct 1 and crop_mode `fit`.

    `mean` (3,) on a scale of [0, 1] is the colour of the border that `fit` border adds.
    """

    return partial(_see, size=size, fit=fit, border=tuple(round(255 * value) for value in mean))


def _see(image: Image.Image, size: int, fit: str, border: tuple[int, ...]) -> np.ndarray:
    if fit == "squash":
        width = height = size
    elif fit == "center":  # the shorter side becomes `size`
        width, height = (size * side // min(image.size) for side in image.size)
    else:  # the longer side does
        ratio = max(image.size) / size
        width, height = (max(1, round(side / ratio)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BILINEAR)
    square = Image.new("RGB", (size, size), border)
    square.paste(small, (-_offset(width, size), -_offset(height, size)))
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _offset(side: int, size: int) -> int:
    """Where the square begins on a side: half of what is cut, to the even; or minus half of what is added, down."""
    return round((side - size) / 2) if side >= size else -((size - side) // 2)
