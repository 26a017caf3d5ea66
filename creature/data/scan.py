"""The index of images that were checked: they need not be read again until one of their files changes. N rows.

As in git's index, a file with the same size, times and inode holds what it held; one so young that a change within the
same tick of its clock would leave no trace is read again.
"""

import hashlib
import os
import time
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from creature.data.arrow_tables import arrow_compute, store_table, stored_table
from creature.data.checks import Everything, check_images
from creature.data.duplicates import LENGTH, sketch
from creature.data.eval_transform import EvalTransform
from creature.data.image_cache import CachedImages, ImageCache, open_cache, should_cache

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

TICK = 2 * 10**9  # nanoseconds of the coarsest clock of a file system, FAT's


def scan_images(
    dataset: "Dataset", known: "pa.ChunkedArray | None", title: str, kind: str, transform: EvalTransform
) -> "tuple[pa.Table, dict[int, str], ImageCache | None]":
    """Hash and sketch of each row, why rows cannot be decoded, and the cache of all others where `kind` wants one.

    They are the index's, or else check_images reads and decodes all; what a cache decodes is only hashed there. Content
    whose hash is in `known` was decoded before, and gets no sketch, for its folds are drawn. Only data without a bad
    row is in the index: what is wrong with an image may be mended without a trace in its file.
    """
    import pyarrow as pa

    name, caching = state_of_files(dataset), should_cache(kind, transform, len(dataset))
    places = [f"{name}-sketched", *([name] if known is not None else [])] if name else []
    table = next((found for place in places if (found := stored_table(place)) is not None), None)
    bad: dict[int, str] = {}
    cache, sketches = None, np.zeros((len(dataset) if table is None and known is None else 0, LENGTH), np.uint8)
    if table is None:
        decoded = Everything() if caching else frozenset(() if known is None else known.to_pylist())
        hashes, bad = check_images(dataset, decoded, title, sketches if len(sketches) else None)
        table = pa.table({"hash": hashes})
    if caching:
        hashes = table["hash"].to_pylist()
        cache = open_cache(
            kind, dataset, hashes, [row for row in range(len(hashes)) if row not in bad], transform, title
        )
        bad |= {row: cache.bad[content] for row, content in enumerate(hashes) if content in cache.bad}
        good = [row for row in range(len(sketches)) if row not in bad]
        copies = CachedImages(cache, [hashes[row] for row in good], views=False)
        for place, row in enumerate(good):
            sketches[row] = np.frombuffer(sketch(copies[place].image()), np.uint8)
    if len(sketches):
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(LENGTH), len(sketches), [None, pa.py_buffer(sketches)])
        table = table.append_column("sketch", column)
    if name and not bad:
        store_table(table, f"{name}-sketched" if "sketch" in table.column_names else name)
    return table, dict(sorted(bad.items())), cache


def sketches_of(table: "pa.Table") -> np.ndarray:
    """The column `sketch` as (N, 256), as it lies in the file."""
    column = table["sketch"].combine_chunks()
    levels = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, LENGTH)
    return levels[column.offset : column.offset + len(column)]


def state_of_files(dataset: "Dataset") -> str:
    """A name for the present state of all files that the images are in; none where a change of it might not show."""
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
            digest.update(f"{path}\n{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_dev} {s.st_ino}\n".encode())
            if max(s.st_mtime_ns, s.st_ctime_ns) > old and not path.startswith(written_once):
                return ""
    except (OSError, ValueError):  # a ValueError is a NUL in the path
        return ""
    return digest.hexdigest()
