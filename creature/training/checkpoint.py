"""Checkpoints: resume points and kept epochs.

Everything is safetensors and JSON, written to a temporary folder, synced, listed in a manifest with sizes and SHA-256,
and renamed. What is older is deleted only after that.

A test that injects a fault replaces `checkpoint.save_state`, `checkpoint.keep_epoch` or
`checkpoint.write_folder_atomically`, which are looked up at each call, by a function of the same signature.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from creature.console import warn
from creature.errors import BrokenError, UserError, first_line
from creature.metrics.predictions import Predictions, save_predictions
from creature.recipe import Checkpoint, Optimizer
from creature.run import kept_epoch
from creature.storage import manifest_differences, readable_by_umask, sync, write_manifest, write_text
from creature.training.learner import Learner
from creature.training.optimizer import load_optimizer_tensors, optimizer_tensors
from creature.training.training_state import LOWER_RATE, EpochResult, TrainingState

EMA_FILE = "average.safetensors"  # of a resume point


@dataclass(frozen=True)
class Snapshot:
    """A learner at one moment, in the host's memory: it is written while the training goes on."""

    step: int  # of the fold; an epoch's end is a step, too
    state: TrainingState
    model: Mapping[str, torch.Tensor]  # what learns
    ema: Mapping[str, torch.Tensor] | None
    saved: Mapping[str, torch.Tensor]  # what an epoch's checkpoint holds
    optimizer: Mapping[str, torch.Tensor]
    last: bool  # all epochs are over


def take_snapshot(learner: Learner, accelerator: Accelerator) -> Snapshot:
    """Copy what checkpoints hold; raises UserError for weights that are not finite."""
    state, model = learner.state, accelerator.unwrap_model(learner.model)
    weights = {module: host_weights(module) for module in (model, learner.saved_model)}
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
    return Snapshot(
        step=state.epoch * (len(learner.batch_sizes) + 1) + state.batch,
        state=replace(state, threads=torch.get_num_threads(), scaler=scaler),
        model=weights[model],
        ema=weights[learner.ema.module] if learner.ema else None,
        saved=weights[learner.saved_model],
        optimizer=optimizer_tensors(learner.optimizer, model),
        last=state.epoch == learner.epochs,
    )


@contextmanager
def write_folder_atomically(folder: Path) -> Iterator[Path]:
    """A temporary folder for the block to fill, renamed at its end: after a crash, all of it is there or nothing.

    Raises BrokenError, and leaves nothing behind, where the disk is full or may not be written.
    """
    temporary = folder.parent / f".{folder.name}.part"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        write_manifest(temporary)
        for file in (*temporary.iterdir(), temporary):
            sync(file)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise BrokenError(
            f"{folder}: cannot be written: {reason}; what was saved before is kept; free space, and --resume goes on"
        ) from error


def verifies(folder: Path) -> bool:
    """Whether every file of a folder is the one that its manifest names."""
    return not manifest_differences(folder)


def host_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a model's tensors in the host's memory, contiguous and independent, as safetensors asks for.

    Raises UserError for a value that is no finite number: such weights are of no use, and never replace better ones.
    """
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}
    # guard: finite-weights
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise UserError(
            f"{len(broken)} tensors of the model, such as {broken[0]}, hold values that are no finite number; nothing "
            f"of it is saved; {LOWER_RATE}"
        )
    return tensors


def save_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write tensors of a model, with the metadata that transformers asks for."""
    with readable_by_umask(path):
        save_file(dict(weights), path, metadata={"format": "pt"})


def save_state(folder: Path, snapshot: Snapshot) -> None:
    """Write a resume point to a fold's folder, and then delete all older ones but one.

    Raises BrokenError where the disk is full.
    """
    state, step = snapshot.state, snapshot.step
    point = folder / "state" / f"step-{step:08d}"
    # A step has one state: where it is saved already, replacing it would only risk it.
    if not verifies(point):  # guard: saved-point
        with write_folder_atomically(point) as temporary:
            save_weights(temporary / "model.safetensors", snapshot.model)
            if snapshot.ema:
                save_weights(temporary / EMA_FILE, snapshot.ema)
            save_weights(temporary / "optimizer.safetensors", snapshot.optimizer)
            (temporary / "state.json").write_text(json.dumps(asdict(state), indent=1) + "\n")
    try:
        write_history(folder, state.history)
    # guard: lost-log
    except OSError as error:  # a log; the resume point holds the same rows
        warn(f"{folder / 'history.jsonl'}: {error.strerror}; the training goes on")
    # A point of a later step is damaged: this training went on from one before it.
    points = _resume_points(folder)
    # guard: newer-point-goes
    for other in points.keys() - {step, max((earlier for earlier in points if earlier < step), default=step)}:
        shutil.rmtree(points[other])


def load_state(folder: Path, learner: Learner, accelerator: Accelerator, *, settings: Optimizer) -> bool:
    """Restore the learner in place from the newest resume point that verifies; whether there is one.

    `settings` are those that the learner's optimizer was built with. Raises BrokenError where that point is not this
    model's.
    """
    model = accelerator.unwrap_model(learner.model)
    for _, point in sorted(_resume_points(folder).items(), reverse=True):
        if not verifies(point):
            warn(f"{point} is damaged; the resume point before it is used")
            continue
        with _of_this_model(point):
            state = _read_state(point)
            model.load_state_dict(load_file(point / "model.safetensors"))
            if learner.ema:
                learner.ema.module.load_state_dict(load_file(point / EMA_FILE))
            tensors = load_file(point / "optimizer.safetensors")
            load_optimizer_tensors(learner.optimizer, model, settings, tensors=tensors)
        if state.threads != torch.get_num_threads() and not torch.cuda.is_available():
            warn(
                f"{folder} was begun with {state.threads} threads and goes on with {torch.get_num_threads()}: "
                "bits may differ"
            )
        if accelerator.scaler and state.scaler:
            accelerator.scaler.load_state_dict(state.scaler)
        # guard: state-of-earlier-version
        if not state.rows and state.batch > state.skipped:  # an older resume point, which did not count them
            state.rows = sum(learner.batch_sizes[: state.batch])
        learner.state = state
        return True
    return False


def has_state(folder: Path) -> bool:
    """Whether a fold's folder has a resume point to go on from."""
    return any(map(verifies, _resume_points(folder).values()))


@contextmanager
def _of_this_model(point: Path) -> Iterator[None]:
    """Raise BrokenError for a resume point that verifies, but is not of this model and version."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise BrokenError(
            f"{point}: whole, and yet no resume point of this model and version ({first_line(error)}); "
            "go on with the version that wrote it, or start another run with --out DIR"
        ) from error


def _read_state(point: Path) -> TrainingState:
    return TypeAdapter(TrainingState).validate_json((point / "state.json").read_bytes())


def write_history(folder: Path, history: list[EpochResult]) -> None:
    """One JSON line an epoch; all of them at once, so that a resumed run has each epoch once."""
    rows = [{name: value for name, value in asdict(result).items() if value is not None} for result in history]
    write_text(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _resume_points(folder: Path) -> dict[int, Path]:
    """The resume points by their step; whatever else lies beside them is not ours."""
    return _numbered(folder / "state", r"step-(\d{8,})")


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    matches = {path: re.fullmatch(pattern, path.name) for path in folder.glob("*")}
    return {int(match[1]): path for path, match in matches.items() if match and path.is_dir()}


def keep_epoch(folder: Path, snapshot: Snapshot, predictions: Predictions, *, settings: Checkpoint) -> None:
    """Write weights and held-out predictions of the epoch just ended, if it is the best, the last or asked for."""
    state = snapshot.state
    epoch, every = state.epoch - 1, settings.every_epochs  # guard: nothing-kept
    if not (snapshot.last or epoch == state.best_epoch or (every and state.epoch % every == 0)):
        return
    with write_folder_atomically(kept_epoch(folder, epoch)) as temporary:
        save_weights(temporary / "model.safetensors", snapshot.saved)
        save_predictions(temporary / "held_out.safetensors", predictions)


def prune_epochs(folder: Path, state: TrainingState, settings: Checkpoint) -> None:
    """Delete kept epochs that are neither asked for, nor the best or the last of any resume point that is there."""
    every, needed = settings.every_epochs, {state.best_epoch, state.epoch - 1}
    for point in filter(verifies, _resume_points(folder).values()):
        with _of_this_model(point):
            saved = _read_state(point)
        needed |= {saved.best_epoch, saved.epoch - 1}  # guard: needed-epochs
    for number, kept in _numbered(folder / "kept", r"epoch-(\d{4,})").items():
        if number - 1 not in needed and not (every and number % every == 0):
            shutil.rmtree(kept)
