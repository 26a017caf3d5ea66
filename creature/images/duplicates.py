"""Near-duplicates: pictures that were resized, encoded again, brightened or mirrored. N rows, P pairs.

A picture is known by its sketch, 16 x 16 levels of grey. Two pictures are near-duplicates if their sketches, or one and
the mirrored other, are correlated to at least 0.97: of 4.5 million pairs of different small photos one was, of copies
nearly all. A crop of more than some hundredths of a side is another picture.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

SIDE = 16
LENGTH = SIDE * SIDE  # bytes of a sketch
ALIKE = 0.97
FLAT = 4.0  # levels of grey; a picture that deviates less is like any other such, and has no near-duplicates
BANDS, BITS = 28, 23
CROWD = 32  # rows of one key that each row is compared with; longer chains of copies hang together by their links
PIECE = 65_536  # rows or pairs at a time


def sketch(image: Image.Image) -> bytes:
    """A picture as 16 x 16 levels of grey, row by row."""
    return image.resize((SIDE, SIDE), Image.Resampling.BOX).convert("L").tobytes()


def near_duplicates(sketches: np.ndarray) -> np.ndarray:
    """Pairs of rows (P, 2), the smaller row first, whose sketches (N, 256), uint8, are alike, mirrored ones too.

    Candidates share one of 28 keys, the signs of random projections (Charikar 2002), of which a pair just alike enough
    shares one 99 times in 100, and are then compared exactly. All sums are of whole numbers that float32 holds, so that
    every machine finds the same pairs.
    """
    rows = np.flatnonzero(np.concatenate([_deviation(piece) >= FLAT for piece in _pieces(sketches)] or [[]]))
    keys = np.concatenate([_keys(sketches, rows, mirrored) for mirrored in (False, True)])
    found: list[np.ndarray] = []
    for band in range(BANDS):
        order = np.argsort(keys[:, band], kind="stable")
        sorted_keys = keys[order, band]
        for step in range(1, CROWD + 1):
            same = np.flatnonzero(sorted_keys[step:] == sorted_keys[:-step])
            if not len(same):
                break
            found += _alike(sketches, rows, order[same], order[same + step])
    if not found:
        return np.empty((0, 2), dtype=np.int64)
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _pieces(sketches: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(sketches), PIECE):
        yield sketches[start : start + PIECE].astype(np.float32)


def _deviation(levels: np.ndarray) -> np.ndarray:
    """Standard deviation of each row (N,)."""
    total, squares = (values.sum(1, dtype=np.float64) for values in (levels, levels * levels))
    return np.sqrt(np.maximum(squares / LENGTH - (total / LENGTH) ** 2, 0))


def _mirror(levels: np.ndarray) -> np.ndarray:
    return levels.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(-1, LENGTH)


def _keys(sketches: np.ndarray, rows: np.ndarray, mirrored: bool) -> np.ndarray:
    """Keys (rows, 28), uint32, of 23 signs each; a projection weighs half of the levels 1 and the others -1."""
    rng = np.random.default_rng(0)
    planes = np.stack([rng.permutation(np.repeat([1.0, -1.0], LENGTH // 2)) for _ in range(BANDS * BITS)], axis=1)
    weights = (1 << np.arange(BITS)).astype(np.uint32)
    keys = np.empty((len(rows), BANDS), dtype=np.uint32)
    for start in range(0, len(rows), PIECE):
        levels = sketches[rows[start : start + PIECE]].astype(np.float32)
        signs = (_mirror(levels) if mirrored else levels) @ planes.astype(np.float32) > 0
        keys[start : start + PIECE] = signs.reshape(-1, BANDS, BITS) @ weights
    return keys


def _alike(sketches: np.ndarray, rows: np.ndarray, first: np.ndarray, second: np.ndarray) -> Iterator[np.ndarray]:
    """Of pairs of places in the keys, whose latter half is mirrored, those that are alike, as rows (P, 2)."""
    n = len(rows)
    useful = (first % n != second % n) & ((first < n) | (second < n))
    first, second = first[useful], second[useful]
    for start in range(0, len(first), PIECE):
        one, other = first[start : start + PIECE], second[start : start + PIECE]
        a, b = (sketches[rows[places % n]].astype(np.float32) for places in (one, other))
        b = np.where(((one < n) != (other < n))[:, None], _mirror(b), b)
        means = a.sum(1, dtype=np.float64) * b.sum(1, dtype=np.float64) / LENGTH
        covariance = (np.einsum("ij,ij->i", a, b).astype(np.float64) - means) / LENGTH
        alike = covariance >= ALIKE * _deviation(a) * _deviation(b)
        yield np.stack([rows[one[alike] % n], rows[other[alike] % n]], axis=1)
