"""Tables with a row for each image, memory-mapped from datasets' cache: the system may drop their pages at need."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from creature.errors import UserError
from creature.storage import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

PIECE = 10_000  # rows that are Python objects at a time
PIECE_BYTES = 2**20


def store_table(table: "pa.Table", name: str = "") -> Path:
    """The table as a file in the cache, under its name there; without one, under a hash of its content.

    Raises UserError where the cache cannot be written.
    """
    from pyarrow import OSFile, ipc

    path = _path(name or _content(table))
    if _is_whole(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as part:
            with OSFile(str(part), "wb") as file, ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table.combine_chunks())
            with part.open("rb+") as file:  # behind the stream's end, where no reader looks
                digest = hashlib.file_digest(file, _digest).digest()
                file.write(digest)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{path.parent}: cannot be written: {reason}; name another folder in HF_DATASETS_CACHE"
        ) from error
    return path


def stored_table(name: str) -> "pa.Table | None":
    """The table of that name, if there is one that is as it was written."""
    from pyarrow import ipc, memory_map

    path = _path(name)
    return ipc.open_stream(memory_map(str(path))).read_all() if _is_whole(path) else None


def _is_whole(path: Path) -> bool:
    """Whether a file is there and ends with the digest of all before; a cache may rot, and folds rest on it."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        size = path.stat().st_size - _digest().digest_size
        digest = _digest()
        for start in range(0, size, PIECE_BYTES):
            digest.update(file.read(min(PIECE_BYTES, size - start)))
        return file.read() == digest.digest()


def _digest() -> Any:
    return hashlib.blake2b(digest_size=16)


def _path(name: str) -> Path:
    """Beside the tables that datasets makes of Parquet."""
    from datasets import config

    return Path(os.path.realpath(config.HF_DATASETS_CACHE), "creature", f"{name}.arrow")


def _content(table: "pa.Table") -> str:
    digest = hashlib.blake2b(str(table.schema).encode(), digest_size=16)
    for column in table.columns:
        for chunk in column.chunks:
            digest.update(repr((chunk.offset, len(chunk))).encode())
            for buffer in filter(None, chunk.buffers()):
                digest.update(buffer)
    return digest.hexdigest()


def rows_of(table: "pa.Table") -> Iterator[list[tuple[Any, ...]]]:
    """The rows of a table as Python objects, a piece at a time."""
    for piece in table.to_batches(PIECE):
        yield list(zip(*(column.to_pylist() for column in piece.columns), strict=True))


def compute() -> Any:
    """pyarrow.compute: imported when needed, and of any type, for its functions are made where no checker sees them."""
    import pyarrow.compute

    return pyarrow.compute
