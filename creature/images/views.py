"""Views of training pictures; those of all others have creature.images.evaluation. B batch, K classes.

A view takes a PIL image and gives uint8 (3, size, size); MixUp and CutMix work on the batch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from creature.recipe import Augment

View = Callable[[Image.Image], torch.Tensor | np.ndarray]


def training_view(size: int, augment: Augment) -> View:
    """Random flip, rotation, policy, crop and erasing, in the report's order; randomness is torch's own generator."""
    policies = {"rand_augment": v2.RandAugment, "trivial_augment": v2.TrivialAugmentWide}
    steps: list[Any] = [v2.RandomHorizontalFlip(augment.flip)]
    if augment.rotation:
        steps.append(v2.RandomRotation(augment.rotation))  # type: ignore[arg-type]
    if augment.policy != "none":
        steps.append(policies[augment.policy]())
    steps += [v2.RandomResizedCrop(size, scale=augment.crop_scale), v2.PILToTensor()]
    if augment.erasing:
        steps.append(v2.RandomErasing(augment.erasing))
    return v2.Compose(steps)


def make_mix(augment: Augment, classes: int) -> Callable[[torch.Tensor, torch.Tensor], Any] | None:
    """MixUp (Zhang et al. 2018), CutMix (Yun et al. 2019) or either: pixels, labels (B,) -> pixels, targets (B, K)."""
    mixup = v2.MixUp(alpha=augment.mix_alpha, num_classes=classes)
    cutmix = v2.CutMix(alpha=augment.mix_alpha, num_classes=classes)
    either = v2.RandomChoice([mixup, cutmix])
    return {"none": None, "mixup": mixup, "cutmix": cutmix, "mixup_or_cutmix": either}[augment.mix]
