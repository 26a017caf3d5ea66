"""Arrow tables in sealed files, memory-mapped: their pages are the system's, which may drop them at need.

A file is an Arrow stream and, behind its end, where no reader looks, a digest of it: what has rotted or was edited is
noticed. `datasets.Dataset.from_file` reads such files, too.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from creature.errors import UserError, first_line
from creature.storage import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 10_000  # that are Python objects


def write_table(path: Path, table: "pa.Table") -> None:
    """Write a table and its seal; a reader sees all of it, or what was there before."""
    from pyarrow import OSFile, ipc

    with write_atomically(path) as temporary:
        with OSFile(str(temporary), "wb") as file, ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        with temporary.open("rb+") as file:
            file.write(hashlib.file_digest(file, _digest).digest())


def map_table(path: Path) -> "pa.Table":
    """The table in a file, memory-mapped.

    Raises ValueError where it is not as it was written, OSError where it cannot be read.
    """
    from pyarrow import ArrowException, ipc, memory_map

    if (size := path.stat().st_size - _digest().digest_size) < 0:
        raise ValueError("it is cut off")
    data = memory_map(str(path)).read_buffer()
    digest = _digest()
    digest.update(data.slice(0, size))
    if data.slice(size).to_pybytes() != digest.digest():  # guard: sealed-table
        raise ValueError("its content is not what its seal names")
    try:
        return ipc.open_stream(data).read_all()
    except ArrowException as error:
        raise ValueError(first_line(error)) from error


def store_table(table: "pa.Table", name: str = "") -> Path:
    """The table as a file in the cache, under its name there; without one, under a hash of its content.

    Raises UserError where the cache cannot be written.
    """
    name = name or _content_hash(table)
    path = _cache_path(name)
    if stored_table(name) is not None:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, table)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{path.parent}: cannot be written: {reason}; name another folder in HF_DATASETS_CACHE"
        ) from error
    return path


def stored_table(name: str) -> "pa.Table | None":
    """The table of that name in the cache; None where there is none that is as it was written, for a cache may rot."""
    try:
        return map_table(_cache_path(name))
    except (OSError, ValueError):
        return None


def _digest() -> Any:
    return hashlib.blake2b(digest_size=16)


def _cache_path(name: str) -> Path:
    """Beside the tables that datasets makes of Parquet."""
    from datasets import config

    return Path(os.path.realpath(config.HF_DATASETS_CACHE), "creature", f"{name}.arrow")


def _content_hash(table: "pa.Table") -> str:
    digest = _digest()
    digest.update(str(table.schema).encode())
    for column in table.columns:
        for chunk in column.chunks:
            digest.update(repr((chunk.offset, len(chunk))).encode())
            for buffer in filter(None, chunk.buffers()):
                digest.update(buffer)
    return digest.hexdigest()


def iterate_rows(table: "pa.Table") -> Iterator[list[tuple[Any, ...]]]:
    """The rows of a table as Python objects, some thousands at a time."""
    for batch in table.to_batches(ROWS_AT_ONCE):
        yield list(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def arrow_compute() -> Any:
    """The module pyarrow.compute, imported when it is needed; type checkers do not see the functions that it makes."""
    import pyarrow.compute

    return pyarrow.compute
