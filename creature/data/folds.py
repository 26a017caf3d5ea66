"""Stratified, grouped folds, and the fold file that every process and machine of a run shares.

N rows, K folds, R repeats. The rows are parted into K folds R times, for R * K members: member `fold` holds out those
of fold `fold % K` of partition `fold // K`, and is trained on all others. Fold -1: trained on by all.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from creature.console import warn
from creature.data.mapped_tables import PIECE, compute, rows_of, store_table, stored_table
from creature.errors import UserError
from creature.storage import file_hash, write_atomically

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class FoldTable:
    """Who holds out what: the rows of a run's labelled data, by id; `folds.json` on disk."""

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
        return _as_table(self.ids, self.labels, self.partitions, self.hashes)

    def held_out(self, fold: int) -> np.ndarray:
        """Which rows (N,) a member holds out."""
        return self.partitions[fold // self.count] == fold % self.count


def assign_folds(
    labels: np.ndarray, groups: Sequence[str] | np.ndarray, count: int, seed: int, repeat: int = 0
) -> np.ndarray:
    """A fold for each row (N,): groups stay together, each class is spread evenly, sizes differ little.

    Greedy: groups from the largest to the smallest, ties in random order, each to the fold that holds the least of
    its classes. Without groups this is stratified K-fold, and a class rarer than K is spread over some folds. A repeat
    takes groups of half to twice a size for ties: by their exact sizes it would draw the same folds again.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    sizes, totals = np.bincount(group), np.bincount(labels)
    if len(sizes) < count:
        raise UserError(
            f"folds.count: {count} folds need as many groups of images, there are {len(sizes)}; set a smaller one"
        )
    pairs, n = np.unique(group * len(totals) + labels, return_counts=True)  # each group's classes, and rows of each
    cuts = np.searchsorted(pairs, np.arange(len(sizes) + 1) * len(totals)).tolist()
    classes, share = pairs % len(totals), n / totals[pairs % len(totals)]
    shuffled = np.random.default_rng([seed, repeat] if repeat else seed).permutation(len(sizes))
    size = np.log2(sizes).astype(int) if repeat else sizes
    order = shuffled[np.argsort(-size[shuffled], kind="stable")]
    held, rows = np.zeros((count, len(totals))), np.zeros(count)  # rows of each class in each fold, and in all
    chosen = np.empty(len(sizes), dtype=np.int64)
    for g in order.tolist():
        own = slice(cuts[g], cuts[g + 1])
        crowding = (held[:, classes[own]] * share[own]).sum(1) + rows / len(labels) / 100
        chosen[g] = fold = crowding.argmin()
        held[fold, classes[own]] += n[own]
        rows[fold] += sizes[g]
    return chosen[group]


def group_copies(
    groups: Any, hashes: Any, labels: Any, names: Sequence[str], alike: np.ndarray | None = None
) -> np.ndarray:
    """Groups (N,) in which copies are together, too: a copy in another fold would be seen in training.

    Copies are identical files, and near-duplicates: `alike` (N,) has the first row of those that look the same.
    """
    labels, rows, copied = np.asarray(labels), np.arange(len(hashes)), _first(hashes)
    if (conflicts := labels[copied] != labels).any():
        row = conflicts.argmax()
        pair = f"{names[labels[copied[row]]]} and {names[labels[row]]}"
        warn(f"images.train: {conflicts.sum()} files are copies of one with another label, such as one in {pair}")
    grouped = np.where(compute().equal(groups, ""), rows, _first(groups))
    parent = rows.tolist()

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    alike = rows if alike is None else alike
    if (differ := (labels[alike] != labels) & (labels[copied] == labels)).any():
        row = differ.argmax()
        pair = f"{names[labels[alike[row]]]} and {names[labels[row]]}"
        warn(f"images.train: {differ.sum()} images look as one with another label does, such as one in {pair}")
    for row in np.flatnonzero((copied != rows) | (grouped != rows) | (alike != rows)).tolist():
        for first in (int(copied[row]), int(grouped[row]), int(alike[row])):
            parent[root(row)] = root(first)
    return np.array([root(row) for row in rows.tolist()]).astype(str)


def _first(values: Any) -> np.ndarray:
    """For each row (N,) the first row that has the same value."""
    pc = compute()
    _, first, same = np.unique(pc.index_in(values, pc.unique(values)), return_index=True, return_inverse=True)
    return first[same]


def _head(folds: FoldTable) -> dict[str, Any]:
    repeats = {"repeats": len(folds.partitions)} if len(folds.partitions) > 1 else {}  # what has none says nothing
    head = {"count": folds.count, "seed": folds.seed, "fingerprint": folds.fingerprint, "names": folds.class_names}
    return {**head, "bad": folds.bad, **repeats}


def write_folds(path: Path, folds: FoldTable) -> None:
    """Write the fold file, one row a line, under a temporary name first; its last line is the hash of all before."""
    digest = hashlib.sha256()
    with write_atomically(path) as part, part.open("w", encoding="utf-8") as file:

        def write(text: str) -> None:
            digest.update(text.encode())
            file.write(text)

        table = folds.table
        write(json.dumps(_head(folds), indent=1)[:-2] + f',\n "columns": {json.dumps(table.column_names)},\n{_ROWS}')
        for number, rows in enumerate(rows_of(table)):
            write((",\n" if number else "") + ",\n".join(map(json.dumps, rows)))
        write("\n]")
        file.write(f'{_SEAL}"{digest.hexdigest()}"}}\n')


_ROWS = ' "rows": [\n'
_SEAL = ',\n "sha256": '


def read_folds(path: Path) -> FoldTable:
    """Read a fold file; raises UserError where it is damaged."""
    import pyarrow as pa

    try:
        text = path.read_text(encoding="utf-8")
        head, pieces = _parse(text)
        _check_head(head)
        table = pa.concat_tables([_table(rows, head) for rows in pieces])
        if "sha256" in head and head["sha256"] != _hash(text.rpartition(_SEAL)[0]):  # older runs have none
            raise ValueError("its content is not what its hash names")
        if len(table["id"].unique()) < len(table):
            raise ValueError("two rows have one id")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"{path}: cannot be read as a fold file ({reason}); restore it from a copy of the run"
        ) from error
    return _fold_file(head, table)


def map_folds(path: Path) -> FoldTable:
    """The fold file with its rows memory-mapped from the cache; it is parsed once, and then known by its hash."""
    name = file_hash(path)
    if (table := stored_table(name)) is None:
        folds = read_folds(path)
        store_table(folds.table.replace_schema_metadata({"head": json.dumps(_head(folds))}), name)
        return map_folds(path)
    return _fold_file(json.loads(table.schema.metadata[b"head"]), table)


def _fold_file(head: dict[str, Any], table: "pa.Table") -> FoldTable:
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


def _parse(text: str) -> tuple[dict[str, Any], Iterator[Any]]:
    """The JSON without its rows, and these a piece at a time; all at once where they are not one a line."""
    before, mark, lines = text.partition(_ROWS)
    lines, end, after = lines.rpartition("\n]")
    if not end:
        head = json.loads(text)
        return head, iter([head["rows"]])
    return json.loads(before + mark + end + after), (json.loads(f"[{piece}]") for piece in _pieces(lines))


def _pieces(lines: str) -> Iterator[str]:
    start = 0
    while start < len(lines):
        end = lines.find(",\n[", start + 100 * PIECE)  # no JSON string has a line break
        end = len(lines) if end < 0 else end
        yield lines[start:end]
        start = end + 1


def _table(rows: Any, head: dict[str, Any]) -> "pa.Table":
    """Rows as columns; raises ValueError where they are not what write_folds writes."""
    repeats, wrong = head.get("repeats", 1), "a row is not id, label, fold, hash, or lacks the fold of a repeat"
    if type(rows) is not list or {type(row) for row in rows} != {list} or {len(row) for row in rows} != {3 + repeats}:
        raise ValueError(wrong)
    ids, labels, *partitions, hashes = columns = list(zip(*rows, strict=True))
    if [set(map(type, column)) for column in columns] != [{str}, *[{int}] * (1 + repeats), {str}]:
        raise ValueError(wrong)
    known = all(min(fold) >= -1 and max(fold) < head["count"] for fold in partitions)
    if not (known and min(labels) >= 0 and max(labels) < len(head["names"])):
        raise ValueError("a row has a label or fold that does not exist")
    return _as_table(ids, labels, partitions, hashes)


def _as_table(ids: Any, labels: Any, partitions: Sequence[Any], hashes: Any) -> "pa.Table":
    """Columns of rows; folds take a byte each, for recipe.py allows no more than 100 of them."""
    import pyarrow as pa

    names = ("fold", *(f"repeat_{repeat}" for repeat in range(1, len(partitions))))
    folds = {name: pa.array(fold, pa.int8()) for name, fold in zip(names, partitions, strict=True)}
    return pa.table({"id": ids, "label": labels, **folds, "hash": hashes})


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_head(data: Any) -> None:
    """Raises ValueError where JSON is not what write_folds writes."""
    names, repeats = data["names"], data.get("repeats", 1)
    if {type(data["count"]), type(data["seed"]), type(repeats)} != {int} or type(data["fingerprint"]) is not str:
        raise ValueError("count, seed, repeats or fingerprint is of another type")
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, and at least 1")
    if type(names) is not list or {type(name) for name in names} != {str} or type(data["bad"]) is not dict:
        raise ValueError("names or bad is of another type")


def folds_hash(folds: FoldTable) -> str:
    """Hash of the partitions: the data's fingerprint and each row's folds; equal for members that may be combined."""
    digest = hashlib.sha256(f"{json.dumps([folds.fingerprint, folds.count])[:-1]}, [".encode())
    for number, rows in enumerate(rows_of(folds.table.drop_columns(["label", "hash"]).sort_by("id"))):
        digest.update(((", " if number else "") + json.dumps(rows)[1:-1]).encode())
    digest.update(b"]]")
    return digest.hexdigest()
