"""Candidates for near-duplicates, by sketches of 16 x 16 pixels. N images, n rows, m cells, P pairs.

What is compared is the low frequencies of the discrete cosine transform, as in perceptual hashes (Zauner 2010), each
weighted by its frequency, for images have less of the high ones (Field 1987). A row's candidates are the NEAREST by the
cosine. They are searched with an inverted file (Sivic and Zisserman 2003): rows lie in cells, each around a row that
was drawn by lot, and a row is compared with those of the PROBES cells next to it. All numbers that are compared are
whole, and float32 holds their sums: candidates are equal on all machines.

Where more than NEAREST rows of a cell are that near, they share a scene, such as that of a fixed camera: of those, the
nearest are found by what is not the scene (background subtraction), in colour. Here a last bit may differ by machine.

What is lost of the copies: those whose cosine is below LEAST, or that NEAREST others are closer to, such as things of
one part in a thousand of a scene; of a scene, many that have lost their colours; and some two in a thousand, in cells
that are not compared (none of up to PROBES * CELL rows).
"""

from typing import NamedTuple

import numpy as np

from creature.console import warn
from creature.data.sketches import GREY, LENGTH, SIDE, centred, mirror, without_scene

FLAT = 1.0  # levels of grey; an image that deviates less is like any other such, and has no near-duplicates
FREQUENCIES = 8  # of the transform, that are below this
LEAST, NEAREST, MOST = 0.75, 12, 100_000  # cosine; candidates of a row; of all rows
CELL, PROBES = 512, 12
LARGEST = 1 << 16  # rows of a cell that others are compared with: more are all the same
AT_ONCE = 4096  # rows; more would leave the processor's cache, and take longer


class Candidates(NamedTuple):
    """Pairs of rows to be looked at closely, and whether the second is to be mirrored."""

    pairs: np.ndarray  # (P, 2)
    mirrored: np.ndarray  # (P,)


def find_candidates(sketches: np.ndarray, among: np.ndarray | None = None) -> Candidates:
    """Pairs of images that may look the same, by their sketches (N, 384), uint8; of some rows alone, a mask (N,).

    Warns where there are more than MOST; those that are nearest are kept.
    """
    textured = np.zeros(len(sketches), bool)
    for part in _parts(len(sketches)):
        textured[part] = sketches[part, :GREY].astype(np.float32).std(1) >= FLAT
    rows = np.flatnonzero(textured if among is None else textured & among)
    _, unique, same = np.unique(sketches[rows].view(f"V{LENGTH}"), return_index=True, return_inverse=True)
    first = rows[unique[same.ravel()]]  # such as a million copies of one image
    equal = np.stack([first, rows], axis=1)[first != rows]
    near, mirrored = _near(sketches, np.sort(rows[unique]))
    return Candidates(np.concatenate([equal, near]), np.concatenate([np.zeros(len(equal), bool), mirrored]))


def _near(sketches: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (P, 2) of some rows (n,), which differ, that are near, and whether one is mirrored."""
    n = len(rows)
    if n < 2:
        return np.empty((0, 2), np.int64), np.empty(0, bool)
    values, flip = _frequencies(sketches, rows)
    centres = values[np.random.default_rng(0).choice(n, 1 + n // CELL, replace=False)].astype(np.float32)
    home = np.concatenate([np.argmax(values[part] @ centres.T, axis=1) for part in _parts(n)])
    order = np.argsort(home, kind="stable")
    cells = np.split(order, np.searchsorted(home[order], np.arange(1, len(centres))))
    rests = _rests(sketches, rows, values=values, cells=cells)
    codes, cosines = np.empty(0, np.int64), np.empty(0, np.float32)  # code: the lesser row, and the other one's place
    for start in range(0, n, 8 * AT_ONCE):
        asking = np.arange(start, min(n, start + 8 * AT_ONCE))
        queries = np.concatenate([values[asking], values[asking] * flip])
        query, other, cosine = _search(queries, values, centres, cells=cells, itself=np.tile(asking, 2), rests=rests)
        row = asking[query % len(asking)]
        best = _nearest(row, other, cosine)
        row, other, mirrored = row[best], other[best], query[best] >= len(asking)
        codes = np.append(codes, np.minimum(row, other) * 2 * n + np.maximum(row, other) + n * mirrored)
        cosines = np.append(cosines, cosine[best])
    codes, once = np.unique(codes, return_index=True)
    if len(codes) > MOST:
        warn(
            f"look-alikes: {len(codes)} pairs of images may look the same, and the likeliest {MOST} are looked at; "
            "folds.group keeps the images of one place or series together"
        )
        codes = np.sort(codes[np.argsort(-cosines[once], kind="stable")[:MOST]])
    return np.stack([rows[codes // (2 * n)], rows[codes % (2 * n) % n]], axis=1), codes % (2 * n) >= n


def _parts(count: int) -> list[slice]:
    return [slice(start, start + AT_ONCE) for start in range(0, count, AT_ONCE)]


def _frequencies(sketches: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted frequencies (n, d), int8, of length 127, of some rows, and what they are multiplied with to mirror."""
    down, across = (axis.ravel() for axis in np.mgrid[:FREQUENCIES, :FREQUENCIES])
    frequency = np.hypot(down, across)
    down, across, frequency = (v[(frequency > 0) & (frequency < FREQUENCIES)] for v in (down, across, frequency))
    waves = np.cos(np.pi / SIDE * (np.arange(SIDE)[:, None] + 0.5) * np.arange(FREQUENCIES))
    waves = np.round(127 * (waves[:, None, down] * waves[None, :, across]).reshape(GREY, -1)).astype(np.float32)
    scale = frequency * np.where((down == 0) | (across == 0), np.sqrt(0.5), 1)
    values = np.empty((len(rows), len(frequency)), np.int8)
    for part in _parts(len(rows)):
        levels = sketches[rows[part], :GREY].astype(np.float32)
        weighted = (levels - np.round(levels.mean(1, keepdims=True))) @ waves * scale
        length = np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-6)
        values[part] = np.round(127 * weighted / length)
    return values, np.where(across % 2, -1, 1).astype(np.int8)


def _rests(sketches: np.ndarray, rows: np.ndarray, *, values: np.ndarray, cells: list[np.ndarray]) -> np.ndarray:
    """What is left (n, 384), int8, of length 127, of some rows without their scenes: all of one that has none."""
    rests = np.empty((len(rows), LENGTH), np.int8)
    for cell in filter(len, cells):
        members = values[cell[:LARGEST]].astype(np.float32).T
        levels = centred(sketches[rows[cell[:LARGEST]]])
        for part in _parts(len(cell)):
            near = values[cell[part]] @ members >= LEAST * 127**2
            near &= np.count_nonzero(near, axis=1, keepdims=True) > NEAREST
            rests[cell[part]] = np.round(127 * without_scene(centred(sketches[rows[cell[part]]]), levels, near))
    return rests


def _search(
    queries: np.ndarray,
    values: np.ndarray,
    centres: np.ndarray,
    *,
    cells: list[np.ndarray],
    itself: np.ndarray,
    rests: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a query and another row than itself, with their cosines: of each cell, the nearest to a query."""
    probed = np.concatenate([_highest(queries[part] @ centres.T, PROBES) for part in _parts(len(queries))])
    order = np.argsort(probed, axis=None, kind="stable")
    ends = np.searchsorted(probed.ravel()[order], np.arange(1, len(centres)))
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    for cell, probing in zip(cells, np.split(order // probed.shape[1], ends), strict=True):
        cell = cell[:LARGEST]
        members, unlike = values[cell].astype(np.float32).T, rests[cell].astype(np.float32).T
        for part in _parts(len(probing)):
            query = probing[part]
            cosines = queries[query] @ members  # times 127 ** 2
            near = cosines >= LEAST * 127**2
            if np.count_nonzero(near) > len(query) * NEAREST:  # such as in one scene
                cosines = np.where(near, mirror(rests[itself[query]], query >= len(itself) // 2) @ unlike, 0)
                near[:] = False
                np.put_along_axis(near, _highest(cosines, NEAREST + 1), True, axis=1)
                near &= cosines > 0
            place = np.flatnonzero(near)
            which, at = np.divmod(place, max(1, near.shape[1]))
            found.append((query[which], cell[at], cosines.ravel()[place]))
    query, other, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
    others = other != itself[query]
    return query[others], other[others], cosine[others]


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    """The columns (n, count) of the highest values of each row, of equal ones the first; all, if they are fewer."""
    if values.shape[1] <= count:
        return np.tile(np.arange(values.shape[1]), (len(values), 1))
    keys = values.astype(np.int32) * LARGEST - np.arange(values.shape[1], dtype=np.int32)  # no two are equal
    return np.argpartition(keys, -count, axis=1)[:, -count:]


def _nearest(row: np.ndarray, other: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """Which of some pairs are among the NEAREST of their row."""
    order = np.lexsort((other, -cosine, row))
    starts = np.flatnonzero(np.diff(row[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return order[rank < NEAREST]
