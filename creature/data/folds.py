"""Stratified, grouped folds, and the fold file that every process and machine of a run shares.

N rows, K folds, R repeats. The rows are parted into K folds R times, for R * K members: member `fold` holds out those
of fold `fold % K` of partition `fold // K`, and is trained on all others. Fold -1: trained on by all.

The file is an Arrow table, as it can be memory-mapped where it lies: the rows take none of a process's own memory.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from creature.console import warn
from creature.data.arrow_tables import arrow_compute, iterate_rows, map_table, write_table
from creature.errors import BrokenError, UserError

if TYPE_CHECKING:
    import pyarrow as pa

FOLDS_FILE, OLD_FOLDS_FILE = "folds.arrow", "folds.json"
HEAD = b"folds"  # the key of the JSON in the schema's metadata
WRONG_ROWS = "a row is not id, label, fold, hash, or lacks the fold of a repeat"


@dataclass(frozen=True)
class FoldTable:
    """Which member holds out which row of a run's labelled data; `folds.arrow` on disk."""

    count: int
    seed: int
    class_names: tuple[str, ...]
    fingerprint: str
    ids: "pa.ChunkedArray"  # (N,) strings, as are the hashes: Python's own would take 150 bytes a row
    labels: np.ndarray  # (N,)
    partitions: tuple[np.ndarray, ...]  # R of (N,), the fold of each row
    hashes: "pa.ChunkedArray"
    bad: dict[str, str]  # id -> why it cannot be decoded; these rows are in no fold

    @property
    def members(self) -> int:
        """How many models are trained on the rows: K of each partition."""
        return self.count * len(self.partitions)

    @property
    def table(self) -> "pa.Table":
        """The rows: id, label, fold in each partition, hash."""
        return _as_table(self.ids, self.labels, self.partitions, hashes=self.hashes)

    def held_out(self, fold: int) -> np.ndarray:
        """Which rows (N,) a member holds out."""
        return self.partitions[fold // self.count] == fold % self.count


def assign_folds(
    labels: np.ndarray, groups: Sequence[str] | np.ndarray, count: int, *, seed: int, repeat: int = 0
) -> np.ndarray:
    """A fold for each row (N,): groups stay together, each class is spread evenly, sizes differ little.

    Greedy: groups from the largest to the smallest, ties in random order, each to the fold that holds the least of
    its classes. Without groups this is stratified K-fold, and a class rarer than K is spread over some folds. A repeat
    takes groups of half to twice a size for ties: by their exact sizes it would draw the same folds again. Raises
    UserError for fewer groups than folds.
    """
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    sizes, totals = np.bincount(group_of), np.bincount(labels)
    if len(sizes) < count:
        raise UserError(
            f"folds.count: {count} folds need as many groups of images, there are {len(sizes)}; set a smaller one"
        )
    # A pair is a group and one of its classes, with `rows` of both; group g has pairs[starts[g]:starts[g + 1]].
    pairs, rows = np.unique(group_of * len(totals) + labels, return_counts=True)
    starts = np.searchsorted(pairs, np.arange(len(sizes) + 1) * len(totals)).tolist()
    classes, share = pairs % len(totals), rows / totals[pairs % len(totals)]
    shuffled = np.random.default_rng([seed, repeat] if repeat else seed).permutation(len(sizes))
    size = np.log2(sizes).astype(int) if repeat else sizes
    order = shuffled[np.argsort(-size[shuffled], kind="stable")]
    class_rows, fold_rows = np.zeros((count, len(totals))), np.zeros(count)  # that each fold holds so far
    fold_of = np.empty(len(sizes), dtype=np.int64)
    for group in order.tolist():
        span = slice(starts[group], starts[group + 1])
        crowding = (class_rows[:, classes[span]] * share[span]).sum(1) + fold_rows / len(labels) / 100
        fold_of[group] = fold = crowding.argmin()
        class_rows[fold, classes[span]] += rows[span]
        fold_rows[fold] += sizes[group]
    return fold_of[group_of]


def group_copies(
    groups: Any,
    hashes: Any,
    labels: Any,
    *,
    class_names: Sequence[str],
    alike: np.ndarray | None = None,
    largest: int | None = None,
) -> np.ndarray:
    """Groups (N,) in which copies are together, too: a copy in another fold would be seen in training.

    Copies are identical files, and near-duplicates: `alike` (N,) has the first row of those that look the same. These
    join groups as long as no more than `largest` rows are together; warns of those that do not, and of larger groups.
    """
    labels, rows, copied = np.asarray(labels), np.arange(len(hashes)), first_equal(hashes)
    grouped = np.where(arrow_compute().equal(groups, ""), rows, first_equal(groups))
    alike = rows if alike is None else alike
    _warn_of_labels(labels, copied, alike, class_names=class_names)
    parent = rows.tolist()  # union-find
    for row in np.flatnonzero((copied != rows) | (grouped != rows)).tolist():
        for first in (int(copied[row]), int(grouped[row])):
            parent[_root(parent, row)] = _root(parent, first)
    _join_look_alikes(parent, alike, labels, largest=len(rows) if largest is None else largest)
    return np.array([_root(parent, row) for row in rows.tolist()]).astype(str)


def _root(parent: list[int], row: int) -> int:
    """The row that stands for a row's group."""
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


def _join_look_alikes(parent: list[int], alike: np.ndarray, labels: np.ndarray, *, largest: int) -> None:
    """Join the groups of rows (N,) with those of the first row that looks the same, up to a number of rows.

    Classes take turns in proportion to their rows, for a group of one class alone would leave folds of unequal size.
    """
    sizes, apart = np.bincount([_root(parent, row) for row in range(len(parent))], minlength=len(parent)), 0
    if sizes.max(initial=0) > largest:
        warn(
            f"folds: one group of images or of identical files has {sizes.max()} of {len(parent)} images, and a fold "
            f"{largest}; folds will differ in size, unless folds.group names smaller groups"
        )
    joining = np.flatnonzero(alike != np.arange(len(alike)))
    joining = joining[np.argsort(labels[joining], kind="stable")]
    counts = np.unique(labels[joining], return_counts=True)[1]
    turns = np.concatenate([np.empty(0), *(np.arange(count) / count for count in counts)])
    for row in joining[np.argsort(turns, kind="stable")].tolist():
        one, other = _root(parent, row), _root(parent, int(alike[row]))
        if one == other:
            continue
        if sizes[one] + sizes[other] > largest:
            apart += 1
            continue
        parent[one] = other
        sizes[other] += sizes[one]
    if apart:
        warn(
            f"folds: {apart} images may be in another fold than one that looks the same, for all that look the same "
            f"would be more than a fold's {largest}; folds.group keeps a series or a place together"
        )


def _warn_of_labels(labels: np.ndarray, copied: np.ndarray, alike: np.ndarray, *, class_names: Sequence[str]) -> None:
    """Warn of rows (N,) whose label differs from that of the first row with the same file, or that looks the same."""

    def example(differ: np.ndarray, first: np.ndarray) -> str:
        row = int(differ.argmax())
        return f"such as one in {class_names[int(labels[first[row]])]} and {class_names[int(labels[row])]}"

    if (differ := labels[copied] != labels).any():
        warn(f"images.train: {differ.sum()} files are copies of one with another label, {example(differ, copied)}")
    if (differ := (labels[alike] != labels) & (labels[copied] == labels)).any():
        warn(f"images.train: {differ.sum()} images may be copies of one with another label, {example(differ, alike)}")


def first_equal(values: Any) -> np.ndarray:
    """For each row (N,) the first row that has the same value."""
    pc = arrow_compute()
    _, first, same = np.unique(pc.index_in(values, pc.unique(values)), return_index=True, return_inverse=True)
    return first[same]


def write_folds(run: Path, folds: FoldTable) -> None:
    """Write the fold file of a run's folder: the rows as columns, all else as JSON in the schema's metadata."""
    head = {"count": folds.count, "seed": folds.seed, "fingerprint": folds.fingerprint, "names": folds.class_names}
    text = json.dumps({**head, "bad": folds.bad, "repeats": len(folds.partitions)})
    write_table(run / FOLDS_FILE, folds.table.replace_schema_metadata({HEAD: text}))


def find_folds_file(run: Path) -> Path | None:
    """The fold file of a run's folder, if it has one; earlier versions wrote JSON."""
    return next((path for name in (FOLDS_FILE, OLD_FOLDS_FILE) if (path := run / name).exists()), None)


def read_folds(run: Path) -> FoldTable:
    """The folds of a run's folder, memory-mapped; raises BrokenError where there is no fold file, or a damaged one."""
    path = find_folds_file(run) or run / FOLDS_FILE
    try:
        head, table = _read_json(path) if path.suffix == ".json" else _map_arrow(path)
        _check_head(head)
        _check_rows(head, table)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokenError(
            f"{path}: cannot be read as a fold file ({reason}); restore it from a copy of the run"
        ) from error
    return FoldTable(
        count=head["count"],
        seed=head["seed"],
        class_names=tuple(head["names"]),
        fingerprint=head["fingerprint"],
        ids=table["id"],
        labels=table["label"].to_numpy(),
        partitions=tuple(column.to_numpy() for column in table.columns[2:-1]),
        hashes=table["hash"],
        bad=head["bad"],
    )


def _map_arrow(path: Path) -> tuple[dict[str, Any], "pa.Table"]:
    table = map_table(path)
    table.validate(full=True)  # a stranger's may say anything, and be sealed
    return json.loads(table.schema.metadata[HEAD]), table


def _read_json(path: Path) -> tuple[dict[str, Any], "pa.Table"]:
    """A fold file of an earlier version: all in one JSON, whose last key is the hash of the text before it."""
    text = path.read_text(encoding="utf-8")
    head = json.loads(text)
    sealed = text.rpartition(',\n "sha256": ')[0]
    # guard: json-fold-hash
    if "sha256" in head and head["sha256"] != hashlib.sha256(sealed.encode()).hexdigest():  # the first ones have none
        raise ValueError("its content is not what its hash names")
    ids, labels, *partitions, hashes = columns = list(zip(*head["rows"], strict=True))
    if [set(map(type, column)) for column in columns] != [{str}, *[{int}] * (1 + len(partitions)), {str}]:
        raise ValueError(WRONG_ROWS)
    return head, _as_table(ids, labels, partitions, hashes=hashes)


def _as_table(ids: Any, labels: Any, partitions: Sequence[Any], *, hashes: Any) -> "pa.Table":
    """Columns of rows; folds take a byte each, for recipe.py allows no more than 100 of them."""
    import pyarrow as pa

    names = ("fold", *(f"repeat_{repeat}" for repeat in range(1, len(partitions))))
    folds = {name: pa.array(fold, pa.int8()) for name, fold in zip(names, partitions, strict=True)}
    return pa.table({"id": ids, "label": pa.array(labels, pa.int64()), **folds, "hash": hashes})


def _check_head(head: Any) -> None:
    """Raises ValueError where a value is not of the type that write_folds writes."""
    names, repeats = head["names"], head.get("repeats", 1)
    if {type(head["count"]), type(head["seed"]), type(repeats)} != {int} or type(head["fingerprint"]) is not str:
        raise ValueError("count, seed, repeats or fingerprint is of another type")
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, and at least 1")
    if type(names) is not list or {type(name) for name in names} != {str} or type(head["bad"]) is not dict:
        raise ValueError("names or bad is of another type")


def _check_rows(head: dict[str, Any], table: "pa.Table") -> None:
    """Raises ValueError where the rows are not such as write_folds writes."""
    pc, repeats = arrow_compute(), len(table.columns) - 3
    if repeats != head.get("repeats", 1) or not len(table) or any(column.null_count for column in table.columns):
        raise ValueError(WRONG_ROWS)
    if not table.schema.equals(_as_table([""], [0], [[0]] * repeats, hashes=[""]).schema):
        raise ValueError("a column has another name or type")
    labels, *partitions = (pc.min_max(column).as_py() for column in table.columns[1:-1])
    known = all(fold["min"] >= -1 and fold["max"] < head["count"] for fold in partitions)
    if not (known and labels["min"] >= 0 and labels["max"] < len(head["names"])):
        raise ValueError("a row has a label or fold that does not exist")
    ids = table["id"]
    if not pc.all(pc.less(ids[:-1], ids[1:])).as_py() and len(pc.unique(ids)) < len(ids):
        raise ValueError("two rows have one id")


def folds_hash(folds: FoldTable) -> str:
    """Hash of the partitions: the data's fingerprint and each row's folds; equal for members that may be combined."""
    digest = hashlib.sha256(f"{json.dumps([folds.fingerprint, folds.count])[:-1]}, [".encode())
    for number, rows in enumerate(iterate_rows(folds.table.drop_columns(["label", "hash"]).sort_by("id"))):
        digest.update(((", " if number else "") + json.dumps(rows)[1:-1]).encode())
    digest.update(b"]]")
    return digest.hexdigest()
