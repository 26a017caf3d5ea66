"""Members: models of finished folds, loaded and ready to predict. M members, B batch, K classes."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from creature.data.eval_transform import CROP_MODES, EvalTransform
from creature.data.normalize import Normalize
from creature.device import copy_to, device_precision, keep_memory, share_cores, start_gpu, to_channels_last
from creature.errors import UserError, first_line
from creature.inference.fuse_batchnorm import fuse
from creature.inference.predictor import Computed, Predictor, with_mirroring
from creature.inference.prepare import Pixels
from creature.metrics.blend import Blending
from creature.run import most_frequent_class

# Limits for a downloaded folder, in bytes, classes and pixels.
MAX_CONFIG, MAX_CLASSES, MAX_SIZE = 64 * 2**20, 1_000_000, 2048


@dataclass(frozen=True)
class Member:
    """One model, ready to predict."""

    folder: Path
    class_names: tuple[str, ...]
    model: nn.Module
    normalize: Normalize
    transform: EvalTransform
    dtype: torch.dtype = torch.float32  # of the arithmetic


@dataclass(frozen=True)
class ModelConfig:
    """The content of a model folder's config.json."""

    architecture: str
    class_names: tuple[str, ...]
    transform: EvalTransform
    std: tuple[float, ...]
    img_size: int | None  # of an architecture whose input size is fixed when it is made


def read_config(folder: Path) -> ModelConfig:
    """A folder's config.json, within bounds: it may be a stranger's.

    Raises UserError for what no model of ours has, and whatever a damaged file raises.
    """
    path = folder / "config.json"
    if path.stat().st_size > MAX_CONFIG:
        raise UserError(f"{path} is larger than {MAX_CONFIG >> 20} MiB, which no model's is")
    config = json.loads(path.read_text(encoding="utf-8"))
    view, names = config["pretrained_cfg"], tuple(map(str, config["label_names"]))
    mean, std = tuple(map(float, view["mean"])), tuple(map(float, view["std"]))
    transform = EvalTransform(int(view["input_size"][1]), str(view["crop_mode"]), mean)
    if not all(0 <= value <= 1 for value in mean) or not all(0.001 <= value <= 10 for value in std):
        raise UserError(
            f"{path}: mean and std must be numbers, mean from 0 to 1 and std from 0.001 to 10, got {mean} and {std}"
        )
    if transform.crop_mode not in CROP_MODES:
        raise UserError(f"{path}: crop_mode must be one of {', '.join(CROP_MODES)}, got {transform.crop_mode!r}")
    if not 1 <= len(names) <= MAX_CLASSES or not 16 <= transform.size <= MAX_SIZE:
        raise UserError(
            f"{folder}: {len(names)} classes at {transform.size} pixels are more, or less, than any model has"
        )
    if (view["interpolation"], float(view["crop_pct"])) != ("bilinear", 1.0):
        raise UserError(
            f"{folder}: its evaluation view ({view['interpolation']}, crop_pct {view['crop_pct']}) is not one that "
            "this project trains with; predict with the model through timm, or fine-tune it here: "
            f"--set backbone.name=local-dir:{folder}"
        )
    if not timm.is_model(config["architecture"]):  # guard: known-architecture
        raise UserError(f"{path}: timm has no architecture {config['architecture']!r}")
    arguments = config.get("model_args") or {}
    img_size = int(arguments["img_size"]) if "img_size" in arguments else None
    return ModelConfig(config["architecture"], names, transform, std=std, img_size=img_size)


def load_member(folder: Path, device: torch.device, fused: bool = False) -> Member:
    """A model from its folder; `fused` for many predictions, with other parameters than the file's.

    The host program's random state stays as it was. Raises UserError for a folder that is damaged or not timm's.
    """
    try:
        config = read_config(folder)
        normalize = Normalize(config.transform.mean, config.std)
        size: dict[str, Any] = {"img_size": config.img_size} if config.img_size else {}
        classes = len(config.class_names)
        with torch.random.fork_rng(devices=[]):  # timm draws weights, which those of the file replace
            model = timm.create_model(config.architecture, pretrained=False, num_classes=classes, **size)
        (folder / "model.safetensors").open("rb").close()  # safetensors says of a file that may not be read: not there
        model.load_state_dict(load_file(folder / "model.safetensors"))  # guard: safetensors-only
        to_channels_last(model.eval())
        if fused:  # here and not on the device, whose arithmetic may be coarser; small images show the same pairs
            side = config.transform.size
            fuse(model, side if config.img_size else min(side, 128))
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        SafetensorError,
    ) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{folder}: no model can be loaded from here ({reason})") from error
    return Member(
        folder=folder,
        class_names=config.class_names,
        model=model.to(device),
        normalize=normalize.to(device),
        transform=config.transform,
        dtype=_dtype(folder, device),
    )


def _dtype(folder: Path, device: torch.device) -> torch.dtype:
    """The precision that the model was trained and scored in, where the device is fast with it."""
    if device.type != "cuda" or not (folder / "recipe.yaml").exists():
        return torch.float32
    from creature.recipe_file import load_recipe

    precision, _ = device_precision(load_recipe(folder / "recipe.yaml").precision, cpu=False)
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def choose_device(name: str) -> torch.device:
    """The named device, or for auto the best that is there: CUDA, MPS, CPU; a GPU gets ready from now on."""
    if name == "auto":
        best = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        # Several processes on a host share its GPUs.
        index = int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())
        device = torch.device("cuda", index) if best.type == "cuda" else best
        start_gpu(device)
        return device
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {name!r} cannot be used here: {first_line(error)}") from error


def use_whole_machine(name: str) -> torch.device:
    """The device of that name; takes this process's share of the cores, and keeps freed memory: for scripts alone."""
    share_cores()
    device = choose_device(name)
    keep_memory(device)
    return device


def predictor(
    members: Sequence[Member],
    blending: Blending | None = None,
    *,
    features: bool = False,
    title: str = "",
    names: Sequence[str] | None = None,
) -> Predictor:
    """The members as one, blended by the mean of their logits unless a blending is given.

    `features` also gives the input of the first member's classifier layer. When it computes, it raises UserError where
    not even one image fits into the device's memory.
    """
    first, blending = members[0], blending or Blending(np.ones(len(members)))
    combined = Predictor(
        title=title or str(first.folder),
        class_names=first.class_names,
        members=tuple(member.folder.name for member in members) if names is None else tuple(names),
        transforms=tuple(dict.fromkeys(member.transform for member in members)),
        compute=_forward_function(members, features),
        blending=blending,
        features=int(first.model.head_hidden_size) if features else None,  # type: ignore[arg-type]
        fallback=most_frequent_class(first.folder, first.class_names),
        files=tuple(member.folder / "model.safetensors" for member in members),
    )
    return with_mirroring(combined) if blending.mirror else combined


def _forward_function(members: Sequence[Member], features: bool) -> Callable[[Pixels], Computed]:
    device = next(members[0].model.parameters()).device
    largest = [2**31]  # images at once, halved where the device's memory is too small for them

    def forward(member: Member, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode(), torch.autocast(device.type, member.dtype, member.dtype != torch.float32):
            model, inputs = member.model, member.normalize(pixels)
            if not features:
                return (model(inputs).float().cpu(),)
            maps = model.forward_features(inputs)  # type: ignore[operator]
            logits, pooled = model.forward_head(maps), model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
            return logits.float().cpu(), pooled.float().cpu()

    def forward_in_chunks(member: Member, pixels: torch.Tensor) -> list[np.ndarray]:
        while True:
            try:
                chunks = [forward(member, chunk) for chunk in pixels.split(largest[0])]
                return [torch.cat(column).numpy() for column in zip(*chunks, strict=True)]
            except torch.OutOfMemoryError as error:
                largest[0] = min(largest[0], len(pixels)) // 2
                if not largest[0]:
                    raise UserError(f"device: {device} has no room for a single image; try cpu") from error

    def compute(pixels: Pixels) -> Computed:
        views = {transform: copy_to(device, torch.from_numpy(view)) for transform, view in pixels.items()}
        computed = [forward_in_chunks(member, views[member.transform]) for member in members]
        return Computed(np.stack([logits for logits, *_ in computed]), computed[0][1] if features else None)

    return compute
