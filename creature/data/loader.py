"""Batches: which rows a step sees, and their pixels; both are pure functions of the seed, the epoch and the id.

N rows, B batch. Nothing here depends on the number of workers, so a run resumes from two integers: epoch and batch.
"""

import atexit
import hashlib
import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from creature.data.augment import Augmentation
from creature.data.decode import BLACK, BadImage, Encoded, read
from creature.device import usable_cores
from creature.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from creature.data.image_cache import CachedImages

# torch says for each fold, in a paragraph, that workers are more than cores; setup.start does so once, in a line.
warnings.filterwarnings("ignore", "This DataLoader will create")


class Batch(NamedTuple):
    """Images with the rows that they came from; an image that cannot be decoded keeps its place, black."""

    pixels: torch.Tensor  # uint8 (B, 3, H, W)
    labels: torch.Tensor  # (B,), or soft ones (B, K)
    rows: torch.Tensor  # (B,)
    ids: list[str]
    bad: dict[str, str]  # id -> reason


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from its parts: equal on every machine, unlike Python's own hash."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_batches(rows: np.ndarray, batch_size: int, *seed: object) -> list[np.ndarray]:
    """The rows of one epoch, shuffled by the seed and cut into batches; a last batch of one joins the one before it.

    BatchNorm has no statistics of a single image, and dropping it would lose a row.
    """
    order = np.random.default_rng(derive_seed(*seed)).permutation(rows)
    cuts = list(range(batch_size, len(order), batch_size))
    if cuts and len(order) - cuts[-1] == 1 and batch_size > 1:
        cuts.pop()
    return np.split(order, cuts)


def process_share(batch: np.ndarray, process: int, processes: int) -> np.ndarray:
    """The rows of a batch that one process sees; never none, for every process must take part in a step."""
    share = batch[process::processes]
    return share if len(share) else batch[:1]


class ImageDataset:
    """Rows of the table as batches; an item is (row, epoch), so that each epoch sees another random view.

    `views`: one, or one an epoch. Of images that are cached, the table needs id and label alone. Where there are soft
    `targets` (N, K), these are the labels.
    """

    targets: torch.Tensor | None = None

    def __init__(self, dataset: "Dataset", *views: Augmentation, seed: int = 0, cached: "CachedImages | None" = None):
        self.dataset, self.views, self.seed, self.cached = dataset, views, seed, cached
        self.decoding = torch.zeros(0, 2, dtype=torch.int64)  # each worker's pid and row

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        rows = [row for row, _ in items]
        table = self.dataset[rows]
        images = zip(items, table["id"], table.get("image", rows), strict=True)
        with torch.random.fork_rng(devices=[]):
            if get_worker_info() is None and len(rows) > 1:
                with ThreadPoolExecutor(usable_cores()) as pool:
                    seen = list(pool.map(self._see, *zip(*images, strict=True)))
            else:
                seen = [self._see(*image) for image in images]
        return Batch(
            # In the memory order of images, channels last, which convolutions prefer.
            torch.stack([pixels.permute(1, 2, 0) for pixels, _ in seen]).permute(0, 3, 1, 2),
            torch.tensor(table["label"]) if self.targets is None else self.targets[rows],
            torch.tensor(rows),
            table["id"],
            {name: reason for name, (_, reason) in zip(table["id"], seen, strict=True) if reason},
        )

    def _see(self, item: tuple[int, int], name: str, image: dict[str, Any]) -> tuple[torch.Tensor, str]:
        """An image's pixels, or black ones and the reason why."""
        row, epoch = item
        note_decoding(self.decoding, row)
        seed, view = derive_seed(self.seed, epoch, name), self.views[min(epoch, len(self.views) - 1)]
        if self.cached is not None:
            return view(self.cached[row], seed), ""
        try:
            return view(Encoded(read(image)), seed), ""
        except BadImage as reason:
            return view(BLACK, seed), str(reason)


class FeatureDataset:
    """Rows as batches of what a frozen backbone made of their images: `pixels` are features (B, D).

    Where there are soft `targets` (N, K), these are the labels.
    """

    targets: torch.Tensor | None = None

    def __init__(self, dataset: "Dataset", features: torch.Tensor):
        self.dataset, self.features = dataset, features
        self.decoding = torch.zeros(0, 2, dtype=torch.int64)

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        rows = [row for row, _ in items]
        table = self.dataset[rows]
        labels = torch.tensor(table["label"]) if self.targets is None else self.targets[rows]
        return Batch(self.features[rows], labels, torch.tensor(rows), table["id"], {})


def load_batches(pictures: Any, batches: Iterable[Sequence[Any]], workers: int) -> Iterator[Any]:
    """What `images.__getitems__` makes of each batch of items, in order, prepared ahead by worker processes."""
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


def note_decoding(decoding: torch.Tensor, row: int) -> None:
    """Note in memory that the processes share which row this worker decodes next, should it die of it."""
    if worker := get_worker_info():
        decoding[worker.id] = torch.tensor([os.getpid(), row])


@contextmanager
def naming_fatal_image(*sources: Any) -> Iterator[None]:
    """Name the image that a worker process died of: torch knows its pid alone, and tells it at any line."""
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        if not found:
            raise
        dead = {int(pid) for pid in found[1].split(",")}
        rows = [(source, row) for source in sources for pid, row in source.decoding.tolist() if pid in dead]
        names = ", ".join(dict.fromkeys(source.dataset[row]["id"] for source, row in rows))  # two may die of one
        raise UserError(
            f"{names or 'images'}: a process that decodes died; remove or "
            "mend the image, or where memory ran out, set a smaller images.workers; --resume goes on"
        ) from error


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
            yield [(int(row), epoch) for row in process_share(batch, process, processes)]
        first = 0
