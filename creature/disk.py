"""Writing to disk: whole files or none, on disk before anything rests on them, and errors in one sentence."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from creature.terminal import UserError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name for the block to write to; it becomes `path` at the end, or is gone where the block fails."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    try:
        yield part
        sync(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text so that a reader sees all of it or what was there before."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees all of it or what was there before."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def sync(path: Path) -> None:
    """Have a file or folder on disk before going on."""
    if os.name != "posix" and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explaining(folder: Path) -> Iterator[None]:
    """Say an error of the disk within the block (full, over quota, read-only, not allowed) in one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(
            f"{error.filename or folder}: {os.strerror(error.errno)}; what was saved in {folder} before is kept; mend "
            "that, and --resume goes on"
        ) from None
