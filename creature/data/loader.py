"""Batches of images and features; an image's pixels are a pure function of the seed, the epoch and its id.

N rows, B batch, K classes, D features. Nothing here depends on the number of workers.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from creature.data import fork_server
from creature.data.augment import Augmentation
from creature.data.decode import BLACK, BadImage, Encoded, read
from creature.data.order import BatchRequest, derive_seed
from creature.data.shared_buffers import SharedBuffers
from creature.data.workers import AHEAD, note_decoding, start_workers
from creature.device import usable_cores

if TYPE_CHECKING:
    from datasets import Dataset

    from creature.data.image_cache import CachedImages


COPYING = 2  # batches that may be on their way to a GPU while the next one is asked for


class Batch(NamedTuple):
    """Images with the rows that they came from; an image that cannot be decoded keeps its place, black."""

    pixels: torch.Tensor  # uint8 (B, 3, H, W)
    labels: torch.Tensor  # (B,), or soft ones (B, K)
    rows: torch.Tensor  # (B,)
    ids: list[str]
    bad: dict[str, str]  # id -> reason


MakeBatches = Callable[[Iterable[BatchRequest]], Iterator[Batch]]


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

    def augmentation_of(self, epoch: int) -> Augmentation:
        """How images of an epoch are seen."""
        return self.augmentations[min(epoch, len(self.augmentations) - 1)]

    def __getitems__(self, items: Sequence[tuple[int, int]], buffer: torch.Tensor | None = None) -> Batch:
        """The batch; its pixels lie in `buffer`, if there is one."""
        rows = [row for row, _ in items]
        table = self.dataset[rows]
        images = list(zip(items, table["id"], table.get("image", rows), strict=True))
        with torch.random.fork_rng(devices=[]):
            if get_worker_info() is None and len(rows) > 1:
                with ThreadPoolExecutor(usable_cores()) as pool:
                    loaded = list(pool.map(lambda image: self._load(*image), images))
            else:
                loaded = [self._load(*image) for image in images]
        # In the memory order of images, channels last, which convolutions prefer.
        images = [pixels.permute(1, 2, 0) for pixels, _ in loaded]
        place = None if buffer is None else buffer[: sum(image.numel() for image in images)].view(-1, *images[0].shape)
        return Batch(
            torch.stack(images, out=place).permute(0, 3, 1, 2),
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
        augmentation = self.augmentation_of(epoch)
        if self.cached is not None:
            return augmentation(self.cached[row], seed), ""
        try:
            return augmentation(Encoded(read(image)), seed), ""
        except BadImage as reason:
            return augmentation(BLACK, seed), str(reason)


class RunImages:
    """A run's images in both views, as batches of numbered requests; a worker leaves the pixels in shared buffers."""

    def __init__(self, training: ImageDataset, held_out: ImageDataset):
        self.dataset, self.training, self.held_out = training.dataset, training, held_out
        self.buffers: SharedBuffers | None = None

    def __getitems__(self, numbered: tuple[int, BatchRequest]) -> "Batch | _PackedBatch":
        number, request = numbered
        images, items = (self.held_out if request.held_out else self.training), request.items
        if self.buffers is None:
            return images.__getitems__(items)
        batch = images.__getitems__(items, self.buffers[number % self.buffers.count])
        tensors = {name: getattr(batch, name).numpy() for name in ("labels", "rows")}
        return _PackedBatch(number, batch.pixels.shape, ids=batch.ids, bad=batch.bad, **tensors)


class _PackedBatch(NamedTuple):
    """A batch on its way to the main process: no pixels, and no tensors, each of which would take shared memory."""

    number: int
    shape: torch.Size  # of the pixels
    labels: np.ndarray
    rows: np.ndarray
    ids: list[str]
    bad: dict[str, str]


def _unpack(batch: Batch | _PackedBatch, buffers: SharedBuffers | None) -> Batch:
    if isinstance(batch, Batch):
        return batch
    assert buffers is not None
    count, channels, height, width = batch.shape
    pixels = buffers[batch.number % buffers.count][: batch.shape.numel()].view(count, height, width, channels)
    labels, rows = torch.from_numpy(batch.labels), torch.from_numpy(batch.rows)
    return Batch(pixels.permute(0, 3, 1, 2), labels, rows, ids=batch.ids, bad=batch.bad)


@contextmanager
def start_loader(
    images: "RunImages", workers: int, buffer_bytes: int, *, device: torch.device
) -> Iterator[MakeBatches]:
    """A function that gives the batches of requests, in order; its workers serve all that it is asked for in the block.

    A batch's pixels are valid until the next batch is asked for. On a GPU they lie in its memory. Raises BrokenError
    within the block when a worker dies.
    """
    buffers = None
    if workers:
        buffers = SharedBuffers(AHEAD * workers + 1 + COPYING, buffer_bytes, pinned=device.type == "cuda")
    with closing(buffers) if buffers else nullcontext():
        images.buffers = buffers
        with start_workers(images, workers, method=fork_server.START_METHOD) as load:

            def batches(requests: Iterable[BatchRequest]) -> Iterator[Batch]:
                unpacked = map(partial(_unpack, buffers=buffers), load(enumerate(requests)))
                return _on_device(unpacked, device) if device.type == "cuda" else unpacked

            yield batches


def _on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches from pinned memory in a GPU's, copied while the host and the GPU's computing go on."""
    copies: deque[torch.cuda.Event] = deque()
    copying, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    for batch in batches:
        with torch.cuda.stream(copying):
            pixels = batch.pixels.to(device, non_blocking=True)
            copies.append(torch.cuda.Event())
            copies[-1].record()
        computing.wait_event(copies[-1])
        pixels.record_stream(computing)
        if len(copies) > COPYING:  # its buffer is written to next
            copies.popleft().synchronize()
        yield batch._replace(pixels=pixels)


class FeatureDataset:
    """Rows as batches of the features that a frozen backbone made of their images: `pixels` are features (B, D).

    Where there are soft `targets` (N, K), they replace the labels.
    """

    def __init__(self, dataset: "Dataset", features: torch.Tensor, targets: torch.Tensor | None = None):
        self.dataset, self.features, self.targets = dataset.select_columns(["id", "label"]), features, targets

    def batches(self, requests: Iterable[BatchRequest]) -> Iterator[Batch]:
        """The batches of requests, in order."""
        return map(self._batch, requests)

    def _batch(self, request: BatchRequest) -> Batch:
        rows = [row for row, _ in request.items]
        table = self.dataset[rows]
        labels = torch.tensor(table["label"]) if self.targets is None else self.targets[rows]
        return Batch(self.features[rows], labels, torch.tensor(rows), ids=table["id"], bad={})
