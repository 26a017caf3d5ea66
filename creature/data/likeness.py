"""A close look at pairs of images: is one a copy of the other, changed a little? P pairs, S x S levels of grey.

The two are laid over each other (Lucas and Kanade 1981, for a shift and a scale of each axis), and compared in small
windows by the contrast and structure of SSIM (Wang et al. 2004). What differs most decides, for a background is alike
wherever nothing stands before it. Where a row's candidates are mostly no copies, they share a scene, and a copy must
be alike in finer detail.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from creature.data.decode import BadImage, decode, read
from creature.errors import BrokenError

SIDE = 64
LEVELS = (16, 32, 64)  # sides at which two images are compared
STEPS = (4, 3, 2)
ALIKE = 0.5
SCENE_ROWS = 4  # candidates of a row, from which on it may share a scene with them
COPIES = 0.6  # candidates that are mostly so alike are copies, and share more than a scene
LEAST = {
    16: (0.92, 0.97),
    32: (0.5, 0.9),
    64: (0.5, 0.75),
}  # by side: without a scene, and with one that hides all else
NOISE = 12.0  # squared levels of grey: what encoding leaves in a window without any contrast
WINDOW, WORST = 5, 0.005  # pixels; the share of windows that may be worse
FARTHEST = 0.15  # of half a side, that a crop may move an edge
AT_ONCE = 64  # pairs

Details = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # of rows (n,): levels (n, 64, 64), and sides (n,)


def detail(image: Image.Image) -> tuple[bytes, int]:
    """An image as 64 x 64 levels of grey, row by row, and the largest of the sides 16, 32 and 64 that it has."""
    levels = image.resize((SIDE, SIDE), Image.Resampling.BOX).convert("L").tobytes()
    return levels, max(side for side in LEVELS if side <= max(min(image.size), LEVELS[0]))


def read_detail(name: str, image: dict[str, Any]) -> tuple[bytes, int]:
    """The detail of an image that was decoded before; raises BrokenError, with its name, where it no longer can be."""
    try:
        return detail(decode(read(image)))
    except BadImage as reason:
        raise BrokenError(f"{name}: changed while it was read ({reason}); start again") from reason


def are_alike(pairs: np.ndarray, mirrored: np.ndarray, details: Details) -> np.ndarray:
    """How alike the images of each pair of rows (P, 2) are, 0 for those that do not look the same."""
    rows, place = np.unique(pairs, return_inverse=True)
    levels, sides = details(rows)
    place = place.reshape(-1, 2)
    finest = sides[place].min(1, initial=SIDE)

    def compare(number: np.ndarray, side: np.ndarray) -> np.ndarray:
        alike = np.zeros(len(number), np.float32)
        for level in LEVELS:
            at = np.flatnonzero(side == level)
            for start in range(0, len(at), AT_ONCE):
                chosen = number[which := at[start : start + AT_ONCE]]
                other = levels[place[chosen, 1]]
                other = np.where(mirrored[chosen, None, None], other[:, :, ::-1], other)
                alike[which] = likeness(levels[place[chosen, 0]], other, level)
        return alike

    side = np.minimum(finest, LEVELS[1])
    alike = compare(np.arange(len(pairs)), side)
    scene = _scene_likeness(place, alike)[place].max(1, initial=0)
    finer = np.flatnonzero((alike >= ALIKE) & (finest > side))
    alike[finer] = compare(finer, finest[finer])
    low, high = np.array([LEAST[level] for level in finest.tolist()]).reshape(-1, 2).T
    return np.where(alike >= np.minimum(low + scene, high), alike, 0)


def _scene_likeness(place: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """The median likeness of each row's candidates, where they are many, and mostly no copies; else 0."""
    rows, values = place.T.ravel(), np.tile(alike, 2)
    order = np.lexsort((values, rows))
    _, starts, counts = np.unique(rows[order], return_index=True, return_counts=True)
    median = values[order][starts + counts // 2]
    return np.where((counts >= SCENE_ROWS) & (median < COPIES), np.maximum(median, 0), 0)


def likeness(one: np.ndarray, other: np.ndarray, side: int) -> np.ndarray:
    """How alike the images (P, 64, 64) of each pair are, compared at a side: 1 where they are equal everywhere."""
    place = np.zeros((len(one), 4), np.float32)
    a, b = one, other
    for level, steps in zip(LEVELS[: LEVELS.index(side) + 1], STEPS, strict=False):
        a, b = (_smaller(images, level) for images in (one, other))
        place = _register(a, b, place, steps=steps)
    scale, shift = place[:, ::2], place[:, 1::2]
    back = np.stack([1 / (1 + scale) - 1, -shift / (1 + scale)], axis=2).reshape(-1, 4)
    return 1 - np.minimum(_difference(a, b, place), _difference(b, a, back))  # a resampled image lacks some detail


def _smaller(images: np.ndarray, side: int) -> np.ndarray:
    """Images (P, 64, 64) at a smaller side, a little blurred, so that they can be moved by parts of a pixel."""
    from scipy.ndimage import gaussian_filter  # not before: it adds a filter of warnings to the host program

    step = SIDE // side
    blocks = images.reshape(len(images), side, step, side, step).mean((2, 4), dtype=np.float32)
    return gaussian_filter(blocks, (0, 0.7, 0.7), mode="nearest")


def _coordinates(side: int) -> np.ndarray:
    return ((2 * np.arange(side) + 1) / side - 1).astype(np.float32)


def _warp(images: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images (P, S, S) seen at x + x * scale + shift of each axis, -1 to 1, and which of the pixels lie inside."""

    def resampling(scale: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        side = images.shape[1]
        at = ((_coordinates(side) * (1 + scale[:, None]) + shift[:, None] + 1) * side - 1) / 2
        return np.maximum(0, 1 - np.abs(at.clip(0, side - 1)[..., None] - np.arange(side, dtype=np.float32))), (
            (at > -0.5) & (at < side - 0.5)
        )

    (columns, inside_x), (rows, inside_y) = (resampling(*place[:, axis : axis + 2].T) for axis in (0, 2))
    return rows @ images @ columns.transpose(0, 2, 1), inside_y[:, :, None] & inside_x[:, None, :]


def _register(one: np.ndarray, other: np.ndarray, place: np.ndarray, *, steps: int) -> np.ndarray:
    """Where (P, 4) the first of each pair is to be seen, to lie over the other: Gauss-Newton steps from a start."""
    count, side, _ = one.shape
    x, y = _coordinates(side), _coordinates(side)[:, None]
    for _ in range(steps):
        seen, inside = _warp(one, place)
        down, across = np.gradient(seen, 2 / side, axis=(1, 2))
        pixels = np.maximum(inside.sum((1, 2), keepdims=True), 1)
        base, wanted = (values - (values * inside).sum((1, 2), keepdims=True) / pixels for values in (seen, other))
        parts = np.stack([across * x, across, down * y, down, base], axis=1) * inside[:, None]
        parts = parts.reshape(count, 5, -1)
        square = parts @ parts.transpose(0, 2, 1)
        square += np.eye(5, dtype=np.float32) * (1e-3 * np.trace(square, axis1=1, axis2=2)[:, None, None] / 5 + 1e-3)
        solution = np.linalg.solve(square, parts @ (wanted * inside).reshape(count, -1, 1))[..., 0]
        step = solution[:, :4] / np.maximum(solution[:, 4:5], 0.2)
        place = np.clip(place + np.clip(step, -0.06, 0.06), -FARTHEST, FARTHEST)
    return place


def _toned(one: np.ndarray, other: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The first of each pair in the brightness and contrast of the other, cut off where that is white or black."""
    known = inside & (np.minimum(one, other) > 4) & (np.maximum(one, other) < 251)
    count = known.sum((1, 2), keepdims=True) + 1

    def mean(values: np.ndarray) -> np.ndarray:
        return (values * known).sum((1, 2), keepdims=True) / count

    means = [mean(values) for values in (one, other)]
    have, want = (np.sqrt(mean((v - m) ** 2) + 1e-3) for v, m in zip((one, other), means, strict=True))
    return ((one - means[0]) * (want / have) + means[1]).clip(0, 255)


def _difference(one: np.ndarray, other: np.ndarray, place: np.ndarray) -> np.ndarray:
    """What differs (P,) between the first of each pair, where it lies over the second, and that: 0 for nothing."""
    from scipy.ndimage import uniform_filter

    seen, inside = _warp(one, place)
    seen = _toned(seen, other, inside)

    def window(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, WINDOW, mode="constant", axes=(1, 2))

    share = np.maximum(window(inside.astype(np.float32)), 1e-6)

    def variance(values: np.ndarray) -> np.ndarray:
        return np.maximum(window(values * values * inside) / share - (window(values * inside) / share) ** 2, 0)

    difference = variance(seen - other) / (variance(seen) + variance(other) + NOISE)
    windows = np.where(share > 0.5, difference, 0).reshape(len(one), -1)
    return np.quantile(windows, 1 - WORST, axis=1)
