"""The loop's inner functions: an epoch's steps, one step, and predictions of rows. B batch, N rows, K classes.

Losses are summed over a global batch and divided by its size, so that any number of processes and micro-batches gives
the same step.

A test that injects a fault replaces `loop.train_step` or `loop.predict`, which are looked up at each call, by a
function of the same signature: what follows the `*` is always given by name.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from creature.console import progress, warn
from creature.data.loader import Batch, MakeBatches
from creature.data.order import derive_seed, fold_requests, held_out_order
from creature.errors import BrokenError, Interrupted, UserError, first_line
from creature.metrics.predictions import Predictions
from creature.run import held_out_predictions
from creature.training import distributed
from creature.training.learner import Learner, most_micro_batches
from creature.training.losses import soft_labels
from creature.training.signals import Stop
from creature.training.train_data import TrainData


@dataclass(frozen=True)
class StepResult:
    """What became of a step."""

    loss: float  # mean over the global batch
    taken: bool  # or skipped, for loss or gradient was not finite
    stop: bool  # a process asks to stop
    save: bool  # a process asks for a resume point

    @classmethod
    def unpack(cls, packed: Sequence[torch.Tensor]) -> list[Self]:
        """Results of several steps, as train_step gives them, for which the host waits once."""
        rows = torch.stack(list(packed)).tolist()
        return [cls(loss, not skipped, bool(stop), bool(save)) for loss, skipped, stop, save in rows]


@contextmanager
def restoring_random_state(device: torch.device) -> Iterator[None]:
    """Give torch's generators, which learners and steps seed, their state back after the block."""
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        yield


def fold_batches(
    accelerator: Accelerator, learner: Learner, data: TrainData, *, make_batches: MakeBatches
) -> Iterator[Batch]:
    """This process's share of a fold's batches, from where it stands on: an epoch's steps, then its held-out rows."""
    held_out = data.folds.held_out(learner.fold)
    requests = fold_requests(
        np.flatnonzero(~held_out).astype(np.int32),  # of which there may be millions
        np.flatnonzero(held_out).astype(np.int32),
        data.batch_size,
        seed=(learner.seed, learner.fold),
        epochs=learner.epochs,
        start=(learner.state.epoch, learner.state.batch),  # guard: start-in-epoch
        share=distributed.share_of(accelerator),
    )
    return make_batches(requests)


def train_epoch(
    accelerator: Accelerator,
    learner: Learner,
    batches: Iterator[Batch],
    *,
    stop: Stop,
    save: Callable[[], None],
    title: str,
) -> None:
    """The steps of an epoch that are left; saves every few minutes, and before it raises Interrupted if asked to."""
    state, sizes = learner.state, learner.batch_sizes
    began, saved = time.monotonic() - state.seconds, time.monotonic()
    alone = accelerator.num_processes == 1
    unread: list[tuple[torch.Tensor, list[str]]] = []
    train_mode(learner.model, learner.freeze_batch_stats)
    stop.at_once = False
    accelerator.wait_for_everyone()  # the main process may still be writing
    with progress() as bar:
        task = bar.add_task(title, total=sum(sizes), speed="")
        for number in range(state.batch, len(sizes)):
            asked = time.monotonic()
            batch = next(batches)
            state.waited += time.monotonic() - asked
            # guard: save-when-due
            due = accelerator.is_main_process and time.monotonic() - saved >= 60 * learner.save_minutes
            with distributed.wait_limit(accelerator, distributed.WAIT_IN_STEP, after=distributed.WAIT_IN_FOLD):
                result = train_step(accelerator, learner, batch, number=number, stop=stop.asked, save=due)
                if learner.ema:
                    learner.ema.update(learner.model, state.epoch * len(sizes) + number + 1)
                unread.append((result, batch.ids))
                # Several processes read after the same step, or they would not stop after the same one.
                last = number + 1 == len(sizes)
                if len(unread) < steps_per_read(accelerator.device) and not last and not (alone and stop.asked):
                    continue
                results = read_steps(learner, unread)
            state.seconds = time.monotonic() - began
            bar.update(task, completed=sum(sizes[: state.batch]), speed=f"{bar.tasks[task].speed or 0:.0f}")
            stops = any(result.stop for result in results)
            if stops or any(result.save for result in results):
                save()
                accelerator.wait_for_everyone()
                saved = time.monotonic()
            if stops:
                where = f"step {state.batch} of epoch {state.epoch + 1} of fold {learner.fold}"
                raise Interrupted(f"stopped as asked after {where}, and saved; --resume goes on")


def train_mode(model: nn.Module, freeze_batch_stats: bool) -> None:
    """Training mode, with BatchNorm on its pretrained statistics if asked."""
    model.train()
    if freeze_batch_stats:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def steps_per_read(device: torch.device) -> int:
    """After how many steps their results are read: a GPU would wait for its host each time."""
    return 1 if device.type == "cpu" else 10


def read_steps(learner: Learner, unread: list[tuple[torch.Tensor, list[str]]]) -> list[StepResult]:
    """Move steps, each with its images' ids, into the learner's state; `unread` is empty then."""
    state = learner.state
    results = StepResult.unpack([packed for packed, _ in unread])
    for result, (_, ids) in zip(results, unread, strict=True):
        if not result.taken:
            warn(f"step {state.batch + 1} of epoch {state.epoch + 1} is skipped: its loss is {result.loss}")
        state.end_step(result.loss, result.taken, size=learner.batch_sizes[state.batch], ids=ids)
    unread.clear()
    return results


def train_step(
    accelerator: Accelerator,
    learner: Learner,
    batch: Batch,
    *,
    number: int,
    stop: bool = False,
    save: bool = False,
) -> torch.Tensor:
    """The epoch's step of this number, on this process's share of its batch; gives (4,): loss, skipped, stop, save.

    A process without a row of its own gets a borrowed one, which weighs nothing: every process must take part in the
    gradient's exchange. The share is computed in micro-batches, to save memory. All processes decide alike whether the
    step is taken, for gradients, loss and requests are exchanged. A step that is not finite is skipped: parameters,
    optimizer and BatchNorm's statistics stay as they were. Raises UserError where the device's memory is too small,
    BrokenError for an image that cannot be read any more.
    """
    optimizer, scaler = learner.optimizer, accelerator.scaler
    lr = learner.learning_rate(learner.state.epoch + number / len(learner.batch_sizes))
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)  # less in early layers, with optimizer.layer_decay
    _check_readable(batch)
    statistics = [flat.clone() for flat in learner.statistics]
    result: Any = torch.zeros(4, device=accelerator.device)
    result[0] = _compute_gradients(accelerator, learner, batch, number=number, statistics=statistics)
    for place, requested in ((2, stop), (3, save)):
        if requested:
            result[place] = 1
    if scaler:
        scaler.unscale_(optimizer)
    if accelerator.num_processes > 1:
        result = accelerator.reduce(result)  # guard: stop-of-any-process
    not_finite = _clip_gradients(optimizer, learner.clip_norm, loss=result[:1])
    # guard: skip-step
    optimizer.found_inf = not_finite  # type: ignore[attr-defined]  # a fused step then changes nothing
    optimizer.step()
    skipped = not_finite.bool()
    for flat, before in zip(learner.statistics, statistics, strict=True):
        # guard: skip-statistics
        flat.copy_(torch.where(skipped, before, flat))
    if scaler:  # an overflow is the scaler's affair, which lowers its factor
        scaler.update()
        skipped = ~result[0].isfinite()
    result[1] = skipped
    return result  # on the device: the host need not wait


def _compute_gradients(
    accelerator: Accelerator, learner: Learner, batch: Batch, *, number: int, statistics: list[torch.Tensor]
) -> torch.Tensor:
    """The loss of this process's share, and its gradients; in more micro-batches each time memory is too small.

    `statistics` are those before the step.
    """
    size = learner.batch_sizes[number]
    weight = 0.0 if accelerator.process_index >= size else 1 / size
    alone = accelerator.num_processes == 1  # others would wait for the gradients of an attempt that failed
    while True:
        seed_step(accelerator.device, learner.seed, learner.fold, learner.state.epoch, number)
        learner.optimizer.zero_grad()
        with _naming_failures(size, learner.micro_batches):
            try:
                return _backward(accelerator, learner, batch, weight=weight)
            except RuntimeError as error:
                if not (alone and _is_out_of_memory(error) and learner.split_batch(len(batch.labels))):
                    raise
        for flat, before in zip(learner.statistics, statistics, strict=True):
            flat.copy_(before)  # guard: retry-statistics


@cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((), device=device)


def _clip_gradients(optimizer: torch.optim.Optimizer, clip_norm: float | None, *, loss: torch.Tensor) -> torch.Tensor:
    """Limit the gradient's norm where that is asked for; gives 1 where a gradient or the loss is not finite, else 0."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    not_finite = torch.zeros((), device=loss.device)
    # GradScaler's check, by a factor of one: few operations, however many gradients there are.
    torch._amp_foreach_non_finite_check_and_unscale_([*gradients, loss], not_finite, _one(loss.device))  # pyright: ignore[reportPrivateImportUsage]
    if clip_norm is not None:
        norm = get_total_norm(gradients)
        clip_grads_with_norm_(parameters, clip_norm, norm)
        not_finite = torch.maximum(not_finite, (~norm.isfinite()).float())  # squares of finite ones may be too large
    return not_finite


def _check_readable(batch: Batch) -> None:
    for name, reason in batch.bad.items():
        raise BrokenError(f"{name}: {reason}; it was readable when the run began; restore it and go on with --resume")


@contextmanager
def _naming_failures(size: int, micro_batches: int) -> Iterator[None]:
    """Raise UserError, with the setting to change, where torch cannot compile the model or memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise UserError(
                f"backbone.compile: {first_line(error)}; start another run, with it set to false"
            ) from error
        if named := re.match(r"(\S+) does not have a deterministic implementation", str(error)):
            raise UserError(
                f"deterministic: {named[1]} has no deterministic form on this device; set it to false, or take another "
                "backbone"
            ) from error
        # guard: out-of-memory
        if not _is_out_of_memory(error):
            raise
        less = "--set backbone.gradient_checkpointing=true takes less"
        if micro_batches >= most_micro_batches(size):
            raise UserError(f"out of memory with 2 images at a time: {less}, as does a smaller images.size") from error
        raise UserError(
            f"out of memory with batch_size {size} in {micro_batches} micro-batch{'es' * (micro_batches > 1)}: "
            f"--set gradient_accumulation_steps={2 * micro_batches} computes the same step in less; {less} still"
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory is too small; a CPU's allocator has no type of error for that."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _backward(accelerator: Accelerator, learner: Learner, batch: Batch, *, weight: float) -> torch.Tensor:
    """Gradients of the weighted sum of the rows' losses; gives that sum."""
    inputs = learner.normalize(batch.pixels.to(accelerator.device, non_blocking=True))
    targets = batch.labels.to(accelerator.device, non_blocking=True)
    if learner.mix:  # the whole share, or its pairs would depend on the number of micro-batches
        targets = targets if targets.ndim == 2 else soft_labels(targets, learner.classes)
        inputs, targets = learner.mix(inputs, targets)
    count = min(learner.micro_batches, most_micro_batches(len(targets)))
    micro_batches = [(inputs, targets)]
    if count > 1:
        micro_batches = list(zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True))
    losses = []
    for number, (images, labels) in enumerate(micro_batches, 1):
        with nullcontext() if number == count else accelerator.no_sync(learner.model):
            loss = learner.row_loss(learner.model(images), labels).sum() * weight
            # DDP takes the mean of the processes' gradients; the loss is a sum over them.
            accelerator.backward(loss if accelerator.num_processes == 1 else loss * accelerator.num_processes)
        losses.append(loss.detach())
    return sum(losses[1:], losses[0])


def seed_step(device: torch.device, *parts: object) -> None:
    """Seed whatever a step draws (mixing, dropout), so that no generator's state needs to be saved.

    As torch.manual_seed, which also notes the seed, with a stack trace, for every kind of device that is not there.
    """
    seed = derive_seed(*parts)
    torch.default_generator.manual_seed(seed)  # guard: step-seed
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def predict_held_out(
    accelerator: Accelerator, learner: Learner, data: TrainData, *, batches: Iterator[Batch]
) -> Predictions:
    """The predictions of a fold's held-out rows, whose batches are the next ones."""
    rows, model = np.flatnonzero(data.folds.held_out(learner.fold)).astype(np.int32), learner.eval_model
    logits = predict(accelerator, model, batches, rows=rows, batch_size=data.batch_size, normalize=learner.normalize)
    return held_out_predictions(data.folds, rows, logits)


@torch.inference_mode()
def predict(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Iterator[Batch],
    *,
    rows: np.ndarray,
    batch_size: int,
    normalize: nn.Module,
    title: str = "held-out rows",
) -> np.ndarray:
    """Logits (N, K) of rows (N,), in their order, on every process; one process predicts each row.

    The next `batches` are those of held_out_requests.

    Raises UserError where a logit is not finite, BrokenError for an image that cannot be read any more.
    """
    model = accelerator.unwrap_model(model).eval()
    if accelerator.num_processes > 1:
        broadcast(list(model.buffers()))  # BatchNorm's statistics are the main process's, as in the checkpoint
    chunks = held_out_order(rows, batch_size, distributed.share_of(accelerator))
    predicted: list[tuple[np.ndarray, np.ndarray]] = []  # places in `rows`, and their logits
    with progress() as bar:
        task = bar.add_task(title, total=sum(map(len, chunks)), speed="")
        for chunk in chunks:
            batch = next(batches)
            _check_readable(batch)
            assert np.array_equal(batch.rows, rows[chunk]), "batches of other rows"
            pixels = normalize(batch.pixels.to(accelerator.device, non_blocking=True))
            # Not the compiled call, but what predict.py computes; and a last batch may be of any size.
            predicted.append((chunk, model.forward(pixels).float().cpu().numpy()))
            bar.update(task, advance=len(chunk), speed=f"{bar.tasks[task].speed or 0:.0f}")
    if accelerator.num_processes > 1:
        predicted = gather_object(predicted)
    logits = np.full((len(rows), predicted[0][1].shape[1]), np.nan, dtype=np.float32)
    times_predicted = np.zeros(len(rows), dtype=np.int64)
    for chunk, values in predicted:
        logits[chunk] = values
        times_predicted[chunk] += 1
    assert (times_predicted == 1).all(), "a row was predicted more than once, or not at all"
    if not np.isfinite(logits).all():
        raise UserError("the model's logits are no finite numbers; try a lower optimizer.lr, or optimizer.clip_norm=1")
    return logits
