"""A run's images in the device's memory: its training views are cut out of square copies there, without any worker.

Crop, flip and rotation are one affine map, drawn on the host from the same seeds as by the other loaders, and done for
a batch in one resampling. N rows, B batch, C side of the copies, S side of a view.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample, interpolate

from creature.console import say
from creature.data.augment import AffineAugmentation, Augmentation, View
from creature.data.image_cache import MARGIN
from creature.data.loader import Batch, ImageDataset, RunImages
from creature.data.order import BatchRequest, derive_seed
from creature.device import copy_to

SHARE = 0.5  # of a GPU's free memory that copies, and then views, may take


class DeviceImages:
    """All images of a run as square copies (N, 3, C, C), and as the exact views of held-out rows (N, 3, S, S).

    Either lie in the device's memory where they take at most half of what is free, else in the host's, from where each
    batch is copied through pinned memory.
    """

    def __init__(self, images: RunImages, device: torch.device):
        assert images.held_out.cached is not None
        size = images.held_out.cached.cache.index.size
        self.images, self.device = images, device
        largest = max(affine(augmentation).size for augmentation in images.training.augmentations)
        self.sizes, self.copies = _load(images.training, round(largest * MARGIN), device)
        _, self.views = _load(images.held_out, size, device)
        places = [
            f"{pixels.nbytes / 1e6:,.0f} MB of {name} in the memory of {pixels.device}"
            for name, pixels in (("copies", self.copies), ("held-out views", self.views))
        ]
        say(f"images.cache: {' and '.join(places)}; no workers start")

    def batches(self, requests: Iterable[BatchRequest]) -> Iterator[Batch]:
        """The batches of requests, in order."""
        return map(self._batch, requests)

    def _batch(self, request: BatchRequest) -> Batch:
        images = self.images.held_out if request.held_out else self.images.training
        rows = torch.tensor([row for row, _ in request.items])
        table = images.dataset[rows.tolist()]
        if request.held_out:
            pixels = self._rows_of(self.views, rows)
        else:
            pixels = self._training_views(images, request.items, table["id"])
        labels = torch.tensor(table["label"]) if images.targets is None else images.targets[rows]
        return Batch(pixels, labels, rows, ids=table["id"], bad={})

    def _training_views(
        self, images: ImageDataset, items: Sequence[tuple[int, int]], ids: Sequence[str]
    ) -> torch.Tensor:
        """The random views (B, 3, S, S) of items (row, epoch)."""
        augmentation = affine(images.augmentation_of(items[0][1]))
        views = [
            augmentation.draw(*self.sizes[row], derive_seed(images.seed, epoch, name))
            for (row, epoch), name in zip(items, ids, strict=True)
        ]
        copies = self._rows_of(self.copies, torch.tensor([row for row, _ in items]))
        return cut_views(copies, views, augmentation)

    def _rows_of(self, images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Some images (N, 3, C, C), on the device."""
        if images.device == self.device:
            return images[copy_to(self.device, rows)]
        batch = torch.empty((len(rows), *images.shape[1:]), dtype=images.dtype, pin_memory=True)
        return copy_to(self.device, torch.index_select(images, 0, rows, out=batch))


def affine(augmentation: Augmentation) -> AffineAugmentation:
    """The augmentation, which a recipe with images.cache: device makes of affine maps alone."""
    assert isinstance(augmentation, AffineAugmentation)
    return augmentation


def cut_views(copies: torch.Tensor, views: Sequence[View], augmentation: AffineAugmentation) -> torch.Tensor:
    """The views (B, 3, S, S) of copies (B, 3, C, C), by one bilinear resampling; black where there is no image."""
    count, size = len(views), augmentation.size
    pixels = copies.float()
    if copies.shape[-1] > 1.5 * MARGIN * size:  # augment.sizes: copies are for the largest; bilinear alone would alias
        pixels = interpolate(pixels, (round(size * MARGIN),) * 2, mode="bilinear", antialias=True)
    maps = copy_to(copies.device, torch.tensor(np.stack([view.matrix for view in views]), dtype=torch.float32))
    grid = affine_grid(maps, [count, 3, size, size], align_corners=False)
    padding = "zeros" if augmentation.settings.rotation else "border"
    pixels = grid_sample(pixels, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    pixels = pixels.round().to(torch.uint8)
    if augmentation.erasing.p:
        edges = copy_to(copies.device, torch.tensor([view.erased or (0, 0, 0, 0) for view in views]))
        left, top, right, bottom = edges[:, :, None].unbind(1)
        places = torch.arange(size, device=copies.device)
        rows, columns = (top <= places) & (places < bottom), (left <= places) & (places < right)
        pixels.masked_fill_((rows[:, :, None] & columns[:, None])[:, None], 0)
    return pixels.contiguous(memory_format=torch.channels_last)


def _load(images: ImageDataset, side: int, device: torch.device) -> tuple[list[tuple[int, int]], torch.Tensor]:
    """Sizes of the images, and what the cache holds of them as (N, 3, C, C), in the memory that has room.

    C is `side`, or less where no image is as large: enlarged ones would be blurred when views are made smaller again.
    """
    assert images.cached is not None
    count = len(images.dataset)
    sizes = [images.cached[row].size for row in range(count)]
    side = min(side, max(map(max, sizes)))
    # Only a GPU's memory is another one than the host's.
    fits = device.type != "cuda" or count * 3 * side**2 <= SHARE * torch.cuda.mem_get_info(device)[0]
    home = device if fits else torch.device("cpu")
    pixels = torch.empty((count, 3, side, side), dtype=torch.uint8, device=home)
    for row in range(count):
        array = torch.from_numpy(images.cached[row].array.copy()).permute(2, 0, 1)
        if array.shape[1:] != (side, side):
            array = interpolate(array[None], (side, side), mode="bilinear", antialias=True)[0]
        pixels[row] = array
    return sizes, pixels
