"""Random views of training images; creature.data.eval_transform has the view of all others. B batch, K classes.

An augmentation takes an image and a seed, and gives uint8 pixels (3, size, size); MixUp and CutMix work on the batch.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from creature.data.decode import Decoded, Encoded
from creature.data.order import derive_seed
from creature.recipe import Augment

Augmentation = Callable[[Encoded | Decoded, int], torch.Tensor]
Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

_GENERATOR_LOCK = threading.Lock()


class Box(NamedTuple):
    """Edges within an image, in pixels from its upper left corner."""

    left: float
    top: float
    right: float
    bottom: float

    def scaled(self, x: float, y: float) -> "Box":
        """The same edges where a pixel is x wide and y high."""
        return Box(self.left * x, self.top * y, self.right * x, self.bottom * y)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's one generator, seeded, for one thread at a time."""
    with _GENERATOR_LOCK:
        torch.default_generator.manual_seed(seed)  # guard: augmentation-seed
        yield


def exact_transform(transform: Callable[[Image.Image], np.ndarray]) -> Augmentation:
    """A transform without randomness, such as an EvalTransform, of the image decoded in full."""
    return partial(_transform_exactly, transform)


def _transform_exactly(
    transform: Callable[[Image.Image], np.ndarray], image: Encoded | Decoded, _seed: int
) -> torch.Tensor:
    return torch.from_numpy(transform(image.image()))


def cached_transform(image: Encoded | Decoded, _seed: int) -> torch.Tensor:
    """The pixels of a cached evaluation view, as they are."""
    assert isinstance(image, Decoded)
    return torch.from_numpy(image.array.copy()).permute(2, 0, 1)


def training_augmentation(size: int, augment: Augment) -> Augmentation:
    """Random flips, rotation, policy, crop, colours and erasing, in this order; randomness is torch's own generator.

    3-Augment (Touvron et al. 2022) is of the crop, the other policies of the whole image. Where no step needs more than
    the crop, an image is decoded in no higher resolution than the crop needs.
    """
    policies = {"rand_augment": v2.RandAugment, "trivial_augment": v2.TrivialAugmentWide, "augmix": v2.AugMix}
    crop = v2.RandomResizedCrop(size, scale=augment.crop_scale)
    erasing = v2.RandomErasing(augment.random_erasing)
    flips: list[Any] = [v2.RandomHorizontalFlip(augment.flip)]
    if augment.vertical_flip:
        flips.append(v2.RandomVerticalFlip(augment.vertical_flip))
    if augment.rotation:
        flips.append(v2.RandomRotation(augment.rotation))  # type: ignore[arg-type]
    whole = [policies[augment.policy]()] if augment.policy in policies else []
    colours: list[Any] = [three_augment()] if augment.policy == "three_augment" else []
    if augment.color_jitter:
        colours.append(v2.ColorJitter(*[augment.color_jitter] * 3))
    exact = v2.Compose([*flips, *whole, crop, v2.PILToTensor(), *colours, erasing])
    if augment.policy in policies:
        return partial(_augment_in_full, exact)
    return AffineAugmentation(size, augment, crop=crop, colours=colours, erasing=erasing, exact=exact)


def three_augment() -> v2.Transform:
    """One of grey, solarize and blur, of pixels (3, H, W); the colour jitter that belongs to it is a setting."""
    return v2.RandomChoice(
        [v2.Grayscale(3), v2.RandomSolarize(threshold=128, p=1), v2.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))]
    )


def _augment_in_full(steps: v2.Compose, image: Encoded | Decoded, seed: int) -> torch.Tensor:
    decoded = image.image()
    with _seeded(seed):
        return steps(decoded)


@dataclass(frozen=True)
class View:
    """A random view of an image (width, height): it is flipped, then rotated, then cropped, then partly erased."""

    size: tuple[int, int]
    mirrored: bool
    upside_down: bool
    angle: float  # in degrees, counter-clockwise
    crop: Box
    erased: Box | None  # in pixels of the view, whose size is the same for all

    @property
    def box(self) -> Box:
        """The crop's edges in the image as it is, where it is not rotated."""
        (width, height), (left, top, right, bottom) = self.size, self.crop
        if self.mirrored:
            left, right = width - right, width - left
        if self.upside_down:
            top, bottom = height - bottom, height - top
        return Box(left, top, right, bottom)

    @property
    def matrix(self) -> np.ndarray:
        """Where a place of the view lies in the image, both from -1 to 1: (2, 3), as affine_grid takes it."""
        (width, height), (left, top, right, bottom) = self.size, self.crop
        to_crop = [
            [(right - left) / 2, 0, (left + right - width) / 2],
            [0, (bottom - top) / 2, (top + bottom - height) / 2],
        ]
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        flips = np.diag([-1 if self.mirrored else 1, -1 if self.upside_down else 1])
        from_center = flips @ np.array([[cos, -sin], [sin, cos]])
        return np.diag([2 / width, 2 / height]) @ from_center @ np.array(to_crop)


@dataclass(frozen=True)
class AffineAugmentation:
    """Random flips, rotation, crop, colours and erasing: what is seen is drawn before anything is decoded."""

    size: int
    settings: Augment
    crop: v2.RandomResizedCrop
    colours: list[Any]  # of the crop's pixels
    erasing: v2.RandomErasing
    exact: v2.Compose  # the same as steps on the whole image

    def draw(self, width: int, height: int, seed: int) -> View:
        """What the seed makes of an image of this size."""
        with _seeded(seed):
            mirrored = bool(torch.rand(1) < self.settings.flip)
            upside_down = bool(self.settings.vertical_flip and torch.rand(1) < self.settings.vertical_flip)
            limit = self.settings.rotation
            angle = float(torch.empty(1).uniform_(-limit, limit)) if limit else 0.0
            crop = self.crop.make_params([torch.empty(1, height, width, device="meta")])
            erased = None
            if self.erasing.p and torch.rand(1) < self.erasing.p:
                drawn = self.erasing.make_params([torch.empty(3, self.size, self.size, device="meta")])
                if drawn["v"] is not None:
                    erased = Box(drawn["j"], drawn["i"], drawn["j"] + drawn["w"], drawn["i"] + drawn["h"])
        left, top = crop["left"], crop["top"]
        box = Box(left, top, left + crop["width"], top + crop["height"])
        return View((width, height), mirrored, upside_down, angle=angle, crop=box, erased=erased)

    def __call__(self, image: Encoded | Decoded, seed: int) -> torch.Tensor:
        """The view (3, size, size)."""
        if self.settings.rotation:
            return _augment_in_full(self.exact, image, seed)
        view = self.draw(*image.size, seed)
        pixels = _crop(image, view.box, self.size)
        pixels = pixels.flip(2) if view.mirrored else pixels
        pixels = pixels.flip(1) if view.upside_down else pixels
        if self.colours:
            with _seeded(derive_seed(seed, "colours")):
                pixels = v2.Compose(self.colours)(pixels).contiguous()  # grey is one channel, seen three times
        if view.erased is not None:
            left, top, right, bottom = map(int, view.erased)
            pixels[:, top:bottom, left:right] = 0
        return pixels


def _crop(image: Encoded | Decoded, box: Box, size: int) -> torch.Tensor:
    """A box of an image, in pixels of its full resolution, resized to (3, size, size)."""
    if isinstance(image, Decoded):
        return _crop_decoded(image, box, size)
    side = min(box.right - box.left, box.bottom - box.top)
    shrink = max(by for by in (1, 2, 4, 8) if by == 1 or side >= by * size)
    pixels, scale = image.pixels(shrink)
    if scale == 1:
        left, top, right, bottom = map(int, box)
        return _resize(pixels[top:bottom, left:right].copy(), size)
    return _resize_within(Image.fromarray(pixels), box.scaled(scale, scale), size)


def _crop_decoded(image: Decoded, box: Box, size: int) -> torch.Tensor:
    height, width, _ = image.array.shape
    if (width, height) == image.size:
        left, top, right, bottom = map(int, box)
        return _resize(image.array[top:bottom, left:right].copy(), size)
    left, top, right, bottom = box = box.scaled(width / image.size[0], height / image.size[1])
    x, y = int(left), int(top)  # only the pixels that the box touches become a Pillow image
    touched = Image.fromarray(image.array[y : math.ceil(bottom), x : math.ceil(right)])
    return _resize_within(touched, Box(left - x, top - y, right - x, bottom - y), size)


def _resize(pixels: np.ndarray, size: int) -> torch.Tensor:
    """(H, W, 3) to (3, size, size)."""
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return interpolate(batch, (size, size), mode="bilinear", antialias=True)[0]


def _resize_within(image: Image.Image, box: Box, size: int) -> torch.Tensor:
    """A box whose edges lie between pixels, which torch cannot resize, to (3, size, size)."""
    return torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BILINEAR, box))).permute(2, 0, 1)


def make_mix(augment: Augment, classes: int) -> Mix | None:
    """MixUp (Zhang et al. 2018), CutMix (Yun et al. 2019) or either: pixels, labels (B,) -> pixels, targets (B, K).

    With a probability below 1 some batches, and their labels, are left as they are.
    """
    mixup = v2.MixUp(alpha=augment.mix_alpha, num_classes=classes)
    cutmix = v2.CutMix(alpha=augment.mix_alpha, num_classes=classes)
    either = v2.RandomChoice([mixup, cutmix])
    mix = {"none": None, "mixup": mixup, "cutmix": cutmix, "mixup_or_cutmix": either}[augment.mix]
    return v2.RandomApply([mix], augment.mix_probability) if mix and augment.mix_probability < 1 else mix
