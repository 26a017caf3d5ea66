"""Where a backbone begins: in timm's registry, or in a folder or repository that has its config.json and weights."""

import json
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import ModelCard
from timm.models import PretrainedCfg  # type: ignore[attr-defined]

from creature.console import say
from creature.errors import UserError, first_line
from creature.hub_download import HUB, download
from creature.recipe import Backbone
from creature.run import Run, no_finished_fold

FOLDER = "local-dir:"
SETTABLE = {"img_size", "num_classes", "drop_rate", "drop_path_rate"}  # arguments of a model that a recipe decides on


@dataclass(frozen=True)
class Source:
    """What a backbone's name stands for."""

    architecture: str  # timm's name, with the tag of its pretraining where timm has it
    config: Any  # timm's PretrainedCfg: means, input size, classifier, licence; None where timm has none
    weights: Path | None = None  # None: those that timm fetches

    @property
    def license(self) -> str | None:
        """The licence of the weights, by timm, or by the card of their repository."""
        card = self.weights.with_name("README.md") if self.weights else None
        if (self.config and self.config.license) or not card or not card.exists():
            return self.config and self.config.license
        with suppress(ValueError):  # a card without metadata, or with unreadable ones
            return ModelCard.load(card).data.to_dict().get("license")
        return None


def find_source(name: str) -> Source:
    """What backbone.name stands for; raises UserError for a folder or repository that holds no model of timm's."""
    folder = _folder(name)
    if folder is None:
        try:
            return Source(name, timm.get_pretrained_cfg(name))
        except RuntimeError:  # an unknown tag, which check_backbone names
            return Source(name, None)
    weights = folder / "model.safetensors"
    try:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = str(saved["architecture"])
        settings = saved.get("pretrained_cfg", saved)  # older files have one level
        known = {field.name for field in fields(PretrainedCfg)}
        config = PretrainedCfg(**{key: value for key, value in settings.items() if key in known})
        foreign = sorted(set(saved.get("model_args") or ()) - SETTABLE)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"backbone.name: {name} has no config.json as timm writes it: {first_line(error)}") from error
    if not timm.is_model(architecture):
        raise UserError(f"backbone.name: timm has no model {architecture!r}, which {name} is")
    if foreign:
        raise UserError(f"backbone.name: {name} sets {', '.join(foreign)} of {architecture}, which a fold cannot keep")
    if not weights.is_file():
        raise UserError(f"backbone.name: {name} has no model.safetensors; weights in other formats are not read")
    return Source(architecture, config, weights)


def starting_weights(backbone: Backbone) -> str | None:
    """The file that a training starts from; None where timm fetches the weights, or they are random."""
    weights = find_source(backbone.name).weights if backbone.pretrained and not backbone.weights else None
    return str(weights) if weights else backbone.weights


def portable_name(name: str) -> str:
    """A backbone's name without the way to its folder."""
    if name.startswith(HUB) or timm.is_model(name.partition(".")[0]):
        return name
    return FOLDER + Path(name.removeprefix(FOLDER)).name


def _folder(name: str) -> Path | None:
    """The folder that a backbone's name stands for; None for a name of timm's."""
    if name.startswith(HUB):
        return _fetch(name)
    if name.startswith(FOLDER):
        return Path(name.removeprefix(FOLDER)).expanduser()
    folder = Path(name).expanduser()
    if timm.is_model(name.partition(".")[0]) or not name or not folder.is_dir():
        return None
    if (folder / "config.json").exists():
        return folder
    if (folder / "soup/config.json").exists():
        return folder / "soup"
    if not (folds := Run(folder).folds):
        raise no_finished_fold(folder)
    return folds[0].folder


@cache  # a training begins with one revision
def _fetch(name: str) -> Path:
    folder = download(name, ("config.json", "model.safetensors", "README.md"))
    say(f"backbone.name: {name} is in {folder}")
    return folder
