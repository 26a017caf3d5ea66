"""Members: finished folds as models that answer. M members, N images, B batch, K classes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from creature.images.decode import BadImage, decode, read
from creature.images.folds import FoldFile, read_folds
from creature.images.manifest import content_hash
from creature.images.views import evaluation_view
from creature.learning.loop import Normalize
from creature.learning.runs import read_result
from creature.terminal import UserError, progress


@dataclass(frozen=True)
class Member:
    """One trained fold, ready to answer."""

    folder: Path
    names: tuple[str, ...]
    model: nn.Module
    normalize: Normalize
    seen_as: tuple[int, str, tuple[float, ...]]  # size, fit, mean: what makes its evaluation view


class Answers(NamedTuple):
    """What all members say to a batch of images; `broken`: why, by position, where none could see."""

    rows: range
    hashes: list[str]  # of the content, empty where there was none
    broken: dict[int, str]
    logits: np.ndarray  # (M, B, K)


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
    return sorted(found, key=str)


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


def load_member(folder: Path, device: torch.device) -> Member:
    """A model from its folder, strictly; raises UserError for a folder that is damaged or not timm's."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        view, names = config["pretrained_cfg"], tuple(map(str, config["label_names"]))
        seen_as = (int(view["input_size"][1]), str(view["crop_mode"]), tuple(map(float, view["mean"])))
        normalize = Normalize(seen_as[2], tuple(map(float, view["std"])))
        size: dict[str, Any] = {"img_size": int(config["model_args"]["img_size"])} if config.get("model_args") else {}
        if not timm.is_model(config["architecture"]):
            raise UserError(f"{folder / 'config.json'}: timm has no architecture {config['architecture']!r}")
        model = timm.create_model(config["architecture"], pretrained=False, num_classes=len(names), **size)
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UserError(f"{folder}: no model can be loaded from here ({reason})") from None
    model = model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Member(folder, names, model, normalize.to(device), seen_as)


def choose_device(name: str) -> torch.device:
    """The named device, or for auto the best that is there: CUDA, MPS, CPU."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: {name!r} cannot be used here: {str(error).splitlines()[0]}") from None


@torch.inference_mode()
def ask(
    members: Sequence[Member], image_of: Callable[[int], Mapping[str, Any]], count: int, batch_size: int, title: str
) -> Iterator[Answers]:
    """Answers of all members to `count` images, in order; a batch is decoded while the last is computed.

    A picture that cannot be decoded keeps its place in the batch, black, so that it changes no other answer.
    """
    views = {member.seen_as: evaluation_view(*member.seen_as) for member in members}
    device = next(members[0].model.parameters()).device

    def prepare(row: int) -> tuple[str, str, list[torch.Tensor]]:
        data, reason, picture = b"", "", np.zeros((1, 1, 3), dtype=np.uint8)
        try:
            data = read(image_of(row))
            picture = decode(data)
        except BadImage as error:
            reason = str(error)
        return content_hash(data) if data else "", reason, [view(Image.fromarray(picture)) for view in views.values()]

    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    with progress() as bar, ThreadPoolExecutor() as pool:
        task = bar.add_task(title, total=count, speed="")
        ahead: list[list[Future[Any]]] = []
        for i, rows in enumerate(batches):
            for batch in batches[i + len(ahead) : i + 2]:
                ahead.append([pool.submit(prepare, row) for row in batch])
            hashes, reasons, seen = zip(*(future.result() for future in ahead.pop(0)), strict=True)
            pixels = {
                key: torch.stack(of_view).to(device)
                for key, of_view in zip(views, zip(*seen, strict=True), strict=True)
            }
            logits = [m.model(m.normalize(pixels[m.seen_as])).float().cpu().numpy() for m in members]
            broken = {at: reason for at, reason in enumerate(reasons) if reason}
            yield Answers(rows, list(hashes), broken, np.stack(logits))
            bar.update(task, advance=len(rows), speed=f"{bar.tasks[task].speed or 0:.0f}")


@cache
def folds_of(run: Path) -> FoldFile:
    """A run's fold file, read once."""
    return read_folds(run / "folds.json")


@cache
def _folds_by_content(run: Path) -> dict[str, set[int]]:
    folds, found = folds_of(run), {}
    for content, fold in zip(folds.hashes, folds.fold.tolist(), strict=True):
        found.setdefault(content, set()).add(fold)
    return found


def relation(folders: Sequence[Path], content: str) -> str:
    """How members know a picture: `seen` if one was trained on it, `selected` if an epoch was, `unseen`."""
    found = "unseen"
    for folder in folders:
        result = result_of(folder)
        folds = _folds_by_content(folder.parent).get(content, set())
        if folds - {result["fold"]}:
            return "seen"
        if folds and result["selected"]:
            found = "selected"
    return found


@cache
def result_of(folder: Path) -> dict[str, Any]:
    return read_result(folder)


def check_members(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The members' results; raises UserError unless all share class names and fold file."""
    results = [result_of(folder) for folder in folders]
    names = [folds_of(folder.parent).names for folder in folders]
    for folder, result, own in zip(folders, results, names, strict=True):
        if own != names[0]:
            odd = sorted(set(own) ^ set(names[0])) or ["the order"]
            raise UserError(
                f"{folder} and {folders[0]} were trained on different classes; they differ in {', '.join(odd[:10])}"
            )
        if result["folds"] != results[0]["folds"]:
            raise UserError(
                f"{folder} and {folders[0]} hold out different images; members must share one fold file "
                "(same images, folds.count, folds.seed and folds.group)"
            )
    return results


def most_frequent(folders: Sequence[Path]) -> str:
    """The class with the most images in training: what a submission says of a picture that cannot be read."""
    counts = result_of(folders[0])["class_counts"]
    names = json.loads((folders[0] / "config.json").read_text(encoding="utf-8"))["label_names"]
    return str(names[int(np.argmax(counts))])
