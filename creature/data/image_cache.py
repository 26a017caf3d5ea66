"""The cache: each image is decoded once, for all folds, epochs and runs. N rows, S side of the evaluation view.

Training crops are cut from a smaller copy, so pixels differ from those of the file; the evaluation view is kept as it
is, exact. One folder a set of images, named by what it holds; the least recently used give way.
"""

import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

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
from creature.storage import manifest_differences, sync, write_json, write_manifest

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 1
MARGIN = 8 / 7  # a copy's shorter side over the view's, as 256 is over 224
AUTO_BYTES = 16 * 2**30  # up to which `auto` keeps a cache: it depends on the data alone, as a run's pixels must
DISK_BYTES = 64 * 2**30  # of all caches together


def copy_side(transform: EvalTransform) -> int:
    """The shorter side of a copy from which training crops are cut, in pixels."""
    return round(transform.size * MARGIN)


def estimate_bytes(transform: EvalTransform, count: int) -> int:
    """Room for so many images, if their sides are as 3 to 2."""
    return count * 3 * (copy_side(transform) ** 2 * 3 // 2 + transform.size**2)


class ImageCache:
    """Images by the hash of their content, and why others cannot be decoded; each process maps the file itself."""

    def __init__(self, path: str, index: dict[str, Any]):
        self.path, self.index = path, index
        self.size: int = index["size"]
        self.bad: dict[str, str] = index["bad"]
        # (N, 5): offset in pixels, height and width of the copy, height and width of the image
        self.places = np.array(index["places"], dtype=np.int64).reshape(-1, 5)
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
        numbers = {content: number for number, content in enumerate(cache.index["contents"])}
        self.cache, self.views = cache, views
        self.numbers = np.array([numbers[content] for content in hashes])

    def __getitem__(self, row: int) -> Decoded:
        start, height, width, full_height, full_width = self.cache.places[self.numbers[row]]
        if self.views:
            start += height * width * 3
            height = width = full_height = full_width = self.cache.size
        pixels = self.cache.pixels[start : start + height * width * 3].reshape(height, width, 3)
        return Decoded((int(full_width), int(full_height)), pixels)


def should_cache(kind: str, transform: EvalTransform, count: int) -> bool:
    """Whether so many images are to be cached."""
    return kind in ("memory", "disk") or (kind == "auto" and estimate_bytes(transform, count) <= AUTO_BYTES)


def open_cache(
    kind: str, dataset: "Dataset", hashes: Sequence[str], rows: Sequence[int], transform: EvalTransform, title: str
) -> ImageCache:
    """The cache of the given rows, whose contents have these hashes: found, or made.

    Raises UserError where there is no room for it, and for an image that the decoder dies of.
    """
    first = dict(zip([hashes[row] for row in reversed(rows)], reversed(rows), strict=True))
    contents = dict(sorted(first.items()))  # a content's first row
    made = _Copies(dataset, transform)
    if kind == "memory":
        if not hasattr(os, "memfd_create"):
            raise UserError("images.cache: memory needs Linux, whose processes share it; set images.cache=disk")
        handle = os.memfd_create("creature")  # gone with the last process that maps it, however that ends
        with open(handle, "wb", closefd=False) as file:
            cache = ImageCache(f"/proc/{os.getpid()}/fd/{handle}", _fill(file, made, contents, title))
        weakref.finalize(cache, os.close, handle)
        return cache
    named = hashlib.sha256(json.dumps([FORMAT, copy_side(transform), PIL.__version__, *astuple(transform)]).encode())
    named.update("".join(contents).encode())
    folder = cache_home() / named.hexdigest()[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists() or not _is_whole(folder):
            _make_room(folder, estimate_bytes(transform, len(contents)))
            _write(folder, made, contents, title)
        os.utime(folder)
        return ImageCache(str(folder / "pixels"), json.loads((folder / "index.json").read_text()))


def describe_cache(kind: str, cache: ImageCache | None) -> str:
    """Where a run's cache is and how large, or why auto made none."""
    if cache is None:
        return f"none, for it might take more than {AUTO_BYTES / 2**30:.0f} GiB"
    place = "memory" if kind == "memory" else Path(cache.path).parent
    return f"{cache.pixels.nbytes / 2**20:.1f} MiB in {place}"


def cache_home() -> Path:
    """The folder of all caches: creature/ in XDG_CACHE_HOME, which is ~/.cache unless it is set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "creature"


def _is_whole(folder: Path) -> bool:
    wrong = manifest_differences(folder)
    if wrong:
        warn(f"{folder}: {wrong[0]}; this cache is made again")
        shutil.rmtree(folder)
    return not wrong


def _make_room(folder: Path, needed: int) -> None:
    """Delete caches, those used longest ago first, until there is room; what still uses one keeps its mapping."""
    home = folder.parent
    others = sorted((path for path in home.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    held = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
    for path in others:
        if sum(held.values()) + needed <= DISK_BYTES:
            break
        if path.name.lstrip(".") == folder.name:
            continue
        with suppress(Timeout), FileLock(home / f"{path.name.lstrip('.')}.lock", timeout=0):  # or it is being made
            shutil.rmtree(path)
            del held[path]
    free = shutil.disk_usage(home).free
    if needed > free:
        raise UserError(
            f"images.cache: {home} needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free; make room, set "
            "XDG_CACHE_HOME to a folder on a larger disk, or images.cache=off"
        )


def _write(folder: Path, made: "_Copies", contents: dict[str, int], title: str) -> None:
    part = folder.with_name(f".{folder.name}")  # the lock is ours, so what is there is a dead process's
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    with open(part / "pixels", "wb") as file:
        write_json(part / "index.json", _fill(file, made, contents, title))
        file.flush()
        os.fsync(file.fileno())
    write_manifest(part)
    sync(part)
    os.rename(part, folder)


def _fill(file: BinaryIO, made: "_Copies", contents: dict[str, int], title: str) -> dict[str, Any]:
    """Write the pixels of each content, copy and view, one after another; gives the index."""
    names, rows = list(contents), list(contents.values())
    kept, places, bad, start = [], [], {}, 0
    pieces = [rows[at : at + 16] for at in range(0, len(rows), 16)]
    with progress() as bar, load_batches(made, pieces, min(usable_cores(), len(pieces))) as done:
        task = bar.add_task(f"{title}: decoding once", total=len(rows), speed="")
        for pixels, found in done:
            file.write(pixels.numpy().tobytes())
            for name, each in zip(names[len(kept) + len(bad) :], found, strict=False):
                if isinstance(each, str):
                    bad[name] = each
                    continue
                kept.append(name)
                places.append((start, *each))
                start += (each[0] * each[1] + made.transform.size**2) * 3
            bar.update(task, advance=len(found), speed=f"{bar.tasks[task].speed or 0:.0f}")
    file.flush()
    return {"contents": kept, "places": places, "size": made.transform.size, "bad": bad}


class _Copies:
    """Rows as the bytes that the cache keeps of them, and the sizes of each, or why it cannot be decoded."""

    def __init__(self, dataset: "Dataset", transform: EvalTransform):
        self.dataset, self.transform = dataset, transform

    def __getitems__(self, rows: Sequence[int]) -> tuple[torch.Tensor, list[tuple[int, ...] | str]]:
        pixels: list[torch.Tensor] = []
        found: list[tuple[int, ...] | str] = []
        for row in rows:
            note_decoding(row)
            try:
                whole = decode(read(self.dataset[row]["image"]))
            except BadImage as reason:
                found.append(str(reason))
                continue
            copy, view = _smaller(np.array(whole), copy_side(self.transform)), self.transform(whole)
            pixels += [copy.flatten(), torch.from_numpy(view).permute(1, 2, 0).flatten()]
            found.append((*copy.shape[:2], whole.height, whole.width))
        return torch.cat(pixels) if pixels else torch.zeros(0, dtype=torch.uint8), found


def _smaller(whole: np.ndarray, side: int) -> torch.Tensor:
    """(H, W, 3) with a shorter side of at most `side` pixels."""
    height, width = whole.shape[:2]
    pixels, shorter = torch.from_numpy(whole), min(height, width)
    if shorter <= side:
        return pixels
    size = (round(height * side / shorter), round(width * side / shorter))
    return interpolate(pixels.permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
