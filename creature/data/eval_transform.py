"""The one view of held-out and new images. Pillow alone, so that a model without torch sees the same pixels."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

CROP_MODES = ("squash", "center", "border")


@dataclass(frozen=True)
class EvalTransform:
    """An image as uint8 (3, size, size): the pixels of timm's `create_transform` with crop_pct 1 and this crop_mode.

    squash distorts to the square, center crops to it, border pads to it. `mean` (3,), on a scale of [0, 1], is the
    colour of that border.
    """

    size: int
    crop_mode: str
    mean: tuple[float, ...]

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The pixels of an RGB image."""
        if self.crop_mode == "squash":
            width = height = self.size
        elif self.crop_mode == "center":  # the shorter side becomes `size`
            width, height = (self.size * side // min(image.size) for side in image.size)
        else:  # the longer side does
            ratio = max(image.size) / self.size
            width, height = (max(1, round(side / ratio)) for side in image.size)
        small = image.resize((width, height), Image.Resampling.BILINEAR)
        square = Image.new("RGB", (self.size, self.size), tuple(round(255 * value) for value in self.mean))
        square.paste(small, (-_offset(width, self.size), -_offset(height, self.size)))
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _offset(side: int, size: int) -> int:
    """Where the square begins on a side: half of what is cut, to the even; or minus half of what is added, down."""
    return round((side - size) / 2) if side >= size else -((size - side) // 2)
