"""Checkpoints: resume points, kept epochs, and the finished fold.

Everything is safetensors, JSON and YAML, and weights are published: written to a temporary folder, synced, listed in
a manifest with sizes and SHA-256, and renamed. What is older is deleted only after that.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import ConfigDict, Field, NonNegativeInt
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import nn

from creature.console import warn
from creature.errors import UserError
from creature.metrics.predictions import Predictions, save_predictions
from creature.recipe import Checkpoint, Recipe
from creature.recipe_file import dump_recipe
from creature.storage import (
    file_hash,
    manifest_differences,
    sync,
    write_atomically,
    write_json,
    write_manifest,
    write_text,
)

MOST_SKIPPED = 10
LOWER = "try a lower optimizer.lr, or optimizer.clip_norm=1"


@dataclass(config=ConfigDict(strict=True, extra="forbid"))  # a resume point of another version is refused by name
class TrainingState:
    """Where a fold's training stands: the next batch, the loss so far in this epoch, and the epochs behind it."""

    epoch: NonNegativeInt = 0
    batch: NonNegativeInt = 0
    loss_sum: float = 0.0
    rows: NonNegativeInt = 0  # in loss_sum
    skipped: NonNegativeInt = 0  # steps of this epoch that were not finite
    in_a_row: NonNegativeInt = 0  # of them, without one that was
    seconds: float = 0.0
    saving_seconds: float = 0.0  # since the fold began
    best_epoch: int = Field(default=-1, ge=-1)
    start: dict[str, int] | None = None  # correct and n of the held-out rows before the first step, by a probe
    history: list[dict[str, Any]] = field(default_factory=list)

    def end_step(self, loss: float, taken: bool, size: int, ids: Sequence[str]) -> None:
        """Note a step on a batch of `size` rows, some of them `ids`; raises UserError at the tenth skipped in a row."""
        self.batch += 1
        if taken:
            self.loss_sum, self.rows, self.in_a_row = self.loss_sum + loss * size, self.rows + size, 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == MOST_SKIPPED:
            raise UserError(
                f"epoch {self.epoch + 1}: {MOST_SKIPPED} steps in a row were skipped, for their loss or gradient was "
                f"no finite number, the last on {', '.join(ids[:5])}; {LOWER}"
            )

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Note an epoch's figures (loss, correct and more) and move to the beginning of the next one.

        Raises UserError where every step was skipped.
        """
        if not self.rows:
            raise UserError(f"epoch {self.epoch + 1}: every step was skipped, for none had a finite loss; {LOWER}")
        self.history.append({"epoch": self.epoch + 1, **row})
        if self.best_epoch < 0 or row["correct"] > self.history[self.best_epoch]["correct"]:
            self.best_epoch = self.epoch
        self.epoch, self.batch, self.loss_sum, self.rows, self.skipped = self.epoch + 1, 0, 0.0, 0, 0
        self.seconds = 0.0


@contextmanager
def _timed(position: TrainingState) -> Iterator[None]:
    began = time.monotonic()
    yield
    position.saving_seconds += time.monotonic() - began


def write_folder_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder, then give it its name; after a crash it is there whole, or not at all.

    Raises UserError, and leaves nothing behind, where the disk is full or may not be written.
    """
    part = folder.parent / f".{folder.name}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        write_manifest(part)
        for file in (*part.iterdir(), part):
            sync(file)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(part, folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder}: cannot be written: {reason}; what was saved before is kept; free space, and --resume goes on"
        ) from error


def verifies(folder: Path) -> bool:
    """Whether every file of a published folder is the one that its manifest names."""
    return not manifest_differences(folder)


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's tensors, contiguous and with the metadata that transformers asks for.

    Raises UserError for a value that is no finite number: such weights are of no use, and never replace better ones.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise UserError(
            f"{len(broken)} tensors of the model, such as {broken[0]}, hold values that are no finite number; nothing "
            f"of it is saved; {LOWER}"
        )
    save_file(tensors, path, metadata={"format": "pt"})


def save_state(
    fold: Path,
    steps: int,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: TrainingState,
    average: ModelEmaV3 | None = None,
) -> None:
    """Publish a resume point, named by its place (`steps` and an end an epoch), and then delete all older but one.

    `average`: the model's moving average, if it has one.
    """
    step, scaler = position.epoch * (steps + 1) + position.batch, accelerator.scaler
    model = accelerator.unwrap_model(model)

    def write(part: Path) -> None:
        save_weights(part / "model.safetensors", model)
        if average:
            save_weights(part / "average.safetensors", average.module)
        state = optimizer.state_dict()["state"]
        tensors = {
            f"{index}.{name}": value.detach().cpu().contiguous()
            for index, slots in state.items()
            for name, value in slots.items()
            if value is not None
        }
        save_file(tensors, part / "optimizer.safetensors")
        progress = asdict(position) | {
            "scaler": scaler.state_dict() if scaler else None,
            "threads": torch.get_num_threads(),
        }
        (part / "state.json").write_text(json.dumps(progress, indent=1) + "\n")

    # A place has one state: where it is kept already, replacing it would only risk it.
    if not verifies(fold / "state" / f"step-{step:08d}"):
        with _timed(position):
            write_folder_atomically(fold / "state" / f"step-{step:08d}", write)
    try:
        write_history(fold, position.history)
    except OSError as error:  # a log; the resume point holds the same rows
        warn(f"{fold / 'history.jsonl'}: {error.strerror}; the training goes on")
    # One of a later step is damaged: this training went on from one before it.
    points = _steps(fold)
    for old in (points.keys() - {step}) - {max((other for other in points if other < step), default=step)}:
        shutil.rmtree(points[old])


def load_state(
    fold: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, average: ModelEmaV3 | None = None
) -> TrainingState:
    """Restore all in place from the newest resume point that verifies; from nothing, the beginning.

    Raises UserError where that point is not this model's.
    """
    for _, folder in sorted(_steps(fold).items(), reverse=True):
        if not verifies(folder):
            warn(f"{folder} is damaged; the resume point before it is used")
            continue
        with _of_this_model(folder):
            position, threads, scaler_state = _read_progress(folder)
            model.load_state_dict(load_file(folder / "model.safetensors"))
            if average:
                average.module.load_state_dict(load_file(folder / "average.safetensors"))
            _load_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))
        if threads != torch.get_num_threads() and not torch.cuda.is_available():
            warn(f"{fold} was begun with {threads} threads and goes on with {torch.get_num_threads()}: bits may differ")
        if scaler and scaler_state:
            scaler.load_state_dict(scaler_state)
        return position
    return TrainingState()


def has_state(fold: Path) -> bool:
    """Whether there is a resume point to go on from."""
    return any(map(verifies, _steps(fold).values()))


@contextmanager
def _of_this_model(folder: Path) -> Iterator[None]:
    """Say in a sentence that a resume point is whole, but not one of this model and version."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{folder}: whole, and yet no resume point of this model and version ({reason}); "
            "go on with the version that wrote it, or start another run with --out DIR"
        ) from error


def _read_progress(folder: Path) -> tuple[TrainingState, int, Any]:
    """Where a resume point stands, with how many threads it was computed, and the state of the gradient's scaler."""
    said = json.loads((folder / "state.json").read_text())
    threads, scaler = said.pop("threads"), said.pop("scaler")
    position = TrainingState(**said)
    figures = [row.get(name) for row in position.history for name in ("correct", "seconds", "loss")]
    if position.epoch != len(position.history) or not all(isinstance(figure, int | float) for figure in figures):
        raise ValueError("its history is not one row an epoch")
    if position.best_epoch >= position.epoch:
        raise ValueError("its best epoch is still to come")
    return position, threads, scaler


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        # The parameter's memory layout, for a fused step walks both in memory order.
        like = parameters[int(index)]
        value = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape and tensor.ndim else tensor
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def kept_epoch(fold: Path, epoch: int) -> Path:
    """Folder of a kept epoch's weights and held-out predictions; epochs are named from 1."""
    return fold / "kept" / f"epoch-{epoch + 1:04d}"


def place(source: Path, target: Path) -> None:
    """Give a file a second name, without a second copy on disk where the file system can."""
    with write_atomically(target) as part:
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)


def write_history(fold: Path, history: list[dict[str, Any]]) -> None:
    """One JSON line an epoch; written whole, so that a resumed run has each epoch once."""
    write_text(fold / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))


def _steps(fold: Path) -> dict[int, Path]:
    """The resume points by their step; whatever else lies beside them is not ours."""
    return _numbered(fold / "state", r"step-(\d{8,})")


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    found = {path: re.fullmatch(pattern, path.name) for path in folder.glob("*")}
    return {int(match[1]): path for path, match in found.items() if match and path.is_dir()}


def keep_epoch(
    fold: Path, model: nn.Module, predictions: Predictions, position: TrainingState, checkpoint: Checkpoint, epochs: int
) -> None:
    """Publish the epoch just ended, weights and held-out predictions, if it is the best, the last or asked for."""
    done, every = position.epoch - 1, checkpoint.every_epochs
    if done == position.best_epoch or done == epochs - 1 or (every and (done + 1) % every == 0):

        def write(part: Path) -> None:
            save_weights(part / "model.safetensors", model)
            save_predictions(part / "held_out.safetensors", predictions)

        with _timed(position):
            write_folder_atomically(kept_epoch(fold, done), write)


def prune_epochs(fold: Path, position: TrainingState, checkpoint: Checkpoint) -> None:
    """Delete kept epochs that are neither asked for, nor the best or the last of any resume point that is there."""
    every, needed = checkpoint.every_epochs, {position.best_epoch, position.epoch - 1}
    for point in filter(verifies, _steps(fold).values()):
        with _of_this_model(point):
            there, *_ = _read_progress(point)
        needed |= {there.best_epoch, there.epoch - 1}
    for number, folder in _numbered(fold / "kept", r"epoch-(\d{4,})").items():
        if number - 1 not in needed and not (every and number % every == 0):
            shutil.rmtree(folder)


def finish_fold(fold: Path, recipe: Recipe, config: dict[str, Any], result: dict[str, Any]) -> None:
    """Turn a trained fold into a timm folder with its result; result.json comes last and says that all is there."""
    kept = kept_epoch(fold, result["epoch"] - 1)
    for name in ("model.safetensors", "held_out.safetensors"):
        place(kept / name, fold / name)
    write_json(fold / "config.json", config)
    write_text(fold / "recipe.yaml", dump_recipe(recipe))
    hashes = {name: file_hash(fold / name) for name in ("model.safetensors", "held_out.safetensors", "config.json")}
    write_json(fold / "result.json", result | {"sha256": hashes})
    shutil.rmtree(fold / "state", ignore_errors=True)  # twice the weights' size, and of no further use
