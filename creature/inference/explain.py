"""Class activation maps: which places of an image speak for a label, and which against it.

Zhou et al. 2016 (Learning Deep Features for Discriminative Localization). Where a network averages its last feature
maps over all places before a linear classifier, a logit is the mean of such a map plus the bias: the map is the logit,
place by place, without any gradient. No map is drawn unless that holds for the image. What all classes have in common
changes no probability, so a map shows the difference of a label's map to the mean map of all classes.

K classes, C channels, h w places of the last feature maps, S side of the evaluation view, D of the overlay.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from creature.errors import UserError
from creature.inference.members import Member, predictor
from creature.inference.overlays import overlay
from creature.inference.predictor import Computed, Pixels, Predictor


def with_overlays(predictor: Predictor, member: Member) -> Predictor:
    """The predictor of one member whose features are overlays (D, D, 3) of the images, for their first labels.

    When it computes, it raises UserError for a network whose logits are no means of maps.
    """

    def compute(pixels: Pixels) -> Computed:
        logits = predictor.compute(pixels).logits
        overlays = [
            overlay(view, activation_map(member, view, logits=of_view, label=int(of_view.argmax())))
            for view, of_view in zip(pixels[member.transform], logits[0], strict=True)
        ]
        return Computed(logits, np.stack(overlays))

    return replace(predictor, compute=compute)


def draw_overlay(member: Member, image: Image.Image, label: int) -> np.ndarray:
    """The overlay (D, D, 3) of an image, for one label; raises UserError as activation_map does."""
    view = member.transform(image)
    logits = predictor([member]).compute({member.transform: view[None]}).logits
    return overlay(view, activation_map(member, view, logits=logits[0, 0], label=label))


@torch.inference_mode()
def activation_map(member: Member, view: np.ndarray, *, logits: np.ndarray, label: int) -> np.ndarray:
    """What each place (h, w) of a view (3, S, S) adds to the logit of a label beyond the mean of its logits (K,).

    Raises UserError where the means of the maps of all classes, with the biases, are not the logits.
    """
    model: Any = member.model
    classifier = model.get_classifier()
    weight, bias = getattr(classifier, "weight", None), getattr(classifier, "bias", None)
    pixels = torch.from_numpy(view)[None].to(next(model.parameters()).device)
    features = model.forward_features(member.normalize(pixels))  # (1, C, h, w)
    if weight is None or features.ndim != 4 or weight.flatten(1).shape[1] != features.shape[1]:
        raise _refusal(member)
    maps = torch.einsum("kc,chw->khw", weight.flatten(1), features[0])
    means = maps.mean((1, 2)) + (0 if bias is None else bias)
    difference = np.abs(means.cpu().numpy() - logits).max()
    if (
        difference > (0.01 if member.dtype == torch.float32 else 0.05) * np.abs(logits).max()
    ):  # 16 bits round as coarsely
        raise _refusal(member)
    return (maps[label] - maps.mean(0)).cpu().numpy()


def _refusal(member: Member) -> UserError:
    return UserError(
        f"{member.folder}: the logits of this {type(member.model).__name__} are no averages over the places of an "
        "image, as those of ResNet, EfficientNet, RegNet and DenseNet are, so no map shows what they rest on"
    )
