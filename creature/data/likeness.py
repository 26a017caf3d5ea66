"""A close look at pairs of images: is one a copy of the other, changed a little? P pairs, S x S pixels.

The two are laid over each other (Lucas and Kanade 1981, for a shift and a scale of each axis), and compared in small
windows by the contrast and structure of SSIM (Wang et al. 2004), and by hue. What differs most decides, for a
background is alike wherever nothing stands before it. Where the candidates of both rows are mostly no copies, they
share a scene, and copies must be alike in finer detail, the more so the more alike those are. Colours that brightening
may have cut off are not compared. Images of a side below 14 pixels have no detail to judge by, and two drawings of one
digit are as alike as two copies: of these, only equal pixels are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from creature.data.decode import BadImage, decode, read
from creature.errors import BrokenError

SIDE = 64
SHAPE = (SIDE, SIDE, 3)  # of a detail
LEVELS = (16, 32, 64)  # sides at which two images are compared
ENOUGH = 0.85  # of a level, that an image's own side must be
STEPS = (4, 3, 2)
ALIKE = 0.3  # at side 32, that is looked at in finer detail
SCENE_ROWS = 4  # candidates of a row, from which on it may share a scene with them
COPIES = 0.92  # candidates that are mostly so alike are copies, and share more than a scene
LEAST = {
    0: (0.995, 0.995),
    16: (0.75, 0.95),
    32: (0.6, 0.9),
    64: (0.5, 0.85),
}  # by side: without a scene, and before one
NOISE = 12.0  # squared levels of grey: what encoding leaves in a window without any contrast
HUE_NOISE = 400.0  # the same of hues, which are encoded more coarsely
MOST_SATURATED = 2.0  # times more than the other
WINDOW, WORST = 5, 0.005  # pixels; the share of windows that may be worse
CUT, BRIGHTENED = 215.0, 0.03  # the level of a colour that may be cut off; the logarithm of another contrast
FARTHEST = 0.15  # of half a side, that a crop may move an edge
AT_ONCE, READ_AT_ONCE = 64, 1 << 13  # pairs
GREY = np.array([0.299, 0.587, 0.114], np.float32)

Details = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # of rows (n,): levels (n, 64, 64, 3), and sides (n,)


def detail(image: Image.Image) -> tuple[bytes, int]:
    """An image as 64 x 64 pixels of three bytes, row by row, and the largest of LEVELS that it has, or 0."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("RGB")
    return small.tobytes(), max(level for level in (0, *LEVELS) if ENOUGH * level <= min(image.size))


def read_detail(name: str, image: dict[str, Any]) -> tuple[bytes, int]:
    """The detail of an image that was decoded before; raises BrokenError, with its name, where it no longer can be."""
    try:
        return detail(decode(read(image)))
    except BadImage as reason:
        raise BrokenError(f"{name}: changed while it was read ({reason}); start again") from reason


def are_alike(pairs: np.ndarray, mirrored: np.ndarray, details: Details) -> np.ndarray:
    """How alike the images of each pair of rows (P, 2) are, 0 for those that do not look the same."""
    alike, finest = np.empty(len(pairs), np.float32), np.empty(len(pairs), np.int64)
    for start in range(0, len(pairs), READ_AT_ONCE):
        part = slice(start, start + READ_AT_ONCE)
        alike[part], finest[part] = _look(pairs[part], mirrored[part], details)
    alone, in_scene = np.array([LEAST[side] for side in finest.tolist()]).reshape(-1, 2).T
    scene = _scene_likeness(pairs, alike)
    return np.where(alike >= np.where(scene < 0, alone, in_scene + (1 - in_scene) * scene), alike, 0)


def _look(pairs: np.ndarray, mirrored: np.ndarray, details: Details) -> tuple[np.ndarray, np.ndarray]:
    """How alike the images of each pair are, and at which side: a finer one where they are alike at 32."""
    rows, place = np.unique(pairs, return_inverse=True)
    levels, sides = details(rows)
    place = place.reshape(-1, 2)
    finest = sides[place].min(1, initial=SIDE)
    alike = np.zeros(len(pairs), np.float32)
    for level in LEVELS:
        side = np.clip(finest, LEVELS[0], LEVELS[1]) if level < SIDE else np.where(alike >= ALIKE, finest, 0)
        at = np.flatnonzero(side == level)
        for start in range(0, len(at), AT_ONCE):
            chosen = at[start : start + AT_ONCE]
            one, other = (levels[place[chosen, k]] for k in (0, 1))
            other = np.where(mirrored[chosen, None, None, None], other[:, :, ::-1], other)
            alike[chosen] = likeness(one, other, level)
    return alike, finest


def _scene_likeness(pairs: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """The median likeness (P,) of both rows' candidates, from 0 on, if they are many and mostly no copies; else -1."""
    _, place, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    values = np.repeat(alike, 2)
    median = values[np.lexsort((values, place.ravel()))][np.cumsum(counts) - counts + counts // 2]
    scene = np.where((counts >= SCENE_ROWS) & (median < COPIES), np.maximum(median, 0), -1)
    return scene[place.reshape(-1, 2)].min(1, initial=1)


def likeness(one: np.ndarray, other: np.ndarray, side: int) -> np.ndarray:
    """How alike the images (P, 64, 64, 3) of each pair are, compared at a side: 1 where they are equal everywhere."""
    place = np.zeros((len(one), 4), np.float32)
    a, b = one, other
    for level, steps in zip(LEVELS[: LEVELS.index(side) + 1], STEPS, strict=False):
        a, b = (_smaller(images, level) for images in (one, other))
        place = _register(_grey(a), _grey(b), place, steps=steps)
    scale, shift = place[:, ::2], place[:, 1::2]
    back = np.stack([1 / (1 + scale) - 1, -shift / (1 + scale)], axis=2).reshape(-1, 4)
    return 1 - np.minimum(_difference(a, b, place), _difference(b, a, back))  # a resampled image lacks some detail


def _smaller(images: np.ndarray, side: int) -> np.ndarray:
    """Images (P, 64, 64, 3) as (P, 3, S, S), a little blurred, so that they can be moved by parts of a pixel."""
    from scipy.ndimage import gaussian_filter  # not before: it adds a filter of warnings to the host program

    step = SIDE // side
    colours = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    blocks = colours.reshape(len(images), 3, side, step, side, step).mean((3, 5), dtype=np.float32)
    return gaussian_filter(blocks, (0, 0, 0.7, 0.7), mode="nearest")


def _grey(colours: np.ndarray) -> np.ndarray:
    """Images (P, 3, S, S) as (P, S, S)."""
    return np.einsum("c,pcyx->pyx", GREY, colours)


def _coordinates(side: int) -> np.ndarray:
    return ((2 * np.arange(side) + 1) / side - 1).astype(np.float32)


def _warp(images: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images (P, C, S, S) seen at x + x * scale + shift of each axis, -1 to 1, and which of the pixels lie inside.

    An image's outermost pixels do not: what a crop has taken away is blurred into those of the other image.
    """

    def resampling(scale: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        side = images.shape[-1]
        number = np.arange(side)
        at = ((_coordinates(side) * (1 + scale[:, None]) + shift[:, None] + 1) * side - 1) / 2
        inside = (at > 0.5) & (at < side - 1.5) & (number > 0) & (number < side - 1)
        return np.maximum(0, 1 - np.abs(at.clip(0, side - 1)[..., None] - number.astype(np.float32))), inside

    (columns, inside_x), (rows, inside_y) = (resampling(*place[:, axis : axis + 2].T) for axis in (0, 2))
    seen = rows[:, None] @ images @ columns.transpose(0, 2, 1)[:, None]
    return seen, inside_y[:, :, None] & inside_x[:, None, :]


def _register(one: np.ndarray, other: np.ndarray, place: np.ndarray, *, steps: int) -> np.ndarray:
    """Where (P, 4) the first of each pair is to be seen, to lie over the other: Gauss-Newton steps from a start."""
    count, side, _ = one.shape
    x, y = _coordinates(side), _coordinates(side)[:, None]
    for _ in range(steps):
        seen, inside = _warp(one[:, None], place)
        seen = seen[:, 0]
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


def _difference(one: np.ndarray, other: np.ndarray, place: np.ndarray) -> np.ndarray:
    """What differs (P,) between the first of each pair, where it lies over the second, and that: 0 for nothing."""
    seen, inside = _warp(one, place)
    seen = _toned(seen, other, inside)
    known = inside[:, None].astype(np.float32)
    grey, other_grey = _grey(seen)[:, None], _grey(other)[:, None]
    hues, other_hues, known_hues = _halved(seen - grey), _halved(other - other_grey), _halved(known)
    hues = _saturated(hues, other_hues, known_hues)
    return np.maximum(
        _worst(grey, other_grey, known, noise=NOISE, shift=True),
        _worst(hues, other_hues, known_hues, noise=HUE_NOISE, shift=False),
    )


def _halved(values: np.ndarray) -> np.ndarray:
    """Values (P, C, S, S) at half the side: JPEG keeps no more of the hues."""
    count, colours, side, _ = values.shape
    return values.reshape(count, colours, side // 2, 2, side // 2, 2).mean((3, 5))


def _worst(one: np.ndarray, other: np.ndarray, inside: np.ndarray, *, noise: float, shift: bool) -> np.ndarray:
    """What differs (P,) in the worst windows of the two (P, C, S, S); with a shift, that of the means does not."""
    from scipy.ndimage import uniform_filter

    def window(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, WINDOW, mode="constant", axes=(2, 3))

    share = np.maximum(window(inside), 1e-6)

    def power(values: np.ndarray, centred: bool) -> np.ndarray:
        known = values * inside
        square = window((known * values).sum(1, keepdims=True)) / share
        mean = ((window(known) / share) ** 2).sum(1, keepdims=True) if centred else 0
        return np.maximum(square - mean, 0)

    difference = power(one - other, shift) / (power(one, True) + power(other, True) + noise)
    return np.quantile(np.where(share > 0.5, difference, 0).reshape(len(one), -1), 1 - WORST, axis=1)


def _saturated(one: np.ndarray, other: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The hues of the first of each pair (P, 3, S, S) with the mean and the saturation of the other's."""
    count = inside.sum((2, 3), keepdims=True) + 1
    means = [(hues * inside).sum((2, 3), keepdims=True) / count for hues in (one, other)]
    have, want = (
        np.sqrt(((hues - mean) ** 2 * inside).sum((1, 2, 3), keepdims=True) + 1e-3)
        for hues, mean in zip((one, other), means, strict=True)
    )
    return (one - means[0]) * np.minimum(want / have, MOST_SATURATED) + means[1]


def _toned(one: np.ndarray, other: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The first of each pair (P, 3, S, S) in the brightness and contrast of the other.

    Where one was made brighter, a colour that is bright in both may be cut off in one: it is taken for equal.
    """
    known = inside[:, None] & (np.minimum(one, other) > 4) & (np.maximum(one, other) < CUT)
    count = known.sum((1, 2, 3), keepdims=True) + 1

    def mean(values: np.ndarray) -> np.ndarray:
        return (values * known).sum((1, 2, 3), keepdims=True) / count

    means = [mean(colours) for colours in (one, other)]
    have, want = (np.sqrt(mean((c - m) ** 2) + 1e-3) for c, m in zip((one, other), means, strict=True))

    def tone(values: np.ndarray | float) -> np.ndarray:
        return (values - means[0]) * (want / have) + means[1]

    toned = tone(one)
    cut = (np.minimum(toned, other) > np.minimum(CUT, tone(CUT))) & (np.abs(np.log(want / have)) > BRIGHTENED)
    return np.where(cut, other, toned.clip(0, 255))
