"""Candidates for near-duplicates, by sketches of 16 x 16 levels of grey. N images, n rows, P pairs.

Pairs whose blurred sketches share one of 28 keys are compared, and are candidates if they fit, a crop allowed for. A
row has the CLOSEST of its candidates, all rows together have MOST, however many images show one scene.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from creature.console import warn

SIDE = 16
LENGTH = SIDE * SIDE  # bytes of a sketch
FLAT = 4.0  # levels of grey; an image that deviates less is like any other such, and has no near-duplicates
BANDS, BITS = 28, 23
CROWD, NEIGHBOURS = 32, 8  # rows of one key that each row is compared with; in larger crowds, those that come next
COMPARED = 1_000_000  # pairs of one key of all rows: beyond, a row is compared with fewer
CORRELATED, FITTING = 0.85, 0.965  # of blurred sketches: a quick look, and a crop allowed for
CLOSEST, MOST = 12, 100_000
AT_ONCE = 4096  # rows or pairs; more would leave the processor's cache, and take longer
BLUR = np.array([1, 4, 6, 4, 1], np.float32)  # whole numbers, whose sums float32 holds: keys are equal on all machines


class Candidates(NamedTuple):
    """Pairs of rows to be looked at closely, and whether the second is to be mirrored."""

    pairs: np.ndarray  # (P, 2)
    mirrored: np.ndarray  # (P,)


def sketch(image: Image.Image) -> bytes:
    """An image as 16 x 16 levels of grey, row by row."""
    return image.resize((SIDE, SIDE), Image.Resampling.BOX).convert("L").tobytes()


def find_candidates(sketches: np.ndarray, among: np.ndarray | None = None) -> Candidates:
    """Pairs of images that may look the same, by their sketches (N, 256), uint8; of some rows alone, a mask (N,).

    Warns where there are more than MOST; those that fit best are kept.
    """
    textured = np.zeros(len(sketches), bool)
    for part in _parts(len(sketches)):
        textured[part] = sketches[part].astype(np.float32).std(1) >= FLAT
    rows = np.flatnonzero(textured if among is None else textured & among)
    _, unique, same = np.unique(sketches[rows].view(f"V{LENGTH}"), return_index=True, return_inverse=True)
    first = rows[unique[same.ravel()]]  # such as a million copies of one image
    equal = np.stack([first, rows], axis=1)[first != rows]
    one, other, mirrored = _fitting(sketches, np.sort(rows[unique]))
    pairs = np.concatenate([equal, np.stack([one, other], axis=1)])
    return Candidates(pairs, np.concatenate([np.zeros(len(equal), bool), mirrored]))


def _fitting(sketches: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of some rows (n,), which differ, that fit: the one, the other, and whether that one is mirrored.

    Those compared share one of 28 keys, the signs of random projections (Charikar 2002). A place k stands for rows[k],
    and n + k for its mirror image.
    """
    n = len(rows)
    keys = np.concatenate([_keys(sketches, rows, mirrored) for mirrored in (False, True)])
    codes, fits = np.empty(0, np.int64), np.empty(0, np.float32)  # code: a pair of places
    for band in range(BANDS):
        order = np.argsort(keys[:, band], kind="stable")
        in_order = keys[order, band]
        crowded = _spread_crowds(order, in_order, sketches, rows=rows, band=band)
        compared = 0
        for step in range(1, CROWD + 1):
            near = step <= NEIGHBOURS or ~crowded[step:]
            shared = np.flatnonzero((in_order[step:] == in_order[:-step]) & near)
            if not len(shared) or compared > COMPARED:
                break
            compared += len(shared)
            new = np.setdiff1d(_codes(order[shared], order[shared + step], n), codes)
            fit = _fits(new, sketches, rows)
            codes, fits = np.append(codes, new[fit >= FITTING]), np.append(fits, fit[fit >= FITTING])
        codes, fits = _closest(codes, fits, n)
    if len(codes) > MOST:
        warn(
            f"look-alikes: {len(codes)} pairs of images may look the same, and the likeliest {MOST} are looked at; "
            "folds.group keeps the images of one place or series together"
        )
        best = np.argsort(-fits, kind="stable")[:MOST]
        codes = np.sort(codes[best])
    return rows[codes // (2 * n)], rows[codes % (2 * n) % n], codes % (2 * n) >= n


def _codes(one: np.ndarray, other: np.ndarray, n: int) -> np.ndarray:
    """Pairs of places as numbers: the lesser row as it is, the other one perhaps mirrored; not two mirror images."""
    useful = ((one < n) | (other < n)) & (one % n != other % n)
    one, other = one[useful], other[useful]
    mirrored = (one >= n) | (other >= n)
    return np.minimum(one % n, other % n) * 2 * n + np.maximum(one % n, other % n) + n * mirrored


def _closest(codes: np.ndarray, fits: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs, those that are among the CLOSEST of one of their two rows."""
    near = np.zeros(len(codes), bool)
    for row in (codes // (2 * n), codes % (2 * n) % n):
        order = np.lexsort((-fits, row))
        starts = np.flatnonzero(np.diff(row[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        near[order[rank < CLOSEST]] = True
    return codes[near], fits[near]


def _parts(count: int) -> list[slice]:
    return [slice(start, start + AT_ONCE) for start in range(0, count, AT_ONCE)]


def _blurred(levels: np.ndarray, mirrored: np.ndarray | bool = False) -> np.ndarray:
    """Sketches (P, 256), some of them mirrored (P,), as blurred ones (P, 16, 16), times 256."""
    from scipy.ndimage import convolve1d  # not before: it adds a filter of warnings to the host program

    squares = levels.reshape(-1, SIDE, SIDE).astype(np.float32)
    squares = np.where(np.asarray(mirrored)[..., None, None], squares[:, :, ::-1], squares)
    return convolve1d(convolve1d(squares, BLUR, axis=1, mode="nearest"), BLUR, axis=2, mode="nearest")


def _unit(values: np.ndarray) -> np.ndarray:
    """Vectors (..., d) without their mean, of length 1."""
    centred = values - values.mean(-1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-6)


def _planes() -> np.ndarray:
    """Projections (256, 28 * 23), each of which weighs half of the levels 1 and the others -1."""
    rng = np.random.default_rng(0)
    planes = [rng.permutation(np.repeat([1.0, -1.0], LENGTH // 2)) for _ in range(BANDS * BITS)]
    return np.stack(planes, axis=1).astype(np.float32)


def _keys(sketches: np.ndarray, rows: np.ndarray, mirrored: bool) -> np.ndarray:
    """Keys (rows, 28), uint32, of 23 signs each."""
    planes, weights = _planes(), (1 << np.arange(BITS)).astype(np.uint32)
    keys = np.empty((len(rows), BANDS), dtype=np.uint32)
    for part in _parts(len(rows)):
        signs = _blurred(sketches[rows[part]], mirrored).reshape(-1, LENGTH) @ planes > 0
        keys[part] = signs.reshape(-1, BANDS, BITS) @ weights
    return keys


def _spread_crowds(
    order: np.ndarray, in_order: np.ndarray, sketches: np.ndarray, *, rows: np.ndarray, band: int
) -> np.ndarray:
    """Put places of one key that are many beside those that they are like without their scene; gives which those are.

    The scene is the mean, and is taken off with what a crop changes of it, its tangents (Simard et al. 1993).
    """
    starts = np.flatnonzero(np.append(True, in_order[1:] != in_order[:-1]))
    planes, weights = _planes()[:, band * BITS : (band + 1) * BITS], (1 << np.arange(BITS)[::-1]).astype(np.uint32)
    n, crowded = len(rows), np.zeros(len(order), bool)
    for start, end in zip(starts, np.append(starts[1:], len(order)), strict=True):
        if end - start <= CROWD:
            continue
        crowd, crowded[start:end] = order[start:end], True

        def units(places: np.ndarray) -> np.ndarray:
            return _unit(_blurred(sketches[rows[places % n]], places >= n).reshape(-1, LENGTH))

        scene = units(crowd[:: -(-len(crowd) // AT_ONCE)]).mean(0)
        basis, _ = np.linalg.qr(_tangents(scene.reshape(1, SIDE, SIDE))[0])
        planes_left = planes - basis @ (basis.T @ planes)
        signs = [units(crowd[part]) @ planes_left > 0 for part in _parts(len(crowd))]
        order[start:end] = crowd[np.argsort(np.concatenate(signs) @ weights, kind="stable")]
    return crowded


def _tangents(squares: np.ndarray) -> np.ndarray:
    """Images (P, 16, 16) and what a shift or a scale of either axis adds to each: (P, 256, 5), of mean 0."""
    down, across = np.gradient(squares, axis=(1, 2))
    x = np.linspace(-1, 1, SIDE, dtype=np.float32)
    parts = np.stack([squares, across, across * x, down, down * x[:, None]], axis=-1).reshape(-1, LENGTH, 5)
    return parts - parts.mean(1, keepdims=True)


def _fits(codes: np.ndarray, sketches: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """How well the second of each pair (P,) is a shifted or scaled first: the multiple correlation of the two."""
    n, fits = len(rows), np.zeros(len(codes), np.float32)
    for part in _parts(len(codes)):
        places = codes[part] % (2 * n)
        one, other = _blurred(sketches[rows[codes[part] // (2 * n)]]), _blurred(sketches[rows[places % n]], places >= n)
        a, b = (_unit(squares.reshape(-1, LENGTH)) for squares in (one, other))
        near = np.flatnonzero(np.einsum("pd,pd->p", a, b) >= CORRELATED)
        parts, b = _tangents(a[near].reshape(-1, SIDE, SIDE)), b[near, :, None]
        against = parts.transpose(0, 2, 1) @ b
        square = parts.transpose(0, 2, 1) @ parts + 1e-6 * np.eye(5, dtype=np.float32)
        explained = (against * np.linalg.solve(square, against)).sum((1, 2))
        fits[part][near] = np.sqrt(np.clip(explained, 0, 1))
    return fits
