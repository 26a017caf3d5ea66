"""Stratified, grouped folds, and the fold file that every process and machine of a run shares.

N rows, K folds. Row r is held out of fold `fold[r]` and trained on by all others; -1: trained on by all.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from creature.disk import file_hash, whole
from creature.images.mapped import PIECE, compute, keep, kept, rows_of
from creature.terminal import UserError, warn

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class FoldFile:
    """Who holds out what: the rows of a run's labelled data, by id; `folds.json` on disk."""

    count: int
    seed: int
    names: tuple[str, ...]
    fingerprint: str
    ids: "pa.ChunkedArray"  # (N,) strings, as are the hashes: Python's own would take 150 bytes a row
    labels: np.ndarray  # (N,)
    fold: np.ndarray  # (N,)
    hashes: "pa.ChunkedArray"
    bad: dict[str, str]  # id -> why it cannot be decoded; these rows are in no fold

    @property
    def table(self) -> "pa.Table":
        """The rows: id, label, fold, hash."""
        import pyarrow as pa

        return pa.table({"id": self.ids, "label": self.labels, "fold": self.fold, "hash": self.hashes})


def assign_folds(labels: np.ndarray, groups: Sequence[str] | np.ndarray, count: int, seed: int) -> np.ndarray:
    """A fold for each row (N,): groups stay together, each class is spread evenly, sizes differ little.

    Greedy: groups from the largest to the smallest, ties in random order, each to the fold that holds the least of
    its classes. Without groups this is stratified K-fold, and a class rarer than K is spread over some folds.
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
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    held, rows = np.zeros((count, len(totals))), np.zeros(count)  # rows of each class in each fold, and in all
    chosen = np.empty(len(sizes), dtype=np.int64)
    for g in order.tolist():
        own = slice(cuts[g], cuts[g + 1])
        crowding = (held[:, classes[own]] * share[own]).sum(1) + rows / len(labels) / 100
        chosen[g] = fold = crowding.argmin()
        held[fold, classes[own]] += n[own]
        rows[fold] += sizes[g]
    return chosen[group]


def together(
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
        warn(f"images.train: {differ.sum()} pictures look as one with another label does, such as one in {pair}")
    for row in np.flatnonzero((copied != rows) | (grouped != rows) | (alike != rows)).tolist():
        for first in (int(copied[row]), int(grouped[row]), int(alike[row])):
            parent[root(row)] = root(first)
    return np.array([root(row) for row in rows.tolist()]).astype(str)


def _first(values: Any) -> np.ndarray:
    """For each row (N,) the first row that has the same value."""
    pc = compute()
    _, first, same = np.unique(pc.index_in(values, pc.unique(values)), return_index=True, return_inverse=True)
    return first[same]


def _head(folds: FoldFile) -> dict[str, Any]:
    return {name: getattr(folds, name) for name in ("count", "seed", "fingerprint", "names", "bad")}


def write_folds(path: Path, folds: FoldFile) -> None:
    """Write the fold file, one row a line, under a temporary name first; its last line is the hash of all before."""
    digest = hashlib.sha256()
    with whole(path) as part, part.open("w", encoding="utf-8") as file:

        def write(text: str) -> None:
            digest.update(text.encode())
            file.write(text)

        write(json.dumps(_head(folds), indent=1)[:-2] + f',\n "columns": ["id", "label", "fold", "hash"],\n{_ROWS}')
        for number, rows in enumerate(rows_of(folds.table)):
            write((",\n" if number else "") + ",\n".join(map(json.dumps, rows)))
        write("\n]")
        file.write(f'{_SEAL}"{digest.hexdigest()}"}}\n')


_ROWS = ' "rows": [\n'
_SEAL = ',\n "sha256": '


def read_folds(path: Path) -> FoldFile:
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"{path}: cannot be read as a fold file ({reason}); restore it from a copy of the run"
        ) from None
    return _fold_file(head, table)


def map_folds(path: Path) -> FoldFile:
    """The fold file with its rows memory-mapped from the cache; it is parsed once, and then known by its hash."""
    name = file_hash(path)
    if (table := kept(name)) is None:
        folds = read_folds(path)
        keep(folds.table.replace_schema_metadata({"head": json.dumps(_head(folds))}), name)
        return map_folds(path)
    return _fold_file(json.loads(table.schema.metadata[b"head"]), table)


def _fold_file(head: dict[str, Any], table: "pa.Table") -> FoldFile:
    return FoldFile(
        count=head["count"],
        seed=head["seed"],
        names=tuple(head["names"]),
        fingerprint=head["fingerprint"],
        ids=table["id"],
        labels=table["label"].to_numpy(),
        fold=table["fold"].to_numpy(),
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
    import pyarrow as pa

    if type(rows) is not list or {type(row) for row in rows} != {list} or {len(row) for row in rows} != {4}:
        raise ValueError("a row is not id, label, fold, hash")
    ids, labels, fold, hashes = columns = list(zip(*rows, strict=True))
    if [set(map(type, column)) for column in columns] != [{str}, {int}, {int}, {str}]:
        raise ValueError("a row is not id, label, fold, hash")
    if not (min(labels) >= 0 and max(labels) < len(head["names"]) and min(fold) >= -1 and max(fold) < head["count"]):
        raise ValueError("a row has a label or fold that does not exist")
    return pa.table({"id": ids, "label": labels, "fold": fold, "hash": hashes})


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_head(data: Any) -> None:
    """Raises ValueError where JSON is not what write_folds writes."""
    names, count = data["names"], data["count"]
    if type(count) is not int or type(data["seed"]) is not int or type(data["fingerprint"]) is not str:
        raise ValueError("count, seed or fingerprint is of another type")
    if type(names) is not list or {type(name) for name in names} != {str} or type(data["bad"]) is not dict:
        raise ValueError("names or bad is of another type")


def folds_hash(folds: FoldFile) -> str:
    """Hash of the partition: the data's fingerprint and each row's fold; equal for members that may be combined."""
    digest = hashlib.sha256(f"{json.dumps([folds.fingerprint, folds.count])[:-1]}, [".encode())
    for number, rows in enumerate(rows_of(folds.table.select(["id", "fold"]).sort_by("id"))):
        digest.update(((", " if number else "") + json.dumps(rows)[1:-1]).encode())
    digest.update(b"]]")
    return digest.hexdigest()
