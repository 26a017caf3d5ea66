"""Files that are on disk as a whole or not at all, manifests of hashes, and errors of the disk in a sentence."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from creature.errors import BrokenError


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary name for the block to write to; it becomes `path` at the end, or is gone where the block fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def readable_by_umask(path: Path) -> Iterator[None]:
    """Give a file that the block writes the mode of any new file; safetensors lets nobody but its owner read it."""
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


def write_refusal(folder: Path) -> str:
    """Why no file can be written into a folder, which is made if need be; empty where one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def write_text(path: Path, text: str) -> None:
    """Write a text so that a reader sees all of it or what was there before."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees all of it or what was there before."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, without a second copy on disk where the file system can."""
    with write_atomically(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def sync(path: Path) -> None:
    """Flush a file or folder from the system's memory to the disk."""
    if os.name != "posix" and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """All files of a folder and its subfolders, by their path in it with / between its parts."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def write_manifest(folder: Path) -> None:
    """List every file of a folder but the manifest itself, with its size and SHA-256, in manifest.json."""
    files = files_of(folder)
    files.pop("manifest.json", None)
    manifest = {name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for name, path in files.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def manifest_differences(folder: Path) -> list[str]:
    """A line for each file that is not as the folder's manifest.json says, or for the manifest; empty where all are."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return [f"manifest.json: cannot be read ({error})"]
    if not isinstance(manifest, dict) or not manifest:
        return ["manifest.json: names no files"]
    differences = ((name, _difference(folder, name, entry)) for name, entry in manifest.items())
    return [f"{name}: {difference}" for name, difference in differences if difference]


def _difference(folder: Path, name: str, entry: Any) -> str:
    """What is wrong with a file, given its entry in the manifest; empty where nothing is."""
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            return "lies outside of the folder"
        if not path.is_file():
            return "missing"
        if not isinstance(entry, dict) or path.stat().st_size != entry.get("bytes"):
            return "of another size"
        return "" if file_hash(path) == entry.get("sha256") else "of another content"  # guard: file-hash
    except (OSError, ValueError) as error:  # a name that no file can have, or no right to read
        return str(error)


@contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Raise BrokenError, with the way out, for an error of the disk within the block: full, over quota, read-only."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # guard: disk-full
            raise
        raise BrokenError(
            f"{error.filename or folder}: {os.strerror(error.errno)}; what was saved in {folder} before is kept; mend "
            "that, and --resume goes on"
        ) from error
