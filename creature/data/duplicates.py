"""Near-duplicates: images that were resized, encoded again, brightened, mirrored or cropped by a few hundredths.

N images, P pairs. Candidates by small sketches (candidates.py) are confirmed by a close look (likeness.py).
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from creature.console import warn
from creature.data.candidates import find_candidates
from creature.data.likeness import SCENE_ROWS, Details, are_alike

ROUNDS = 4  # in which images that hang together are parted into groups


class NearDuplicates(NamedTuple):
    """Images that look the same, by pairs and in groups."""

    first: np.ndarray  # (N,) the first row of each one's group, in which all look the same as one of them
    pairs: np.ndarray  # (P, 2) rows
    likeness: np.ndarray  # (P,) up to 1, for equal pixels
    in_scene: np.ndarray  # (N,) which have many candidates: they may share a scene with them, if they are no copies


def near_duplicates(sketches: np.ndarray, details: Details, among: np.ndarray | None = None) -> NearDuplicates:
    """The images of sketches (N, 384), uint8, that look the same; of some alone, where a mask (N,) is given."""
    candidates = find_candidates(sketches, among)
    if not len(candidates.pairs):
        rows = np.arange(len(sketches))
        return NearDuplicates(rows, candidates.pairs, np.empty(0, np.float32), np.zeros(len(sketches), bool))
    likeness = are_alike(candidates.pairs, candidates.mirrored, details)
    best = np.lexsort((-likeness, *candidates.pairs.T))  # what is its own mirror image may be a candidate twice
    best = best[likeness[best] > 0]
    pairs, once = np.unique(candidates.pairs[best], axis=0, return_index=True)
    likeness = likeness[best][once]
    in_scene = np.bincount(candidates.pairs.ravel(), minlength=len(sketches)) >= SCENE_ROWS
    return NearDuplicates(_stars(pairs, len(sketches), details), pairs, likeness, in_scene)


def _stars(pairs: np.ndarray, count: int, details: Details) -> np.ndarray:
    """The first row (N,) of each row's group: one row and those that look the same as it, not as one another."""
    first = np.arange(count)
    for _ in range(ROUNDS):
        if not len(pairs):
            break
        graph = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(count, count))
        part = connected_components(graph, directed=False)[1]
        rows, degree = np.unique(pairs, return_counts=True)
        order = np.lexsort((rows, -degree, part[rows]))
        _, at = np.unique(part[rows][order], return_index=True)
        middle = np.full(count, -1)
        middle[part[rows[order[at]]]] = rows[order[at]]
        spokes = np.stack([middle[part[rows]], rows], axis=1)
        spokes = spokes[spokes[:, 0] != spokes[:, 1]]
        known = np.isin(spokes @ [count, 1], np.concatenate([pairs @ [count, 1], pairs[:, ::-1] @ [count, 1]]))
        unknown = np.flatnonzero(~known)
        for mirrored in (False, True) if len(unknown) else ():
            known[unknown] |= are_alike(spokes[unknown], np.full(len(unknown), mirrored), details) > 0
        spokes = spokes[known]
        least = np.full(count, count)
        np.minimum.at(least, spokes[:, 0], spokes.min(1))
        first[spokes[:, 1]] = first[spokes[:, 0]] = least[spokes[:, 0]]
        pairs = pairs[~np.isin(pairs, spokes).any(1)]
    if len(pairs):
        warn(
            f"{len(np.unique(pairs))} images look like others, and hang together only through them; they are no group "
            "by themselves, and folds.group keeps a series or a place together"
        )
    return first
