"""The loop's parts: the steps of an epoch, one step, and the predictions of rows. B batch, K classes.

Losses are summed over a global batch and divided by its size, so any number of processes and parts gives the same step.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from creature.console import progress, warn
from creature.data.loader import Batch, FeatureDataset, ImageDataset, derive_seed
from creature.data.workers import load_batches
from creature.errors import Interrupted, UserError
from creature.training import distributed
from creature.training.checkpoint import TrainingState
from creature.training.losses import RowLoss
from creature.training.signals import Stop

Mix = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


See = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Learner:
    """A fold's model and what its steps need, restored to where its training stands."""

    model: nn.Module  # what learns, prepared by Accelerate
    average: ModelEmaV3 | None  # of what learns, where there is one
    whole: nn.Module  # what is saved: either, or all of a network whose classifier alone learns
    optimizer: torch.optim.Optimizer
    normalize: nn.Module
    see: See
    row_loss: RowLoss
    position: TrainingState
    seed: tuple[int, int]  # the recipe's, and the fold
    rate: Callable[[float], float]  # the learning rate after so many epochs
    parts: int  # in which a process computes its share of a batch
    clip_norm: float | None
    freeze_batch_stats: bool
    save_minutes: float

    @property
    def judged(self) -> nn.Module:
        """What answers for held-out rows."""
        return self.average.module if self.average else self.model

    @cached_property
    def buffers(self) -> list[list[torch.Tensor]]:
        """The model's buffers by type, as they lie in memory: tensors of one type are copied together."""
        flat = [buffer.as_strided((buffer.numel(),), (1,)) for buffer in self.model.buffers()]
        return [[buffer for buffer in flat if buffer.dtype == kind] for kind in {buffer.dtype for buffer in flat}]


def make_see(normalize: nn.Module, mix: Mix | None) -> See:
    """uint8 pixels and labels (B,) or (B, K) -> the network's input, and labels or mixed targets (B, K)."""

    def see(pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return mix(normalize(pixels), labels) if mix else (normalize(pixels), labels)

    return see


def _refuse_bad(batch: Batch) -> None:
    for name, reason in batch.bad.items():
        raise UserError(f"{name}: {reason}; it was readable when the run began; restore it and go on with --resume")


@torch.inference_mode()
def predict(
    accelerator: Accelerator,
    model: nn.Module,
    normalize: nn.Module,
    pictures: ImageDataset | FeatureDataset,
    rows: np.ndarray,
    batch_size: int,
    workers: int,
    title: str = "held-out rows",
) -> np.ndarray:
    """Answers (N, K) of the rows, in their order, on every process; each row is predicted by exactly one process."""
    model = accelerator.unwrap_model(model).eval()
    if accelerator.num_processes > 1:
        broadcast(list(model.buffers()))  # BatchNorm's statistics are the main process's, as in the checkpoint
    mine = np.arange(len(rows))[accelerator.process_index :: accelerator.num_processes]
    chunks = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    found: list[tuple[np.ndarray, np.ndarray]] = []
    items = [[(int(rows[i]), 0) for i in chunk] for chunk in chunks]
    with progress() as bar, load_batches(pictures, items, workers) as batches:
        task = bar.add_task(title, total=len(mine), speed="")
        for chunk, batch in zip(chunks, batches, strict=True):
            _refuse_bad(batch)
            pixels = normalize(batch.pixels.to(accelerator.device, non_blocking=True))
            # Not the compiled call, but what predict.py computes; and a last batch may be of any size.
            found.append((chunk, model.forward(pixels).float().cpu().numpy()))
            bar.update(task, advance=len(chunk), speed=f"{bar.tasks[task].speed or 0:.0f}")
    if accelerator.num_processes > 1:
        found = gather_object(found)
    logits = np.full((len(rows), found[0][1].shape[1]), np.nan, dtype=np.float32)
    filled = np.zeros(len(rows), dtype=np.int64)
    for chunk, values in found:
        logits[chunk] = values
        filled[chunk] += 1
    assert (filled == 1).all(), "a row was predicted more than once, or not at all"
    if not np.isfinite(logits).all():
        raise UserError("the model's answers are no finite numbers; try a lower optimizer.lr, or optimizer.clip_norm=1")
    return logits


def train_mode(model: nn.Module, freeze_batch_stats: bool) -> None:
    """Training mode, with BatchNorm on its pretrained statistics if asked."""
    model.train()
    if freeze_batch_stats:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def train_epoch(
    accelerator: Accelerator,
    learner: Learner,
    batches: Iterator[Batch],
    sizes: Sequence[int],
    stop: Stop,
    save: Callable[[], None],
    title: str,
) -> None:
    """The steps of an epoch that are left, a resume point every few minutes, and one where a signal asks to stop.

    `sizes` are those of all global batches of the epoch.
    """
    position, (_, fold) = learner.position, learner.seed
    began, saved = time.monotonic() - position.seconds, time.monotonic()
    every, alone = read_every(accelerator.device), accelerator.num_processes == 1
    unread: list[tuple[torch.Tensor, list[str]]] = []
    train_mode(learner.model, learner.freeze_batch_stats)
    stop.at_once = False
    accelerator.wait_for_everyone()  # the main process may still be writing
    with progress() as bar:
        task = bar.add_task(title, total=sum(sizes), speed="")
        for number in range(position.batch, len(sizes)):
            batch, lr = next(batches), learner.rate(position.epoch + number / len(sizes))
            seed_step(accelerator.device, *learner.seed, position.epoch, number)
            due = accelerator.is_main_process and time.monotonic() - saved >= 60 * learner.save_minutes
            with distributed.waiting(accelerator, distributed.WAIT_IN_STEP, distributed.WAIT_IN_FOLD):
                step = train_step(accelerator, learner, batch, sizes[number], lr, stop.asked, due)
                if learner.average:
                    learner.average.update(learner.model, position.epoch * len(sizes) + number + 1)
                unread.append((step, batch.ids))
                # Several processes read after the same step, or they would not stop after the same one.
                if len(unread) < every and number + 1 < len(sizes) and not (alone and stop.asked):
                    continue
                stops, saves = read_steps(unread, position, sizes)
            position.seconds = time.monotonic() - began
            bar.update(task, completed=sum(sizes[: position.batch]), speed=f"{bar.tasks[task].speed or 0:.0f}")
            if stops or saves:
                save()
                accelerator.wait_for_everyone()
                saved = time.monotonic()
            if stops:
                where = f"step {position.batch} of epoch {position.epoch + 1} of fold {fold}"
                raise Interrupted(f"stopped as asked after {where}, and saved; --resume goes on")


def read_every(device: torch.device) -> int:
    """After how many steps the device is asked what became of them: a GPU would wait for its host each time."""
    return 1 if device.type == "cpu" else 10


def read_steps(
    unread: list[tuple[torch.Tensor, list[str]]], position: TrainingState, sizes: Sequence[int]
) -> tuple[bool, bool]:
    """Move steps, each with its images' ids, into the position; whether one of them wishes to stop, or to save."""
    told = torch.stack([step for step, _ in unread]).tolist()
    for (loss, taken, *_), (_, ids) in zip(told, unread, strict=True):
        if not taken:
            warn(f"step {position.batch + 1} of epoch {position.epoch + 1} is skipped: its loss is {loss}")
        position.end_step(loss, bool(taken), sizes[position.batch], ids)
    unread.clear()
    return any(stops for *_, stops, _ in told), any(saves for *_, saves in told)


def train_step(
    accelerator: Accelerator,
    learner: Learner,
    batch: Batch,
    size: int,
    lr: float,
    stop: bool = False,
    save: bool = False,
) -> torch.Tensor:
    """One optimizer step on this process's share of a global batch of `size` rows; skipped where it is not finite.

    Gives (4,), on the device, for the host does not wait for it: the mean loss, whether the step was taken, and how
    many processes wish to `stop` and to `save`.

    A process without a row of its own has a borrowed one, which weighs nothing: every process must take part in the
    gradient's exchange. The share is computed in parts, to save memory. All processes decide alike, for gradients,
    loss and wishes are exchanged. A skipped step leaves parameters, optimizer and BatchNorm's statistics as they
    were. Raises UserError where the device's memory is too small.
    """
    optimizer, parts, scaler = learner.optimizer, learner.parts, accelerator.scaler
    _refuse_bad(batch)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)  # less in early layers, with optimizer.layer_decay
    weight = 0.0 if accelerator.process_index >= size else 1 / size
    before = [torch.cat(buffers) for buffers in learner.buffers]
    total = torch.zeros(3, device=accelerator.device)  # the loss, and how many wish what
    total[1].fill_(stop)
    total[2].fill_(save)
    optimizer.zero_grad()
    try:
        _backward(accelerator, learner, batch, weight, min(parts, len(batch.labels)), total)
    except RuntimeError as error:  # which torch.OutOfMemoryError is, and which a CPU's allocator raises plain
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            said = str(error).splitlines()[0][:200]
            raise UserError(f"backbone.compile: {said}; start another run, with it set to false") from error
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"out of memory with batch_size {size} in {parts} part{'s' * (parts > 1)}: "
            f"--set gradient_accumulation_steps={2 * parts} computes the same step in less, and "
            "backbone.gradient_checkpointing=true in less still"
        ) from error
    if scaler:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if learner.clip_norm is not None:
        clip_grads_with_norm_(parameters, learner.clip_norm, norm)
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total)
    loss, stops, saves = total.unbind()  # type: ignore[union-attr]
    taken = loss.isfinite() & norm.isfinite()
    optimizer.found_inf = (~taken).float()  # type: ignore[attr-defined]  # a fused step then changes nothing
    optimizer.step()
    _restore(learner.buffers, before, taken)
    if scaler:  # which learns of an overflow, and is the one to mend it
        scaler.update()
        taken = loss.isfinite()
    return torch.stack([loss, taken, stops, saves])


def _restore(buffers: list[list[torch.Tensor]], before: list[torch.Tensor], taken: torch.Tensor) -> None:
    """Give the buffers what they held before, unless the step was taken; a few operations however many they are."""
    for group, values in zip(buffers, before, strict=True):
        kept = torch.where(taken, torch.cat(group), values).split([len(buffer) for buffer in group])
        torch._foreach_copy_(group, kept)  # pyright: ignore[reportPrivateImportUsage]


def _backward(
    accelerator: Accelerator, learner: Learner, batch: Batch, weight: float, parts: int, total: torch.Tensor
) -> None:
    """Gradients of the weighted sum of losses, which is added to total[0]."""
    for part, (pixels, labels) in enumerate(
        zip(batch.pixels.tensor_split(parts), batch.labels.tensor_split(parts), strict=True), 1
    ):
        inputs, targets = learner.see(
            pixels.to(accelerator.device, non_blocking=True), labels.to(accelerator.device, non_blocking=True)
        )
        with nullcontext() if part == parts else accelerator.no_sync(learner.model):
            loss = learner.row_loss(learner.model(inputs), targets).sum() * weight
            # DDP takes the mean of the processes' gradients; the loss is a sum over them.
            accelerator.backward(loss * accelerator.num_processes)
        total[0] += loss.detach()


def seed_step(device: torch.device, *parts: object) -> None:
    """Seed whatever a step draws (mixing, dropout), so that no generator's state needs to be saved.

    As torch.manual_seed, which also notes the seed, with a stack trace, for every kind of device that is not there.
    """
    seed = derive_seed(*parts)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
