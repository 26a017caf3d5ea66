"""Sketches of images: 16 x 16 levels of grey, and 8 x 8 of each chroma. N images, n rows, m rows of a cell.

Of images before one scene, such as a fixed camera's, what differs is a small part: it is what is left of a sketch
without its scene, which is what images like it are on average (background subtraction, Piccardi 2004).
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 16
GREY = SIDE * SIDE  # bytes of a sketch that are levels of grey
LENGTH = GREY + 2 * (SIDE // 2) ** 2


def sketch(image: Image.Image) -> bytes:
    """An image as 16 x 16 levels of grey, and 8 x 8 of each chroma (YCbCr), row by row."""
    grey, *chroma = image.resize((SIDE, SIDE), Image.Resampling.BOX).convert("RGB").convert("YCbCr").split()
    return b"".join([grey.tobytes(), *(plane.reduce(2).tobytes() for plane in chroma)])


def centred(sketches: np.ndarray) -> np.ndarray:
    """Sketches (n, 384) as float32, each plane without its mean; chroma has a quarter of the pixels, and counts so."""
    grey, chroma = _planes(sketches.astype(np.float32))
    return _joined([grey, 2 * chroma])


def mirror(sketches: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Sketches (n, 384), some of them, a mask (n,), mirrored."""
    planes = [np.where(which[:, None, None, None], plane[..., ::-1], plane) for plane in _planes(sketches)]
    return np.concatenate([plane.reshape(len(plane), -1) for plane in planes], axis=1)


def without_scene(rows: np.ndarray, members: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Centred rows (n, 384) without their scenes, of length 1.

    A row's scene is the mean of those members (m, 384), centred too, that are near it, a mask (n, m). What a crop would
    change of it is taken away, too: what moving and scaling it does.
    """
    scene = near.astype(np.float32) @ members
    changes = [scene]
    for axis, shape in ((2, (-1, 1)), (3, (1, -1))):
        slopes = [np.gradient(plane, 1 / plane.shape[-1], axis=axis) for plane in _planes(scene)]
        moved = [slope * _coordinates(slope.shape[-1]).reshape(shape) for slope in slopes]
        changes += [_joined(slopes), _joined(moved)]
    axes: list[np.ndarray] = []
    for change in changes:
        axes.append(_unit(_without(change, axes)))
    return _unit(_without(rows, axes))


def _planes(sketches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sketches (n, 384) as grey (n, 1, 16, 16) and chroma (n, 2, 8, 8)."""
    grey, chroma = sketches[:, :GREY], sketches[:, GREY:]
    return grey.reshape(-1, 1, SIDE, SIDE), chroma.reshape(-1, 2, SIDE // 2, SIDE // 2)


def _joined(planes: Sequence[np.ndarray]) -> np.ndarray:
    """The same the other way round, each plane without its mean."""
    return np.concatenate([(p - p.mean((2, 3), keepdims=True)).reshape(len(p), -1) for p in planes], axis=1)


def _coordinates(side: int) -> np.ndarray:
    return ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)


def _without(vectors: np.ndarray, axes: Sequence[np.ndarray]) -> np.ndarray:
    """Vectors (n, d) without what lies along axes (n, d), one after the other (Gram and Schmidt)."""
    for axis in axes:
        vectors = vectors - np.einsum("nd,nd->n", vectors, axis)[:, None] * axis
    return vectors


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
