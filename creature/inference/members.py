"""Members: finished folds as models that answer. M members, N images, B batch, K classes."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from creature.data.eval_transform import CROP_MODES, EvalTransform
from creature.data.folds import FoldTable, read_folds
from creature.data.normalize import Normalize
from creature.errors import UserError
from creature.inference.fuse_batchnorm import fuse
from creature.inference.predictor import Predictor
from creature.storage import file_hash
from creature.device import device_precision

# What a downloaded folder may ask for, in bytes, classes and pixels.
MAX_CONFIG, MAX_CLASSES, MAX_SIZE = 64 * 2**20, 1_000_000, 2048


@dataclass(frozen=True)
class Member:
    """One trained fold, ready to answer."""

    folder: Path
    class_names: tuple[str, ...]
    model: nn.Module
    normalize: Normalize
    transform: EvalTransform
    dtype: torch.dtype = torch.float32  # of the arithmetic


def find_folds(paths: Sequence[str]) -> list[Path]:
    """The finished folds among fold and run folders, each once, in an order that the argument order does not change."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(fold.parent for fold in path.glob("fold-*/result.json"))
        if not (path / "config.json").exists() and not inside:
            raise UserError(
                f"{path}: no finished fold here; give a run folder (runs/NAME) or a fold in it (runs/NAME/fold-0)"
            )
        found += inside or [path]
    if len({fold.resolve() for fold in found}) < len(found):
        raise UserError("a fold is given twice; a run folder stands for all of its folds")
    return sorted(found, key=lambda fold: (str(fold.parent), len(fold.name), fold.name))  # fold-10 after fold-9


def weigh(paths: Sequence[str], weights: Sequence[float] | None) -> tuple[list[Path], np.ndarray]:
    """The folds of all paths and their weights (M,); the folds of a run share the weight given for it equally."""
    folds = find_folds(paths)
    if weights is None:
        return folds, np.ones(len(folds))
    if len(weights) != len(paths) or min(weights) < 0 or not sum(weights) > 0:
        raise UserError(
            f"--weights: one number of 0 or more for each of the {len(paths)} given members, not all 0, "
            f"got {' '.join(map(str, weights))}"
        )
    share: dict[Path, float] = {}
    for path, weight in zip(paths, weights, strict=True):
        inside = find_folds([path])
        share |= dict.fromkeys(inside, weight / len(inside))
    return folds, np.array([share[fold] for fold in folds])


def is_whole_run(folds: Sequence[Path]) -> bool:
    """Whether the folds are all the finished ones of one run."""
    return list(folds) == find_folds([str(folds[0].parent)])


def short_names(folds: Sequence[Path]) -> list[str]:
    """What the folds are called: `fold-0` within one run, else by their paths."""
    return [fold.name if is_whole_run(folds) else str(fold) for fold in folds]


def load_member(folder: Path, device: torch.device, fused: bool = False) -> Member:
    """A model from its folder, strictly; `fused` for many answers, no longer with the file's own parameters.

    Raises UserError for a folder that is damaged or not timm's.
    """
    try:
        if (folder / "config.json").stat().st_size > MAX_CONFIG:
            raise UserError(f"{folder / 'config.json'} is larger than {MAX_CONFIG >> 20} MiB, which no model's is")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        view, names = config["pretrained_cfg"], tuple(map(str, config["label_names"]))
        transform = EvalTransform(int(view["input_size"][1]), str(view["crop_mode"]), tuple(map(float, view["mean"])))
        normalize = Normalize(transform.mean, tuple(map(float, view["std"])))
        if not all(0 <= each <= 1 for each in transform.mean) or not all(0.001 <= each <= 10 for each in view["std"]):
            raise UserError(
                f"{folder / 'config.json'}: mean and std must be numbers, mean from 0 to 1 and std from 0.001 to 10, "
                f"got {transform.mean} and {view['std']}"
            )
        if transform.crop_mode not in CROP_MODES:
            raise UserError(
                f"{folder / 'config.json'}: crop_mode must be one of {', '.join(CROP_MODES)}, "
                f"got {transform.crop_mode!r}"
            )
        if not 1 <= len(names) <= MAX_CLASSES or not 16 <= transform.size <= MAX_SIZE:
            raise UserError(
                f"{folder}: {len(names)} classes at {transform.size} pixels are more, or less, than any model has"
            )
        arguments = config.get("model_args") or {}
        size: dict[str, Any] = {"img_size": int(arguments["img_size"])} if "img_size" in arguments else {}
        if (view["interpolation"], float(view["crop_pct"])) != ("bilinear", 1.0):
            raise UserError(
                f"{folder}: its evaluation view ({view['interpolation']}, crop_pct {view['crop_pct']}) is not one that "
                "this project trains with; ask the model through timm"
            )
        if not timm.is_model(config["architecture"]):
            raise UserError(f"{folder / 'config.json'}: timm has no architecture {config['architecture']!r}")
        model = timm.create_model(config["architecture"], pretrained=False, num_classes=len(names), **size)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        model = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if fused:  # here and not on the device, whose arithmetic may be coarser; small images show the same pairs
            fuse(model, transform.size if size else min(transform.size, 128))
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
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UserError(f"{folder}: no model can be loaded from here ({reason})") from error
    return Member(folder, names, model.to(device), normalize.to(device), transform, _dtype(folder, device))


def _dtype(folder: Path, device: torch.device) -> torch.dtype:
    """The precision that the model was trained and scored in, where the device is fast with it."""
    if device.type != "cuda" or not (folder / "recipe.yaml").exists():
        return torch.float32
    from creature.recipe import load_recipe

    precision, _ = device_precision(load_recipe(folder / "recipe.yaml").precision, cpu=False)
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def choose_device(name: str) -> torch.device:
    """The named device, or for auto the best that is there: CUDA, MPS, CPU."""
    if name == "auto":
        best = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        # Several processes on a host share its GPUs.
        own = int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())
        return torch.device("cuda", own) if best.type == "cuda" else best
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def predictor(
    members: Sequence[Member],
    weights: np.ndarray | None = None,
    strategy: str = "logits",
    features: bool = False,
    title: str = "",
    names: Sequence[str] | None = None,
) -> Predictor:
    """The members as one; `features` asks the first of them for what its classifier sees, too.

    Raises UserError where not even one image fits into the device's memory.
    """
    device = next(members[0].model.parameters()).device
    fits = [2**31]  # images at once, halved where the device's memory is too small for them

    def forward(member: Member, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode(), torch.autocast(device.type, member.dtype, member.dtype != torch.float32):
            model, inputs = member.model, member.normalize(pixels.to(device))
            if not features:
                return (model(inputs).float().cpu(),)
            maps = model.forward_features(inputs)  # type: ignore[operator]
            logits, seen = model.forward_head(maps), model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
            return logits.float().cpu(), seen.float().cpu()

    def in_parts(member: Member, pixels: torch.Tensor) -> list[np.ndarray]:
        while True:
            try:
                parts = [forward(member, part) for part in pixels.split(fits[0])]
                return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
            except torch.OutOfMemoryError as error:
                fits[0] = min(fits[0], len(pixels)) // 2
                if not fits[0]:
                    raise UserError(f"--device: {device} has no room for a single image; try --device cpu") from error

    def compute(pixels: Mapping[EvalTransform, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        seen = {transform: torch.from_numpy(views) for transform, views in pixels.items()}
        found = [in_parts(member, seen[member.transform]) for member in members]
        return np.stack([each[0] for each in found]), found[0][1] if features else None

    return Predictor(
        title=title or str(members[0].folder),
        class_names=members[0].class_names,
        members=tuple(member.folder.name for member in members) if names is None else tuple(names),
        transforms=tuple(dict.fromkeys(member.transform for member in members)),
        compute=compute,
        weights=np.ones(len(members)) if weights is None else weights,
        strategy=strategy,
        features=int(members[0].model.head_hidden_size) if features else None,  # type: ignore[arg-type]
        fallback=most_frequent([members[0].folder]) if (members[0].folder / "result.json").exists() else "",
        files=tuple(member.folder / "model.safetensors" for member in members),
    )


@cache
def folds_of(run: Path) -> FoldTable:
    """A run's fold file, read once."""
    return read_folds(run / "folds.json")


@cache
def _rows_by_content(run: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row, content in enumerate(folds_of(run).hashes.to_pylist()):
        found.setdefault(content, []).append(row)
    return found


@cache
def held_by(folder: Path) -> np.ndarray:
    """Which rows (N,) of its run's fold file a member held out; raises UserError where they have no such fold."""
    folds, fold = folds_of(folder.parent), result_of(folder)["fold"]
    if fold >= folds.members:
        raise UserError(f"{folder / 'result.json'}: fold: {fold} is none of the run's folds")
    return folds.held_out(fold)


def relation(folders: Sequence[Path], content: str) -> str:
    """How members know an image: `seen` if one was trained on it, `selected` if an epoch was, `unseen`."""
    found = "unseen"
    for folder in folders:
        rows = _rows_by_content(folder.parent).get(content)
        if rows and not held_by(folder)[rows].all():
            return "seen"
        if rows and result_of(folder)["selected"]:
            found = "selected"
    return found


@cache
def result_of(folder: Path) -> dict[str, Any]:
    """A finished fold's result, read once."""
    from creature.training.run_folder import read_result  # here, for a prediction need not wait for the recipe's schema

    return read_result(folder)


def check_members(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The members' results; raises UserError unless all share class names and fold file."""
    results = [result_of(folder) for folder in folders]
    names = [folds_of(folder.parent).class_names for folder in folders]
    for folder, result, own in zip(folders, results, names, strict=True):
        if file_hash(folder / "model.safetensors") != result["sha256"]["model.safetensors"]:
            raise UserError(
                f"{folder / 'model.safetensors'} is not what its result.json was measured with; restore it, or train "
                "the fold again"
            )
        held_by(folder)
        if own != names[0]:
            odd = sorted(set(own) ^ set(names[0])) or ["the order"]
            raise UserError(
                f"{folder} and {folders[0]} were trained on different classes; they differ in {', '.join(odd[:10])}"
            )
        if result["folds"] != results[0]["folds"]:
            raise UserError(
                f"{folder} and {folders[0]} hold out different images; members must share one fold file "
                "(same images, folds.count, folds.repeats, folds.seed and folds.group)"
            )
    return results


def most_frequent(folders: Sequence[Path]) -> str:
    """The class with the most images in training: what a submission says of an image that cannot be read.

    Raises UserError where the result does not say how many images each class had.
    """
    path = folders[0] / "result.json"
    try:
        counts = json.loads(path.read_text(encoding="utf-8"))["class_counts"]
        names = json.loads((folders[0] / "config.json").read_text(encoding="utf-8"))["label_names"]
        return str(names[int(np.argmax(np.array(counts, dtype=np.int64)))])
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: its class_counts are no numbers of images, one a class ({error})") from error
