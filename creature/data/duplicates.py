"""Near-duplicates: images that were resized, encoded again, brightened or mirrored. N sketches, n rows, P pairs.

An image's sketch is 16 x 16 levels of grey. Two images are near-duplicates if their sketches, or one and the mirrored
other, are correlated to at least 0.97: of 4.5 million pairs of different small photos one was, of copies nearly all.
A crop by more than some hundredths of a side makes another image.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE = 16
LENGTH = SIDE * SIDE  # bytes of a sketch
ALIKE = 0.97
FLAT = 4.0  # levels of grey; an image that deviates less is like any other such, and has no near-duplicates
BANDS, BITS = 28, 23
CROWD = 32  # rows of one key that each row is compared with; more copies than that are connected through each other
AT_ONCE = 4096  # rows or pairs; more would leave the processor's cache, and take longer


def sketch(image: Image.Image) -> bytes:
    """An image as 16 x 16 levels of grey, row by row."""
    return image.resize((SIDE, SIDE), Image.Resampling.BOX).convert("L").tobytes()


def near_duplicates(sketches: np.ndarray) -> np.ndarray:
    """For each sketch (N, 256), uint8, the first row (N,) of those that it is connected with by likeness.

    Two sketches are alike as the module says, mirrored or not, and those that are alike to a third one are connected.
    All sums are of whole numbers that float32 holds, so that every machine finds the same.
    """
    first = np.arange(len(sketches))
    rows = np.flatnonzero(_moments(sketches)[:, 1] >= FLAT)
    if not len(rows):
        return first
    _, unique, same = np.unique(sketches[rows].view(f"V{LENGTH}"), return_index=True, return_inverse=True)
    first[rows] = rows[unique[same.ravel()]]  # such as a million copies of one image
    rows = np.sort(rows[unique])
    group = _connect(sketches, rows)
    _, least = np.unique(group, return_index=True)
    head = np.arange(len(sketches))
    head[rows] = rows[least[group]]
    return head[first]


def _connect(sketches: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each of some rows (n,) of the sketches, which differ, the number of its group of connected ones.

    Candidates share one of 28 keys, the signs of random projections (Charikar 2002), of which a pair just alike enough
    shares one 99 times in 100, and are then compared exactly. A place k stands for rows[k], and n + k for its mirror
    image.
    """
    keys = np.concatenate([_keys(sketches, rows, mirrored) for mirrored in (False, True)])
    moments = _moments(sketches, rows)
    group, edges = np.arange(len(rows)), [np.empty((0, 2), dtype=np.int64)]
    for band in range(BANDS):
        order = np.argsort(keys[:, band], kind="stable")
        sorted_keys = keys[order, band]
        for step in range(1, CROWD + 1):
            shared = np.flatnonzero(sorted_keys[step:] == sorted_keys[:-step])
            if not len(shared):
                break
            pairs = _candidates(order[shared], order[shared + step], group)
            edges += _alike(pairs, sketches, rows, moments=moments)
        links = np.concatenate(edges)
        graph = coo_array((np.ones(len(links), dtype=bool), links.T), shape=(len(rows), len(rows)))
        group = connected_components(graph, directed=False)[1]
    return group


def _moments(sketches: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Sum and standard deviation (N, 2) of each sketch, or of each of some rows."""
    count = len(sketches) if rows is None else len(rows)
    moments = np.empty((count, 2))
    for start in range(0, count, AT_ONCE):
        chunk = slice(start, start + AT_ONCE)
        levels = sketches[chunk if rows is None else rows[chunk]].astype(np.float32)
        total, squares = (values.sum(1, dtype=np.float64) for values in (levels, levels * levels))
        deviation = np.sqrt(np.maximum(squares / LENGTH - (total / LENGTH) ** 2, 0))
        moments[chunk] = np.stack([total, deviation], axis=1)
    return moments


def _mirror(levels: np.ndarray) -> np.ndarray:
    return levels.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(-1, LENGTH)


def _keys(sketches: np.ndarray, rows: np.ndarray, mirrored: bool) -> np.ndarray:
    """Keys (rows, 28), uint32, of 23 signs each; a projection weighs half of the levels 1 and the others -1."""
    rng = np.random.default_rng(0)
    planes = np.stack([rng.permutation(np.repeat([1.0, -1.0], LENGTH // 2)) for _ in range(BANDS * BITS)], axis=1)
    weights = (1 << np.arange(BITS)).astype(np.uint32)
    keys = np.empty((len(rows), BANDS), dtype=np.uint32)
    for start in range(0, len(rows), AT_ONCE):
        levels = sketches[rows[start : start + AT_ONCE]].astype(np.float32)
        signs = (_mirror(levels) if mirrored else levels) @ planes.astype(np.float32) > 0
        keys[start : start + AT_ONCE] = signs.reshape(-1, BANDS, BITS) @ weights
    return keys


def _candidates(one: np.ndarray, other: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Pairs of places (2, P) to compare: not what is connected already, and not two mirror images."""
    n = len(group)
    useful = (group[one % n] != group[other % n]) & ((one < n) | (other < n))
    return np.stack([one[useful], other[useful]])


def _alike(pairs: np.ndarray, sketches: np.ndarray, rows: np.ndarray, *, moments: np.ndarray) -> Iterator[np.ndarray]:
    """Of pairs of places (2, P), those that are alike (Q, 2), as indices of `rows`, whose moments are given."""
    n = len(rows)
    for start in range(0, pairs.shape[1], AT_ONCE):
        pair = pairs[:, start : start + AT_ONCE]
        one, other = (sketches[rows[places % n]].astype(np.float32) for places in pair)
        other = np.where(((pair[0] < n) != (pair[1] < n))[:, None], _mirror(other), other)
        (sum_of_one, deviation_of_one), (sum_of_other, deviation_of_other) = (moments[places % n].T for places in pair)
        covariance = (np.einsum("ij,ij->i", one, other) - sum_of_one * sum_of_other / LENGTH) / LENGTH
        yield pair.T[covariance >= ALIKE * deviation_of_one * deviation_of_other] % n
