"""The cache: each image is decoded once, for all folds, epochs and runs. N rows or contents.

Training crops are cut from a smaller copy, so their pixels differ from those cut from the file; the evaluation view is
kept exactly. One folder a set of images, named by what it holds; the least recently used are removed for lack of room.
"""

import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from torch.nn.functional import interpolate

from creature.console import progress, warn
from creature.data.decode import BadImage, Decoded, decode, read
from creature.data.eval_transform import EvalTransform
from creature.data.workers import load_batches, note_decoding
from creature.device import usable_cores
from creature.errors import UserError
from creature.storage import manifest_differences, sync, write_json, write_manifest, write_refusal

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 1
MARGIN = 8 / 7  # a copy's shorter side over the view's, as 256 is over 224
AUTO_BYTES = 16 * 2**30  # up to which `auto` keeps a cache: it depends on the data alone, as a run's pixels must
DISK_BYTES = 64 * 2**30  # of all caches together
ROWS_AT_ONCE = 16  # that a worker process decodes


def copy_side(transform: EvalTransform) -> int:
    """The shorter side of a copy from which training crops are cut, in pixels."""
    return round(transform.size * MARGIN)


def estimate_bytes(transform: EvalTransform, count: int) -> int:
    """Room for so many images, if their sides are as 3 to 2."""
    return count * 3 * (copy_side(transform) ** 2 * 3 // 2 + transform.size**2)


class Copy(NamedTuple):
    """The sides of an image's copy in the cache, and those of the image, in pixels."""

    height: int
    width: int
    full_height: int
    full_width: int


@dataclass(frozen=True)
class CacheIndex:
    """What a cache holds: of each content its copy and then its evaluation view, one after another."""

    contents: list[str]  # hashes, (N,)
    places: list[Sequence[int]]  # (N, 5): offset in pixels, and the fields of Copy
    size: int  # side of the evaluation views
    bad: dict[str, str]  # content -> why it cannot be decoded


class ImageCache:
    """Images by the hash of their content, and why others cannot be decoded; each process maps the file itself."""

    def __init__(self, path: str, index: CacheIndex):
        self.path, self.index = path, index
        self.places = np.array(index.places, dtype=np.int64).reshape(-1, 1 + len(Copy._fields))
        try:
            self.pixels = np.memmap(path, np.uint8, "r") if len(self.places) else np.zeros(0, np.uint8)
        except FileNotFoundError as error:
            raise UserError(
                f"images.cache: {path} is not on this host; put XDG_CACHE_HOME on a file system that all hosts share, "
                "or set images.cache=off"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageCache, (self.path, self.index)


class CachedImages:
    """By row, what the cache holds of its image: the copies, or the evaluation views."""

    def __init__(self, cache: ImageCache, hashes: Sequence[str], views: bool):
        numbers = {content: number for number, content in enumerate(cache.index.contents)}
        self.cache, self.views = cache, views
        self.numbers = np.array([numbers[content] for content in hashes])

    def __getitem__(self, row: int) -> Decoded:
        start, *sides = self.cache.places[self.numbers[row]].tolist()
        copy = Copy(*sides)
        if self.views:
            size = self.cache.index.size
            start += copy.height * copy.width * 3
            copy = Copy(height=size, width=size, full_height=size, full_width=size)
        pixels = self.cache.pixels[start : start + copy.height * copy.width * 3]
        return Decoded((copy.full_width, copy.full_height), pixels.reshape(copy.height, copy.width, 3))


def should_cache(kind: str, transform: EvalTransform, count: int) -> bool:
    """Whether so many images are to be cached."""
    return kind in ("memory", "disk", "device") or (kind == "auto" and estimate_bytes(transform, count) <= AUTO_BYTES)


def open_cache(
    kind: str, dataset: "Dataset", hashes: Sequence[str], *, rows: Sequence[int], transform: EvalTransform, title: str
) -> ImageCache:
    """The cache of some rows of the data set, whose contents have these hashes (N,): the one on disk, or a new one.

    Raises UserError where there is no room for it, BrokenError for an image that the decoder dies of.
    """
    first = dict(zip([hashes[row] for row in reversed(rows)], reversed(rows), strict=True))
    contents = dict(sorted(first.items()))  # a content's first row
    source = _CopySource(dataset, transform)
    if kind == "memory":
        return _cache_in_memory(source, contents, title)
    folder = cache_home() / _cache_name(contents, transform)
    with FileLock(folder.with_suffix(".lock")):
        if folder.exists() and (differences := manifest_differences(folder)):  # guard: rotten-cache
            warn(f"{folder}: {differences[0]}; this cache is made again")
            shutil.rmtree(folder)
        if not folder.exists():
            _make_room(folder, estimate_bytes(transform, len(contents)))
            _write_folder(folder, source, contents, title=title)
        os.utime(folder)
        return ImageCache(str(folder / "pixels"), CacheIndex(**json.loads((folder / "index.json").read_text())))


def _cache_in_memory(source: "_CopySource", contents: dict[str, int], title: str) -> ImageCache:
    """A cache in a file without a name, which is gone with the last process that maps it, however that ends."""
    if not hasattr(os, "memfd_create"):
        raise UserError("images.cache: memory needs Linux, whose processes share it; set images.cache=disk")
    handle = os.memfd_create("creature")
    with open(handle, "wb", closefd=False) as file:
        cache = ImageCache(f"/proc/{os.getpid()}/fd/{handle}", _write_pixels(file, source, contents, title=title))
    weakref.finalize(cache, os.close, handle)
    return cache


def _cache_name(contents: Iterable[str], transform: EvalTransform) -> str:
    """A name for just these contents, decoded by this version of Pillow for this view."""
    settings = [FORMAT, copy_side(transform), PIL.__version__, *astuple(transform)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update("".join(contents).encode())
    return digest.hexdigest()[:32]


def describe_cache(kind: str, cache: ImageCache | None) -> str:
    """A sentence on where a run's cache is and how large, or why auto made none."""
    if cache is None:
        return f"none, for it might take more than {AUTO_BYTES / 2**30:.0f} GiB"
    place = "memory" if kind == "memory" else Path(cache.path).parent
    return f"{cache.pixels.nbytes / 2**20:.1f} MiB in {place}"


def cache_home() -> Path:
    """The folder of all caches, made if need be: creature/ in XDG_CACHE_HOME, which is ~/.cache unless it is set.

    Raises UserError where there is no such folder to write to.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "creature"
    reason = "the user has no home folder" if str(folder).startswith("~") else write_refusal(folder)
    if reason:
        raise UserError(
            f"images.cache: {folder}: {reason}; set XDG_CACHE_HOME to a folder that can be written to, or "
            "images.cache=off"
        )
    return folder


def _make_room(folder: Path, needed: int) -> None:
    """Delete caches, the least recently used first, until there is room; a process that uses one keeps its mapping."""
    home = folder.parent
    others = sorted((path for path in home.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
    for path in others:
        if sum(sizes.values()) + needed <= DISK_BYTES:
            break
        if path.name.lstrip(".") == folder.name:
            continue
        with suppress(Timeout), FileLock(home / f"{path.name.lstrip('.')}.lock", timeout=0):  # or it is being made
            shutil.rmtree(path)
            del sizes[path]
    free = shutil.disk_usage(home).free
    if needed > free:
        raise UserError(
            f"images.cache: {home} needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free; make room, set "
            "XDG_CACHE_HOME to a folder on a larger disk, or images.cache=off"
        )


def _write_folder(folder: Path, source: "_CopySource", contents: dict[str, int], *, title: str) -> None:
    temporary = folder.with_name(f".{folder.name}")  # the lock is ours, so what is there is a dead process's
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with open(temporary / "pixels", "wb") as file:
        write_json(temporary / "index.json", asdict(_write_pixels(file, source, contents, title=title)))
        file.flush()
        os.fsync(file.fileno())
    write_manifest(temporary)
    sync(temporary)
    os.rename(temporary, folder)


def _write_pixels(file: BinaryIO, source: "_CopySource", contents: dict[str, int], *, title: str) -> CacheIndex:
    """Write copy and view of each content, one after another."""
    index = CacheIndex(contents=[], places=[], size=source.transform.size, bad={})
    rows, left, start = list(contents.values()), iter(contents), 0
    batches = [rows[at : at + ROWS_AT_ONCE] for at in range(0, len(rows), ROWS_AT_ONCE)]
    with progress() as bar, load_batches(source, batches, min(usable_cores(), len(batches))) as loaded:
        task = bar.add_task(f"{title}: decoding once", total=len(rows), speed="")
        for pixels, copies in loaded:
            file.write(pixels.numpy().tobytes())
            for copy in copies:
                content = next(left)
                if isinstance(copy, str):
                    index.bad[content] = copy
                    continue
                index.contents.append(content)
                index.places.append((start, *copy))
                start += (copy.height * copy.width + index.size**2) * 3
            bar.update(task, advance=len(copies), speed=f"{bar.tasks[task].speed or 0:.0f}")
    file.flush()
    return index


class _CopySource:
    """Rows as the bytes that the cache keeps of them, and of each its Copy, or why it cannot be decoded."""

    def __init__(self, dataset: "Dataset", transform: EvalTransform):
        self.dataset, self.transform = dataset, transform

    def __getitems__(self, rows: Sequence[int]) -> tuple[torch.Tensor, list[Copy | str]]:
        pixels: list[torch.Tensor] = []
        copies: list[Copy | str] = []
        for row in rows:
            note_decoding(row)
            try:
                image = decode(read(self.dataset[row]["image"]))
            except BadImage as reason:
                copies.append(str(reason))
                continue
            copy, view = _shrink(np.array(image), copy_side(self.transform)), self.transform(image)
            pixels += [copy.flatten(), torch.from_numpy(view).permute(1, 2, 0).flatten()]
            copies.append(Copy(copy.shape[0], copy.shape[1], full_height=image.height, full_width=image.width))
        return torch.cat(pixels) if pixels else torch.zeros(0, dtype=torch.uint8), copies


def _shrink(array: np.ndarray, side: int) -> torch.Tensor:
    """An image (H, W, 3) with a shorter side of at most `side` pixels."""
    height, width = array.shape[:2]
    pixels, shorter = torch.from_numpy(array), min(height, width)
    if shorter <= side:
        return pixels
    size = (round(height * side / shorter), round(width * side / shorter))
    return interpolate(pixels.permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
