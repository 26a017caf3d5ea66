"""Batches: which rows a step sees, and their pixels; both are pure functions of the seed, the epoch and the id.

N rows, B batch, K classes, D features. Nothing here depends on the number of workers, so that a run resumes from two
integers: epoch and batch.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from creature.data.augment import Augmentation
from creature.data.decode import BLACK, BadImage, Encoded, read
from creature.data.workers import note_decoding
from creature.device import usable_cores

if TYPE_CHECKING:
    from datasets import Dataset

    from creature.data.image_cache import CachedImages


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
    if cuts and len(order) - cuts[-1] == 1 and batch_size > 1:  # guard: no-batch-of-one
        cuts.pop()
    return np.split(order, cuts)


def process_share(batch: np.ndarray, process: int, processes: int) -> np.ndarray:
    """The rows of a batch that one process sees; never none, for every process must take part in a step."""
    share = batch[process::processes]
    return share if len(share) else batch[:1]


class ImageDataset:
    """Rows of the table as batches; an item is (row, epoch), so that each epoch has another random view of an image.

    `augmentations`: one for all epochs, or one for each. Of images that are cached, the table needs id and label alone.
    Where there are soft `targets` (N, K), they replace the labels.
    """

    targets: torch.Tensor | None = None

    def __init__(
        self, dataset: "Dataset", *augmentations: Augmentation, seed: int = 0, cached: "CachedImages | None" = None
    ):
        self.dataset, self.augmentations, self.seed, self.cached = dataset, augmentations, seed, cached

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        rows = [row for row, _ in items]
        table = self.dataset[rows]
        images = list(zip(items, table["id"], table.get("image", rows), strict=True))
        with torch.random.fork_rng(devices=[]):
            if get_worker_info() is None and len(rows) > 1:
                with ThreadPoolExecutor(usable_cores()) as pool:
                    loaded = list(pool.map(lambda image: self._load(*image), images))
            else:
                loaded = [self._load(*image) for image in images]
        return Batch(
            # In the memory order of images, channels last, which convolutions prefer.
            torch.stack([pixels.permute(1, 2, 0) for pixels, _ in loaded]).permute(0, 3, 1, 2),
            torch.tensor(table["label"]) if self.targets is None else self.targets[rows],
            torch.tensor(rows),
            ids=table["id"],
            bad={name: reason for name, (_, reason) in zip(table["id"], loaded, strict=True) if reason},
        )

    def _load(self, item: tuple[int, int], name: str, image: dict[str, Any]) -> tuple[torch.Tensor, str]:
        """An image's pixels, or black ones and the reason why."""
        row, epoch = item
        note_decoding(row)  # guard: name-in-loader
        seed = derive_seed(self.seed, epoch, name)
        augmentation = self.augmentations[min(epoch, len(self.augmentations) - 1)]
        if self.cached is not None:
            return augmentation(self.cached[row], seed), ""
        try:
            return augmentation(Encoded(read(image)), seed), ""
        except BadImage as reason:
            return augmentation(BLACK, seed), str(reason)


class FeatureDataset:
    """Rows as batches of the features that a frozen backbone made of their images: `pixels` are features (B, D).

    Where there are soft `targets` (N, K), they replace the labels.
    """

    targets: torch.Tensor | None = None

    def __init__(self, dataset: "Dataset", features: torch.Tensor):
        self.dataset, self.features = dataset, features

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        rows = [row for row, _ in items]
        table = self.dataset[rows]
        labels = torch.tensor(table["label"]) if self.targets is None else self.targets[rows]
        return Batch(self.features[rows], labels, torch.tensor(rows), ids=table["id"], bad={})


def training_order(
    rows: np.ndarray,
    batch_size: int,
    seed: tuple[object, ...],
    *,
    epochs: int,
    start: tuple[int, int],
    process: int = 0,
    processes: int = 1,
) -> Iterator[list[tuple[int, int]]]:
    """Items of one process's share of every batch, from the position `start` (epoch, batch) to the last epoch's end."""
    first = start[1]
    for epoch in range(start[0], epochs):
        for batch in epoch_batches(rows, batch_size, *seed, epoch)[first:]:  # guard: first-batch
            yield [(int(row), epoch) for row in process_share(batch, process, processes)]  # guard: process-share
        first = 0
