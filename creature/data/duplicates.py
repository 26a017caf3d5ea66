"""Near-duplicates: images that were resized, encoded again, brightened or mirrored. N rows, P pairs.

An image is known by its sketch, 16 x 16 levels of grey. Two images are near-duplicates if their sketches, or one and
the mirrored other, are correlated to at least 0.97: of 4.5 million pairs of different small photos one was, of copies
nearly all. A crop of more than some hundredths of a side is another image.
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
CROWD = 32  # rows of one key that each row is compared with; longer chains of copies hang together by their links
PIECE = 4096  # rows or pairs at a time; more would leave the processor's cache, and take longer


def sketch(image: Image.Image) -> bytes:
    """An image as 16 x 16 levels of grey, row by row."""
    return image.resize((SIDE, SIDE), Image.Resampling.BOX).convert("L").tobytes()


def near_duplicates(sketches: np.ndarray) -> np.ndarray:
    """For each sketch (N, 256), uint8, the first row (N,) of those that hang together by being alike, mirrored or not.

    Candidates share one of 28 keys, the signs of random projections (Charikar 2002), of which a pair just alike enough
    shares one 99 times in 100, and are then compared exactly. All sums are of whole numbers that float32 holds, so that
    every machine finds the same.
    """
    first = np.arange(len(sketches))
    deviations = [_moments(sketches[k : k + PIECE])[:, 1] for k in range(0, len(sketches), PIECE)]
    rows = np.flatnonzero(np.concatenate(deviations) >= FLAT) if deviations else first
    if not len(rows):
        return first
    _, unique, same = np.unique(sketches[rows].view(f"V{LENGTH}"), return_index=True, return_inverse=True)
    first[rows] = rows[unique[same.ravel()]]  # such as a million copies of one image
    rows = np.sort(rows[unique])
    keys = np.concatenate([_keys(sketches, rows, mirrored) for mirrored in (False, True)])
    moments = np.concatenate([_moments(sketches[rows[k : k + PIECE]]) for k in range(0, len(rows), PIECE)])
    group, edges = np.arange(len(rows)), [np.empty((0, 2), dtype=np.int64)]
    for band in range(BANDS):
        order = np.argsort(keys[:, band], kind="stable")
        sorted_keys = keys[order, band]
        for step in range(1, CROWD + 1):
            shared = np.flatnonzero(sorted_keys[step:] == sorted_keys[:-step])
            if not len(shared):
                break
            edges += _alike(sketches, rows, order[shared], order[shared + step], group, moments)
        links = np.concatenate(edges)
        graph = coo_array((np.ones(len(links), dtype=bool), links.T), shape=(len(rows), len(rows)))
        group = connected_components(graph, directed=False)[1]
    _, least = np.unique(group, return_index=True)
    head = np.arange(len(sketches))
    head[rows] = rows[least[group]]
    return head[first]


def _moments(sketches: np.ndarray) -> np.ndarray:
    """Sum and standard deviation of each row (N, 2)."""
    levels = sketches.astype(np.float32)
    total, squares = (values.sum(1, dtype=np.float64) for values in (levels, levels * levels))
    return np.stack([total, np.sqrt(np.maximum(squares / LENGTH - (total / LENGTH) ** 2, 0))], axis=1)


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


def _alike(
    sketches: np.ndarray,
    rows: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    group: np.ndarray,
    moments: np.ndarray,
) -> Iterator[np.ndarray]:
    """Of pairs of places in the keys, whose latter half is mirrored, those that are alike (P, 2), as places of `rows`.

    `moments` are those of the rows. What hangs together already, by `group`, is not compared again.
    """
    n = len(rows)
    useful = (group[one % n] != group[other % n]) & ((one < n) | (other < n))
    one, other = one[useful], other[useful]
    for start in range(0, len(one), PIECE):
        pair = np.stack([one[start : start + PIECE], other[start : start + PIECE]])
        a, b = (sketches[rows[places % n]].astype(np.float32) for places in pair)
        b = np.where(((pair[0] < n) != (pair[1] < n))[:, None], _mirror(b), b)
        (sums, deviations), (others, theirs) = (moments[places % n].T for places in pair)
        covariance = (np.einsum("ij,ij->i", a, b) - sums * others / LENGTH) / LENGTH
        yield pair.T[covariance >= ALIKE * deviations * theirs] % n
