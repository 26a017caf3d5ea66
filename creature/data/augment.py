"""Views of training images; those of all others have creature.data.eval_transform. B batch, K classes.

A view takes an image and the seed of its randomness, and gives uint8 (3, size, size); MixUp and CutMix work on the
batch.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from creature.data.decode import Decoded, Encoded
from creature.recipe import Augment

Augmentation = Callable[[Encoded | Decoded, int], torch.Tensor]

_DRAWING = threading.Lock()


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Torch's one generator, seeded, for one thread at a time."""
    with _DRAWING:
        torch.default_generator.manual_seed(seed)
        yield


def exact_transform(view: Callable[[Image.Image], np.ndarray]) -> Augmentation:
    """A view without randomness of the image decoded in full, such as creature.data.eval_transform's."""
    return partial(_see_exactly, view)


def _see_exactly(view: Callable[[Image.Image], np.ndarray], picture: Encoded | Decoded, _seed: int) -> torch.Tensor:
    return torch.from_numpy(view(picture.image()))


def cached_transform(picture: Encoded | Decoded, _seed: int) -> torch.Tensor:
    """The view of what is cached as it is to be seen."""
    assert isinstance(picture, Decoded)
    return torch.from_numpy(picture.array.copy()).permute(2, 0, 1)


def training_augmentation(size: int, augment: Augment) -> Augmentation:
    """Random flip, rotation, policy, crop and erasing, in the report's order; randomness is torch's own generator.

    Where nothing looks at more than the crop, an image is decoded in no higher resolution than the crop needs.
    """
    policies = {"rand_augment": v2.RandAugment, "trivial_augment": v2.TrivialAugmentWide}
    flip, crop = v2.RandomHorizontalFlip(augment.flip), v2.RandomResizedCrop(size, scale=augment.crop_scale)
    erasing = v2.RandomErasing(augment.random_erasing)
    if not augment.rotation and augment.policy == "none":
        return partial(_see_crop, size, flip, crop, erasing)
    steps: list[Any] = [flip]
    if augment.rotation:
        steps.append(v2.RandomRotation(augment.rotation))  # type: ignore[arg-type]
    if augment.policy != "none":
        steps.append(policies[augment.policy]())
    return partial(_see_whole, v2.Compose([*steps, crop, v2.PILToTensor(), erasing]))


def _see_whole(steps: v2.Compose, picture: Encoded | Decoded, seed: int) -> torch.Tensor:
    image = picture.image()
    with _drawing(seed):
        return steps(image)


def _see_crop(
    size: int,
    flip: v2.RandomHorizontalFlip,
    crop: v2.RandomResizedCrop,
    erasing: v2.RandomErasing,
    picture: Encoded | Decoded,
    seed: int,
) -> torch.Tensor:
    """What the steps would do one after another, with all that is random drawn before anything is decoded."""
    width, height = picture.size
    with _drawing(seed):
        mirrored = bool(torch.rand(1) < flip.p)
        box = crop.make_params([torch.empty(1, height, width, device="meta")])
        erased = None
        if erasing.p and torch.rand(1) < erasing.p:
            erased = erasing.make_params([torch.empty(3, size, size, device="meta")])
    left = width - box["left"] - box["width"] if mirrored else box["left"]
    seen = _crop(picture, (left, box["top"], left + box["width"], box["top"] + box["height"]), size)
    seen = seen.flip(2) if mirrored else seen
    return seen if erased is None else erasing.transform(seen, erased)


def _crop(picture: Encoded | Decoded, edges: tuple[int, int, int, int], size: int) -> torch.Tensor:
    """The part of an image within the edges (left, top, right, bottom), as (3, size, size)."""
    left, top, right, bottom = edges
    if isinstance(picture, Decoded):
        height, width, _ = picture.array.shape
        if (width, height) == picture.size:
            return _resize(picture.array[top:bottom, left:right].copy(), size)
        x, y = width / picture.size[0], height / picture.size[1]
        first, above = int(left * x), int(top * y)
        part = Image.fromarray(picture.array[above : math.ceil(bottom * y), first : math.ceil(right * x)])
        box = (left * x - first, top * y - above, right * x - first, bottom * y - above)
        return _resize_within(part, box, size)
    shrink = max(by for by in (1, 2, 4, 8) if by == 1 or min(right - left, bottom - top) >= by * size)
    image, scale = picture.smaller(shrink)
    if scale == 1:
        return _resize(np.array(image.crop(edges)), size)
    return _resize_within(image, (left * scale, top * scale, right * scale, bottom * scale), size)


def _resize(pixels: np.ndarray, size: int) -> torch.Tensor:
    """(H, W, 3) to (3, size, size)."""
    return interpolate(torch.from_numpy(pixels).permute(2, 0, 1)[None], (size, size), mode="bilinear", antialias=True)[
        0
    ]


def _resize_within(image: Image.Image, box: tuple[float, float, float, float], size: int) -> torch.Tensor:
    """What is within edges that lie between pixels, which torch has no resize for, to (3, size, size)."""
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BILINEAR, box))).permute(2, 0, 1)


def make_mix(augment: Augment, classes: int) -> Callable[[torch.Tensor, torch.Tensor], Any] | None:
    """MixUp (Zhang et al. 2018), CutMix (Yun et al. 2019) or either: pixels, labels (B,) -> pixels, targets (B, K)."""
    mixup = v2.MixUp(alpha=augment.mix_alpha, num_classes=classes)
    cutmix = v2.CutMix(alpha=augment.mix_alpha, num_classes=classes)
    either = v2.RandomChoice([mixup, cutmix])
    return {"none": None, "mixup": mixup, "cutmix": cutmix, "mixup_or_cutmix": either}[augment.mix]
