"""Faults put into a program that runs, and what it does noted, at the seams that its modules document.

`creature.training.loop` looks up `train_step` and `predict` at each call, and gives what follows the batch, or the
data, by name. Each helper wraps what stands there, so that several add up; steps are counted from 1, from the patch on.
"""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from creature.data import scan
from creature.data.augment import Augmentation
from creature.data.decode import Decoded, Encoded
from creature.data.loader import Batch
from creature.errors import Interrupted
from creature.training import checkpoint, distributed, loop, train_data
from creature.training.learner import Learner
from helpers.runs import start

TakeStep = Callable[..., torch.Tensor]  # takes the step; other requests than the loop's (`stop`, `save`) by name


# Any function


@dataclass(frozen=True)
class Call:
    """What a function was called with."""

    args: tuple[Any, ...]
    options: dict[str, Any]


def note_calls(patch: pytest.MonkeyPatch, owner: object, name: str) -> list[Call]:
    """The calls of a function, a method or a class, which are passed on."""
    original, calls = getattr(owner, name), []

    def noted(*args: Any, **options: Any) -> Any:
        calls.append(Call(args, options))
        return original(*args, **options)

    patch.setattr(owner, name, noted)
    return calls


def fail_in(patch: pytest.MonkeyPatch, owner: object, name: str, error: BaseException | type[BaseException]) -> None:
    """Have a function raise an error, whatever it is called with."""

    def failing(*_: Any, **__: Any) -> Any:
        raise error

    patch.setattr(owner, name, failing)


def forbid(patch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Fail the test where a function is called."""
    patch.setattr(owner, name, lambda *_, **__: pytest.fail(f"{name} is called"))


@dataclass(frozen=True)
class DeadlyTable:
    """Crashes a worker at one image; it reaches workers that share nothing with the test."""

    dataset: Dataset
    id: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        if parent_process() and self.dataset[row]["id"] == self.id:
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.dataset[row]


def kill_at_check(patch: pytest.MonkeyPatch, id: str) -> None:
    """Have the check of an image crash its process."""
    check: Any = scan.check_images
    patch.setattr(
        scan, "check_images", lambda dataset, *rest, **kwargs: check(DeadlyTable(dataset, id), *rest, **kwargs)
    )


@dataclass(frozen=True)
class DeadlyAugmentation:
    """Crashes its process at an image of one size; it reaches workers that share nothing with the test."""

    augmentation: Augmentation
    size: tuple[int, int]

    def __call__(self, image: Encoded | Decoded, seed: int) -> torch.Tensor:
        if image.size == self.size:
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.augmentation(image, seed)


def kill_at_size(patch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    """Have a run's augmentations crash their process at an image of this size."""
    augmentations = train_data.epoch_augmentations

    def deadly(*args: Any) -> list[Augmentation]:
        return [DeadlyAugmentation(augmentation, size) for augmentation in augmentations(*args)]

    patch.setattr(train_data, "epoch_augmentations", deadly)


# Steps


@dataclass(frozen=True)
class Step:
    """A step that is about to be taken."""

    number: int  # from 1
    learner: Learner
    batch: Batch


def replace_steps(patch: pytest.MonkeyPatch, replacement: Callable[[Step, TakeStep], torch.Tensor]) -> None:
    """Call `replacement(step, take)` in the place of each step; `take()` takes it, `take(stop=True)` with a request."""
    train_step, numbers = loop.train_step, count(1)

    def replaced(accelerator, learner, batch, **request):
        def take(**changes: Any) -> torch.Tensor:
            return train_step(accelerator, learner, batch, **(request | changes))

        return replacement(Step(next(numbers), learner, batch), take)

    patch.setattr(loop, "train_step", replaced)


def before_steps(patch: pytest.MonkeyPatch, act: Callable[[Step], object]) -> None:
    """Do something before each step."""

    def replacement(step: Step, take: TakeStep) -> torch.Tensor:
        act(step)
        return take()

    replace_steps(patch, replacement)


def note_rows(patch: pytest.MonkeyPatch, seen: list[tuple[int, int]]) -> None:
    """Note (epoch, row) of every row that a step sees."""
    before_steps(patch, lambda step: seen.extend((step.learner.state.epoch, int(row)) for row in step.batch.rows))


def note_weights(patch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The model's weights and statistics after each step."""
    states = []

    def replacement(step: Step, take: TakeStep) -> torch.Tensor:
        result = take()
        states.append({name: value.clone() for name, value in step.learner.model.state_dict().items()})
        return result

    replace_steps(patch, replacement)
    return states


def at_step(patch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Do something just before one step."""
    before_steps(patch, lambda step: step.number == number and act())


def interrupt_at_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """Raise KeyboardInterrupt in the place of a step."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    at_step(patch, number, interrupt)


def signal_at_step(patch: pytest.MonkeyPatch, number: int, what: signal.Signals) -> None:
    """Have the process get a signal just before a step."""
    at_step(patch, number, lambda: os.kill(os.getpid(), what))


def ask_at_step(patch: pytest.MonkeyPatch, number: int, **requests: bool) -> None:
    """Have this process ask for something (`stop`, `save`) with a step."""
    replace_steps(patch, lambda step, take: take(**requests) if step.number == number else take())


def stop_after_steps(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the next start of a training stop after so many steps, as a signal does, and not before."""
    replace_steps(patch, lambda step, take: take(stop=step.number == steps))


def start_until_step(steps: int, recipe: Path, out: Path, *settings: str, resume: bool = False) -> None:
    """Start a training that stops after so many steps, as a signal has it."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after_steps(patch, steps)
        with pytest.raises(Interrupted):
            start(recipe, out, *settings, resume=resume)


def spoil_loss_at_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """Have the loss of a step be no number."""

    def replacement(step: Step, take: TakeStep) -> torch.Tensor:
        if step.number != number:
            return take()
        row_loss = step.learner.row_loss
        step.learner.row_loss = lambda logits, targets: row_loss(logits, targets) * float("nan")
        try:
            return take()
        finally:
            step.learner.row_loss = row_loss

    replace_steps(patch, replacement)


def spoil_gradient_at_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """Have a gradient of a step be infinite."""

    def replacement(step: Step, take: TakeStep) -> torch.Tensor:
        if step.number != number:
            return take()
        first = next(step.learner.model.parameters())
        handle = first.register_hook(lambda gradient: gradient * float("inf"))
        try:
            return take()
        finally:
            handle.remove()

    replace_steps(patch, replacement)


def skip_steps(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Have every step be skipped, as if no loss were finite; the ids of their images."""
    result, ids = torch.tensor([float("nan"), 1.0, 0.0, 0.0]), []  # as train_step's: loss, skipped, stop, save

    def replacement(step: Step, take: TakeStep) -> torch.Tensor:
        ids.append(step.batch.ids)
        return result

    replace_steps(patch, replacement)
    return ids


def fail_in_loss(patch: pytest.MonkeyPatch, error: BaseException, room: int = 0) -> None:
    """Have the loss of every step raise an error, as a device does that has room for so many images at once."""

    def act(step: Step) -> None:
        row_loss = step.learner.row_loss

        def failing(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            if len(logits) > room:
                raise error
            return row_loss(logits, targets)

        step.learner.row_loss = failing

    before_steps(patch, act)


# Predictions


def at_prediction(patch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Do something just before held-out rows are predicted for the first, second, ... time (`number`)."""
    predict, numbers = loop.predict, count(1)

    def replaced(*args: Any, **options: Any) -> np.ndarray:
        if next(numbers) == number:
            act()
        return predict(*args, **options)

    patch.setattr(loop, "predict", replaced)


# The process and its disk


def scale_losses(patch: pytest.MonkeyPatch, factor: float) -> list[torch.amp.GradScaler]:
    """Have the next starts scale their losses, as fp16 does on a GPU; the scalers that they get."""
    start_accelerator, scalers = distributed.start_accelerator, []

    def started(*args: Any, **options: Any) -> Any:
        accelerator = start_accelerator(*args, **options)
        scalers.append(torch.amp.GradScaler("cpu", init_scale=factor))
        accelerator.scaler = scalers[-1]
        return accelerator

    patch.setattr(distributed, "start_accelerator", started)
    return scalers


def fill_disk_at_folder(patch: pytest.MonkeyPatch, number: int, room: int = 20_000) -> None:
    """Have all checkpoints' folders from the first, second, ... on (`number`) find no `room` for files, in bytes."""
    write, numbers = checkpoint.write_folder_atomically, count(1)

    @contextmanager
    def fills_up(folder: Path) -> Iterator[Path]:
        with file_size_limit(room) if next(numbers) >= number else nullcontext(), write(folder) as temporary:
            yield temporary

    patch.setattr(checkpoint, "write_folder_atomically", fills_up)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes, which is an OSError as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
