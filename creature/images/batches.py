"""Batches: which rows a step sees, and their pixels; both are pure functions of the seed, the epoch and the id.

N rows, B batch. Nothing here depends on the number of workers, so a run resumes from two integers: epoch and batch.
"""

import atexit
import hashlib
import multiprocessing
import os
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, get_worker_info

from creature.cores import usable_cores
from creature.images.decode import BadImage, decode, read
from creature.images.views import View
from creature.terminal import UserError

if TYPE_CHECKING:
    from datasets import Dataset


class Batch(NamedTuple):
    """Pictures with the rows that they came from; a picture that cannot be decoded keeps its place, black."""

    pixels: torch.Tensor  # uint8 (B, 3, H, W)
    labels: torch.Tensor  # (B,)
    rows: torch.Tensor  # (B,)
    ids: list[str]
    bad: dict[str, str]  # id -> reason


def seed_of(*parts: object) -> int:
    """A 63-bit seed from its parts: equal on every machine, unlike Python's own hash."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_batches(rows: np.ndarray, batch_size: int, *seed: object) -> list[np.ndarray]:
    """The rows of one epoch, shuffled by the seed and cut into batches; a last batch of one joins the one before it.

    BatchNorm has no statistics of a single picture, and dropping it would lose a row.
    """
    order = rows[np.random.default_rng(seed_of(*seed)).permutation(len(rows))]
    cuts = list(range(batch_size, len(order), batch_size))
    if cuts and len(order) - cuts[-1] == 1 and batch_size > 1:
        cuts.pop()
    return np.split(order, cuts)


def share_of(batch: np.ndarray, process: int, processes: int) -> np.ndarray:
    """The rows of a batch that one process sees; never none, for every process must take part in a step."""
    share = batch[process::processes]
    return share if len(share) else batch[:1]


class Pictures:
    """Rows of the table as batches; an item is (row, epoch), so that each epoch sees another random view."""

    def __init__(self, dataset: "Dataset", view: View, seed: int | None = None):
        self.dataset, self.view, self.seed = dataset, view, seed
        self.decoding = torch.zeros(0, 2, dtype=torch.int64)  # each worker's pid and row

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        rows = [row for row, _ in items]
        table = self.dataset[rows]
        # Threads only decode; a random view draws from torch's one generator, so the views are made one by one.
        if get_worker_info() is None and len(rows) > 1:
            with ThreadPoolExecutor(usable_cores()) as pool:
                decoded = list(pool.map(_try_decode, table["image"]))
        else:
            decoded = []
            for row, image in zip(rows, table["image"], strict=True):
                note(self.decoding, row)
                decoded.append(_try_decode(image))
        with torch.random.fork_rng(devices=[]):
            pixels = [
                self._see(picture, name, epoch)
                for picture, name, (_, epoch) in zip(decoded, table["id"], items, strict=True)
            ]
        return Batch(
            torch.stack(pixels),
            torch.tensor(table["label"]),
            torch.tensor(rows),
            table["id"],
            {
                name: str(reason)
                for name, reason in zip(table["id"], decoded, strict=True)
                if isinstance(reason, BadImage)
            },
        )

    def _see(self, picture: np.ndarray | BadImage, name: str, epoch: int) -> torch.Tensor:
        if self.seed is not None:
            torch.default_generator.manual_seed(seed_of(self.seed, epoch, name))
        if isinstance(picture, BadImage):
            picture = np.zeros((1, 1, 3), dtype=np.uint8)
        return torch.as_tensor(self.view(Image.fromarray(picture)))


def _try_decode(image: dict[str, Any]) -> np.ndarray | BadImage:
    try:
        return decode(read(image))
    except BadImage as reason:
        return reason


def load_batches(pictures: Any, batches: Iterable[Sequence[Any]], workers: int) -> Iterator[Any]:
    """What `pictures.__getitems__` makes of each batch of items, in order, prepared ahead by worker processes."""
    pictures.decoding = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()
    return iter(
        DataLoader(
            pictures,
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            num_workers=workers,
            worker_init_fn=_deaf,
            pin_memory=torch.cuda.is_available(),
        )
    )


def _deaf(_worker: int) -> None:
    """Signals are the main process's affair, which ends its workers itself."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """End those that an error has left at work: multiprocessing would ask by SIGTERM, and wait forever."""
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()


def note(decoding: torch.Tensor, row: int) -> None:
    """Note in memory that the processes share which row this worker decodes next, should it die of it."""
    if worker := get_worker_info():
        decoding[worker.id] = torch.tensor([os.getpid(), row])


@contextmanager
def blaming_pictures(*sources: Any) -> Iterator[None]:
    """Name the picture that a worker process died of: torch knows its pid alone, and tells it at any line."""
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        if not found:
            raise
        dead = {int(pid) for pid in found[1].split(",")}
        rows = [(source, row) for source in sources for pid, row in source.decoding.tolist() if pid in dead]
        names = ", ".join(source.dataset[row]["id"] for source, row in rows)
        raise UserError(
            f"{names or 'images'}: a process that decodes died; remove or "
            "mend the picture, or where memory ran out, set a smaller images.workers; --resume goes on"
        ) from None


def _as_it_is(batch: Any) -> Any:
    return batch


def training_order(
    rows: np.ndarray,
    batch_size: int,
    seed: tuple[object, ...],
    epochs: int,
    start: tuple[int, int],
    process: int = 0,
    processes: int = 1,
) -> Iterator[list[tuple[int, int]]]:
    """Items of one process's share of every batch, from the position `start` (epoch, batch) to the last epoch's end."""
    first = start[1]
    for epoch in range(start[0], epochs):
        for batch in epoch_batches(rows, batch_size, *seed, epoch)[first:]:
            yield [(int(row), epoch) for row in share_of(batch, process, processes)]
        first = 0
