"""Stratified, grouped folds, and the fold file that every process and machine of a run shares.

N rows, K folds. Row r is held out of fold `fold[r]` and trained on by all others; -1: trained on by all.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from creature.disk import write_text
from creature.terminal import UserError, warn


@dataclass(frozen=True)
class FoldFile:
    """Who holds out what: the rows of a run's labelled data, by id; `folds.json` on disk."""

    count: int
    seed: int
    names: tuple[str, ...]
    fingerprint: str
    ids: tuple[str, ...]
    labels: np.ndarray  # (N,)
    fold: np.ndarray  # (N,)
    hashes: tuple[str, ...]
    bad: dict[str, str]  # id -> why it cannot be decoded; these rows are in no fold


def assign_folds(labels: np.ndarray, groups: Sequence[str], count: int, seed: int) -> np.ndarray:
    """A fold for each row (N,): groups stay together, each class is spread evenly, sizes differ little.

    Greedy: groups from the largest to the smallest, ties in random order, each to the fold that holds the least of
    its classes. Without groups this is stratified K-fold, and a class rarer than K is spread over some folds.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    by_group = np.argsort(group, kind="stable")
    members = np.split(by_group, np.cumsum(np.bincount(group))[:-1])
    if len(members) < count:
        raise UserError(
            f"folds.count: {count} folds need as many groups of images, there are {len(members)}; set a smaller one"
        )
    shuffled = np.random.default_rng(seed).permutation(len(members))
    order = sorted(shuffled, key=lambda g: -len(members[g]))
    totals = np.bincount(labels)
    held = np.zeros((count, len(totals)))  # rows of each class in each fold
    fold = np.empty(len(labels), dtype=np.int64)
    for g in order:
        classes, n = np.unique(labels[members[g]], return_counts=True)
        crowding = (held[:, classes] * (n / totals[classes])).sum(1) + held.sum(1) / len(labels) / 100
        chosen = int(crowding.argmin())
        held[chosen, classes] += n
        fold[members[g]] = chosen
    return fold


def together(groups: Sequence[str], hashes: Sequence[str], labels: Sequence[int], names: Sequence[str]) -> list[str]:
    """Groups (N,) in which identical files are together, too: a copy in another fold would be seen in training."""
    first: dict[str, int] = {}
    parent = list(range(len(hashes)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    conflicts = 0
    for row, (group, content) in enumerate(zip(groups, hashes, strict=True)):
        for key in (f"hash {content}", f"group {group}" if group else f"row {row}"):
            parent[root(row)] = root(first.setdefault(key, row))
        conflicts += labels[first[f"hash {content}"]] != labels[row]
    if conflicts:
        row = next(r for r, h in enumerate(hashes) if labels[first[f"hash {h}"]] != labels[r])
        pair = f"{names[labels[first[f'hash {hashes[row]}']]]} and {names[labels[row]]}"
        warn(f"images.train: {conflicts} files are copies of one with another label, such as one in {pair}")
    return [str(root(row)) for row in range(len(hashes))]


def write_folds(path: Path, folds: FoldFile) -> None:
    """Write the fold file, one row a line, under a temporary name first; its last line is the hash of all before."""
    head = {
        "count": folds.count,
        "seed": folds.seed,
        "fingerprint": folds.fingerprint,
        "names": folds.names,
        "bad": folds.bad,
    }
    rows = zip(folds.ids, folds.labels.tolist(), folds.fold.tolist(), folds.hashes, strict=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    text = json.dumps(head, indent=1)[:-2] + f',\n "columns": ["id", "label", "fold", "hash"],\n "rows": [\n{lines}\n]'
    write_text(path, f'{text}{_SEAL}"{_hash(text)}"}}\n')


_SEAL = ',\n "sha256": '


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_folds(path: Path) -> FoldFile:
    """Read a fold file; raises UserError where it is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        _check_shape(data)
        if "sha256" in data and data["sha256"] != _hash(text.rpartition(_SEAL)[0]):  # older runs have none
            raise ValueError("its content is not what its hash names")
        ids, labels, fold, hashes = zip(*data["rows"], strict=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"{path}: cannot be read as a fold file ({reason}); restore it from a copy of the run"
        ) from None
    return FoldFile(
        count=data["count"],
        seed=data["seed"],
        names=tuple(data["names"]),
        fingerprint=data["fingerprint"],
        ids=ids,
        labels=np.array(labels, dtype=np.int64),
        fold=np.array(fold, dtype=np.int64),
        hashes=hashes,
        bad=data["bad"],
    )


def _check_shape(data: Any) -> None:
    """Raises ValueError where JSON is not what write_folds writes."""
    rows, names, count = data["rows"], data["names"], data["count"]
    if type(count) is not int or type(data["seed"]) is not int or type(data["fingerprint"]) is not str:
        raise ValueError("count, seed or fingerprint is of another type")
    if type(names) is not list or {type(name) for name in names} != {str} or type(data["bad"]) is not dict:
        raise ValueError("names or bad is of another type")
    if type(rows) is not list or {tuple(map(type, row)) for row in rows} != {(str, int, int, str)}:
        raise ValueError("a row is not id, label, fold, hash")
    if len({row[0] for row in rows}) < len(rows):
        raise ValueError("two rows have one id")
    if not all(0 <= label < len(names) and -1 <= fold < count for _, label, fold, _ in rows):
        raise ValueError("a row has a label or fold that does not exist")


def folds_hash(folds: FoldFile) -> str:
    """Hash of the partition: the data's fingerprint and each row's fold; equal for members that may be combined."""
    rows = sorted(zip(folds.ids, folds.fold.tolist(), strict=True))
    return hashlib.sha256(json.dumps([folds.fingerprint, folds.count, rows]).encode()).hexdigest()
