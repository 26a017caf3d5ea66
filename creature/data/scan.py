"""The check of every image before the first step, and the index of checked ones, which need not be read again. N rows.

As in git's index, a file with the same size, times and inode holds what it held; one so young that a change within the
same tick of its clock would leave no trace is read again.
"""

import hashlib
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from creature.console import progress, warn
from creature.data.arrow_tables import arrow_compute, store_table, stored_table
from creature.data.decode import BadImage, content_hash, decode, read
from creature.data.eval_transform import EvalTransform
from creature.data.image_cache import CachedImages, ImageCache, open_cache, should_cache
from creature.data.likeness import SHAPE, read_detail
from creature.data.sketches import LENGTH, sketch
from creature.data.workers import load_batches, note_decoding
from creature.device import usable_cores
from creature.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

TICK = 2 * 10**9  # nanoseconds of the coarsest clock of a file system, FAT's
ROWS_AT_ONCE = 16  # that a worker process checks


@dataclass(frozen=True)
class Scan:
    """What is known of a data set's images."""

    table: pa.Table  # (N,): `hash` of the content and, of content whose folds are to be drawn, `sketch`
    bad: dict[int, str]  # row -> why it cannot be decoded
    cache: ImageCache | None  # of all other rows, where one is wanted


def scan_images(
    dataset: "Dataset", known: pa.ChunkedArray | None, title: str, *, kind: str, transform: EvalTransform
) -> Scan:
    """Hash, sketch and faults of each row, and a cache of the good ones where `kind` (images.cache) wants one.

    They are the index's, or else every image is read and decoded: by the cache where there is one, which leaves only
    hashes to the check. Content whose hash is in `known` was decoded before, and gets no sketch, for its folds are
    drawn. Only data without a bad row is in the index: an image's fault may be mended without a trace in its file.
    """
    state, caching = state_of_files(dataset), should_cache(kind, transform, len(dataset))
    sketched = f"{state}-sketched-{LENGTH}"  # an older version's sketches have another length
    table = stored_table(sketched) if state else None
    if state and table is None and known is not None:
        table = stored_table(state)
    bad: dict[int, str] = {}
    cache = sketches = None
    if table is None:
        sketches = np.zeros((len(dataset), LENGTH), np.uint8) if known is None else None
        decoded = frozenset(() if known is None else known.to_pylist())
        hashes, bad = check_images(dataset, decoded, title, hash_only=caching, sketches=sketches)
        table = pa.table({"hash": hashes})
    if caching:
        hashes = table["hash"].to_pylist()
        rows = [row for row in range(len(hashes)) if row not in bad]
        cache = open_cache(kind, dataset, hashes, rows=rows, transform=transform, title=title)
        bad |= {row: cache.index.bad[content] for row, content in enumerate(hashes) if content in cache.index.bad}
        if sketches is not None:
            _sketch_copies(cache, hashes, bad, sketches=sketches)
    if sketches is not None:
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(LENGTH), len(sketches), [None, pa.py_buffer(sketches)])
        table = table.append_column("sketch", column)
    if state and not bad:  # guard: index-of-good
        store_table(table, sketched if "sketch" in table.column_names else state)
    return Scan(table, dict(sorted(bad.items())), cache)


def _sketch_copies(cache: ImageCache, hashes: Sequence[str], bad: Collection[int], *, sketches: np.ndarray) -> None:
    """Fill in the sketches (N, 384) of the good rows, from their copies in the cache."""
    good = [row for row in range(len(sketches)) if row not in bad]
    copies = CachedImages(cache, [hashes[row] for row in good], views=False)
    for place, row in enumerate(good):
        sketches[row] = np.frombuffer(sketch(copies[place].image()), np.uint8)


def sketches_of(table: pa.Table) -> np.ndarray:
    """The column `sketch` as (N, 384), mapped as it lies in the file."""
    column = table["sketch"].combine_chunks()
    levels = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, LENGTH)
    return levels[column.offset : column.offset + len(column)]


def state_of_files(dataset: "Dataset") -> str:
    """A name for the present state of all files that hold the images; empty where a change of it might not show."""
    from datasets import config

    pc = arrow_compute()
    tables = [file["filename"] for file in dataset.cache_files]
    images = dataset.data.column("image")
    paths = pc.struct_field(images, "path").filter(pc.is_null(pc.struct_field(images, "bytes"))).to_pylist()
    written_once = os.path.realpath(config.HF_DATASETS_CACHE) + os.sep
    digest, old = hashlib.blake2b(digest_size=16), time.time_ns() - TICK
    try:
        for path in chain(tables, paths):
            s = os.stat(path)
            # guard: index-key
            digest.update(f"{path}\n{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_dev} {s.st_ino}\n".encode())
            if max(s.st_mtime_ns, s.st_ctime_ns) > old and not path.startswith(written_once):  # guard: young-file
                return ""
    except (OSError, ValueError):  # a ValueError is a NUL in the path
        return ""
    return digest.hexdigest()


class Details:
    """Images of a data set, read once more for a close look (likeness.Details)."""

    def __init__(self, dataset: "Dataset"):
        self.dataset = dataset

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Levels (n, 64, 64, 3) and sides (n,) of some rows; raises BrokenError for one that has changed."""
        batches = [rows[start : start + ROWS_AT_ONCE].tolist() for start in range(0, len(rows), ROWS_AT_ONCE)]
        levels, sides = np.empty((len(rows), *SHAPE), np.uint8), np.empty(len(rows), np.int64)
        with load_batches(self, batches, min(usable_cores(), len(batches) // 8)) as loaded:
            for place, (image, side) in enumerate(chain.from_iterable(loaded)):
                levels[place], sides[place] = np.frombuffer(image, np.uint8).reshape(SHAPE), side
        return levels, sides

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[bytes, int]]:
        return [self._detail(row) for row in rows]

    def _detail(self, row: int) -> tuple[bytes, int]:
        note_decoding(row)
        return read_detail(self.dataset[row]["id"], self.dataset[row]["image"])


class CheckedImage(NamedTuple):
    """One row's outcome."""

    content: str  # hash
    fault: str | None  # why it cannot be decoded
    sketch: bytes  # empty where it was not decoded


class _Checker:
    """Rows as CheckedImage; content that is `known` is only hashed, or all content where `hash_only`."""

    def __init__(self, dataset: "Dataset", known: Collection[str], hash_only: bool):
        self.dataset, self.known, self.hash_only = dataset, known, hash_only

    def __getitems__(self, rows: Sequence[int]) -> list[CheckedImage]:
        return [self._check(row) for row in rows]

    def _check(self, row: int) -> CheckedImage:
        note_decoding(row)  # guard: name-in-scan
        try:
            data = read(self.dataset[row]["image"])
        except BadImage as reason:
            unique = hashlib.blake2b(f"unreadable {row}".encode(), digest_size=16).hexdigest()
            return CheckedImage(unique, str(reason), b"")
        content = content_hash(data)
        if self.hash_only or content in self.known:
            return CheckedImage(content, None, b"")
        try:
            return CheckedImage(content, None, sketch(decode(data)))
        except BadImage as reason:
            return CheckedImage(content, str(reason), b"")


def check_images(
    dataset: "Dataset",
    known: Collection[str],
    title: str,
    *,
    hash_only: bool = False,
    sketches: np.ndarray | None = None,
) -> tuple[list[str], dict[int, str]]:
    """Read every image once, in parallel: content hashes (N,), and the fault of each row that cannot be decoded.

    Content whose hash is in `known` was decoded before and is only hashed; so is all content where `hash_only`. Of the
    rows that are decoded, `sketches` (N, 384) is filled. Raises BrokenError for an image that the decoder dies of.
    """
    rows, size = range(len(dataset)), ROWS_AT_ONCE
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    checker, hashes, bad = _Checker(dataset, known, hash_only), [], {}
    with progress() as bar, load_batches(checker, batches, min(usable_cores(), len(batches))) as checked:
        task = bar.add_task(f"{title}: checking", total=len(dataset), speed="")
        for images in checked:
            for image in images:
                if image.fault is not None:
                    bad[len(hashes)] = image.fault
                if image.sketch and sketches is not None:
                    sketches[len(hashes)] = np.frombuffer(image.sketch, np.uint8)
                hashes.append(image.content)
            bar.update(task, completed=len(hashes), speed=f"{bar.tasks[task].speed or 0:.0f}")
    return hashes, bad


def refuse_bad(dataset: "Dataset", bad: dict[int, str], max_bad: int | None, *, field: str) -> None:
    """List the images that cannot be decoded; raises UserError when they are more than the limit."""
    if not bad:
        return
    limit = max(3, len(dataset) // 100) if max_bad is None else max_bad
    shown = [f"{dataset[row]['id']}: {reason}" for row, reason in list(bad.items())[:20]]
    more = [f"and {len(bad) - 20} more"] if len(bad) > 20 else []
    listing = "\n  ".join([f"{field}: {len(bad)} of {len(dataset)} images cannot be decoded", *shown, *more])
    if len(bad) > limit:  # guard: too-many-bad
        raise UserError(
            f"{listing}\nimages.max_bad allows {limit}; remove or mend the files, or set images.max_bad={len(bad)}"
        )
    warn(f"{listing}\nthey are left out (images.max_bad allows {limit}), and noted in the run's folds.arrow")
