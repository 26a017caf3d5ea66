"""Class activation maps: which places of an image speak for a label, and which against it.

Zhou et al. 2016 (Learning Deep Features for Discriminative Localization). Where a network averages its last feature
maps over all places before a linear classifier, a logit is the mean of such a map plus the bias: the map is the logit,
place by place, without any gradient. No map is drawn unless that holds for the image. What all classes have in common
changes no probability, so a map shows the difference of a label's map to the mean map of all classes.

K classes, C channels, h w places of the last feature maps, S side of the evaluation view, D of the image with its map.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from creature.console import say
from creature.errors import UserError
from creature.inference.members import Member, predictor
from creature.inference.prediction import Prediction
from creature.inference.predictor import Computed, Predictor
from creature.inference.prepare import Pixels
from creature.storage import write_atomically

FOR, AGAINST = np.array([[0xD5, 0x5E, 0x00], [0x00, 0x72, 0xB2]], np.float32)  # colour-blind people see both
SIDE = 384  # pixels of an overlay, at least
STRENGTH = 0.7  # of the colour, where the map is the strongest
LONGEST = 200  # bytes of a file's name; file systems have room for 255


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
    """The part (h, w) of each place of a view (3, S, S) in a label's logit, less the mean of that of all classes.

    Given the view's logits (K,). Raises UserError where these are not the means of the maps of all classes, with the
    biases.
    """
    model: Any = member.model
    classifier = model.get_classifier()
    weight, bias = getattr(classifier, "weight", None), getattr(classifier, "bias", None)
    pixels = torch.from_numpy(view)[None].to(next(model.parameters()).device)
    features = model.forward_features(member.normalize(pixels))  # (1, C, h, w)
    if weight is not None and features.ndim == 4 and weight.flatten(1).shape[1] == features.shape[1]:
        maps = torch.einsum("kc,chw->khw", weight.flatten(1), features[0])
        means = maps.mean((1, 2)) + (0 if bias is None else bias)
        tolerance = 0.01 if member.dtype == torch.float32 else 0.05  # 16 bits round coarsely
        difference = np.abs(means.cpu().numpy() - logits).max()
        if not difference > tolerance * np.abs(logits).max():  # logits that are no numbers are refused later
            return (maps[label] - maps.mean(0)).cpu().numpy()
    raise UserError(
        f"{member.folder}: the logits of this {type(member.model).__name__} are no averages over the places of an "
        "image, as those of ResNet, EfficientNet, RegNet and DenseNet are, so no map shows what they rest on"
    )


def overlay(view: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A view (3, S, S) in grey under a map (h, w), as (D, D, 3): orange where the map is above 0, blue below."""
    side = max(SIDE, view.shape[-1])
    enlarged = Image.fromarray(view.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BILINEAR)
    grey = np.asarray(enlarged.convert("L"), np.float32)[..., None]
    strongest = max(float(np.abs(places).max()), 1e-12)
    share = Image.fromarray((places / strongest).astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
    signed = np.asarray(share)[..., None]
    colour = np.where(signed > 0, FOR, AGAINST)
    return (grey + STRENGTH * np.abs(signed) * (colour - grey)).round().astype(np.uint8)


def save_overlays(rows: Iterable[Prediction], folder: Path) -> Iterator[Prediction]:
    """Pass the rows on; the overlay (D, D, 3) that a row has as its features is written into the folder.

    Raises UserError where it cannot be written.
    """
    say(f"{folder} gets each image: what speaks for its first label in orange, against it in blue")
    for row in rows:
        if row.features is not None:
            path = folder / file_name(row.id)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with write_atomically(path) as temporary:
                    Image.fromarray(row.features).save(temporary, "PNG")
            except OSError as error:
                raise UserError(f"--explain: cannot write {path}: {error.strerror or error}") from error
        yield replace(row, features=None)


def file_name(name: str) -> str:
    """The name of an image's PNG, by its id: within one folder, and different for different ids."""
    safe = re.sub(r'[%/\\:*?"<>|\x00-\x1f\x7f]', lambda match: f"%{ord(match.group()):02X}", name)
    if safe.startswith("."):
        safe = f"%2E{safe[1:]}"  # which file managers would hide
    if len(safe.encode()) > LONGEST:
        start = safe.encode()[: LONGEST - 40].decode(errors="ignore")
        safe = f"{start}%{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return f"{safe}.png"
