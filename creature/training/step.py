"""One step: gradients of a share of a batch, whether they are finite, and the optimizer's step. B batch, K classes.

Losses are summed over a global batch and divided by its size, so that any number of processes and micro-batches gives
the same step.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from creature.console import warn
from creature.data.loader import Batch
from creature.data.order import derive_seed
from creature.device import copy_to
from creature.errors import BrokenError, UserError, first_line
from creature.training.learner import Learner, most_micro_batches
from creature.training.losses import soft_labels


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
    check_readable(batch)
    statistics = [flat.clone() for flat in learner.statistics]
    result: Any = torch.zeros(4, device=accelerator.device)
    result[0] = _compute_share(accelerator, learner, batch, number=number, statistics=statistics)
    for place, requested in ((2, stop), (3, save)):
        if requested:
            result[place] = 1
    if scaler:
        scaler.unscale_(optimizer)
    if accelerator.num_processes > 1:
        result = accelerator.reduce(result)  # guard: stop-of-any-process
    not_finite = _clip_gradients(optimizer, learner.clip_norm, loss=result[:1])
    if optimizer.defaults.get("fused"):
        # guard: skip-step
        optimizer.found_inf = not_finite  # type: ignore[attr-defined]  # the step then changes nothing
        optimizer.step()
    elif not not_finite:  # guard: skip-unfused-step
        optimizer.step()  # others count their steps on the host, which must know
    skipped = not_finite.bool()
    for flat, before in zip(learner.statistics, statistics, strict=True):
        # guard: skip-statistics
        flat.copy_(torch.where(skipped, before, flat))
    if scaler:  # an overflow is the scaler's affair, which lowers its factor
        scaler.update()
        skipped = ~result[0].isfinite()
    result[1] = skipped
    return result  # on the device: the host need not wait


def _compute_share(
    accelerator: Accelerator, learner: Learner, batch: Batch, *, number: int, statistics: list[torch.Tensor]
) -> torch.Tensor:
    """The loss of this process's share, and its gradients, in as many micro-batches as fit, which is said."""
    before = learner.micro_batches
    if accelerator.num_processes > 1:
        _find_micro_batches(accelerator, learner, batch, number=number, statistics=statistics)
    loss = _compute_gradients(accelerator, learner, batch, model=learner.model, number=number, statistics=statistics)
    if learner.micro_batches > before:
        warn(
            f"gradient_accumulation_steps: {len(batch.labels)} images at once do not fit into the memory; each step "
            f"takes {learner.micro_batches} micro-batches, and BatchNorm's statistics are of each"
        )
    return loss


def _find_micro_batches(
    accelerator: Accelerator, learner: Learner, batch: Batch, *, number: int, statistics: list[torch.Tensor]
) -> None:
    """Find in how many micro-batches the shares of several processes fit, each by itself, before the largest step.

    Models that exchange more than gradients cannot: batch statistics of all processes.
    """
    pixels = learner.batch_sizes[number] * batch.pixels[0].numel()
    network = accelerator.unwrap_model(learner.model)
    synchronized = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    if pixels <= learner.tried_pixels or learner.gradient_accumulation_steps or synchronized:
        return
    learner.tried_pixels = pixels
    _compute_gradients(accelerator, learner, batch, model=network, number=number, statistics=statistics)
    _restore(learner.statistics, statistics)
    found = torch.tensor([learner.state.micro_batches], device=accelerator.device)
    learner.state.micro_batches = int(accelerator.gather(found).max())  # pyright: ignore[reportAttributeAccessIssue]


def _compute_gradients(
    accelerator: Accelerator,
    learner: Learner,
    batch: Batch,
    *,
    model: nn.Module,
    number: int,
    statistics: list[torch.Tensor],
) -> torch.Tensor:
    """The loss of this process's share, and its gradients; in more micro-batches each time memory is too small.

    `model` is the learner's, or what Accelerate wraps, which exchanges no gradients; `statistics` are those before the
    step.
    """
    size = learner.batch_sizes[number]
    weight = 0.0 if accelerator.process_index >= size else 1 / size
    # Others would wait for the gradients of an attempt that failed.
    alone = accelerator.num_processes == 1 or model is not learner.model
    while True:
        seed_step(accelerator.device, learner.seed, learner.fold, learner.state.epoch, number)
        learner.optimizer.zero_grad()
        with _naming_failures(size, learner.micro_batches):
            try:
                return _backward(accelerator, learner, batch, model=model, weight=weight)
            except RuntimeError as error:
                if not (alone and _is_out_of_memory(error) and learner.split_batch(len(batch.labels))):
                    raise
        _restore(learner.statistics, statistics)  # guard: retry-statistics


def _restore(statistics: list[torch.Tensor], before: list[torch.Tensor]) -> None:
    for flat, values in zip(statistics, before, strict=True):
        flat.copy_(values)


def _clip_gradients(optimizer: torch.optim.Optimizer, clip_norm: float | None, *, loss: torch.Tensor) -> torch.Tensor:
    """Limit the gradient's norm where that is asked for; gives 1 where a gradient or the loss is not finite, else 0."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    not_finite, one = torch.zeros((), device=loss.device), torch.ones((), device=loss.device)
    # GradScaler's check, by a factor of one: few operations, however many gradients there are.
    torch._amp_foreach_non_finite_check_and_unscale_([*gradients, loss], not_finite, one)  # pyright: ignore[reportPrivateImportUsage]
    if clip_norm is not None:
        norm = get_total_norm(gradients)
        clip_grads_with_norm_(parameters, clip_norm, norm)
        not_finite = torch.maximum(not_finite, (~norm.isfinite()).float())  # squares of finite ones may be too large
    return not_finite


def check_readable(batch: Batch) -> None:
    """Raise BrokenError for an image of the batch that cannot be read any more."""
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
            f"--set gradient_accumulation_steps={2 * micro_batches} takes less, with BatchNorm's statistics of each "
            f"micro-batch; {less} still"
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory is too small; a CPU's allocator has no type of error for that."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _backward(
    accelerator: Accelerator, learner: Learner, batch: Batch, *, model: nn.Module, weight: float
) -> torch.Tensor:
    """Gradients of the weighted sum of the rows' losses; gives that sum."""
    inputs = learner.normalize(copy_to(accelerator.device, batch.pixels))
    targets = copy_to(accelerator.device, batch.labels)
    if (
        learner.mix and learner.state.epoch < learner.mix_until
    ):  # the whole share, or its pairs would depend on the number of micro-batches
        targets = targets if targets.ndim == 2 else soft_labels(targets, learner.classes)
        inputs, targets = learner.mix(inputs, targets)
    count = min(learner.micro_batches, most_micro_batches(len(targets)))
    micro_batches = [(inputs, targets)]
    if count > 1:
        micro_batches = list(zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True))
    losses = []
    for number, (images, labels) in enumerate(micro_batches, 1):
        with nullcontext() if number == count else accelerator.no_sync(model):
            loss = learner.row_loss(model(images), labels).sum() * weight
            # DDP takes the mean of the processes' gradients; the loss is a sum over them.
            share = loss if accelerator.num_processes == 1 else loss * accelerator.num_processes
            # Accelerator.backward does the same after a division by one, which costs two kernels.
            (accelerator.scaler.scale(share) if accelerator.scaler else share).backward()
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
