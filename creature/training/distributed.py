"""The processes of one training: their start, how long one waits for another, and the error when one is lost."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, InitProcessGroupKwargs, KwargsHandler
from datasets import disable_progress_bars
from torch import distributed
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from creature.console import console, say, warn
from creature.data.order import Share
from creature.device import device_precision, share_cores
from creature.errors import BrokenError, UserError, first_line
from creature.recipe import Recipe

# A step takes seconds; held-out rows and saving, minutes; a scan of a million images by the main process, an hour.
WAIT, WAIT_IN_FOLD, WAIT_IN_STEP = timedelta(hours=2), timedelta(minutes=10), timedelta(seconds=45)
LAUNCH_ON_CPUS = "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m creature train ..."
RENDEZVOUS = "attempt"  # the scheme of the address at which the processes of a launch meet


def start_accelerator(recipe: Recipe, out: Path, *, own_process: bool = False) -> Accelerator:
    """Accelerate on the recipe's device and precision, with its trackers; no data is read yet.

    In a process of its own, a training takes its share of the cores and shows no progress bars but its own.
    Raises UserError for a tracker that is not installed, sharded weights, or processes that do not know of each other.
    """
    _check_trackers(recipe.tracking)
    # Without this, processes on a machine that has no GPU would each believe that they are alone.
    cpu = recipe.device == "cpu" or bool(os.environ.get("ACCELERATE_USE_CPU")) or not torch.accelerator.is_available()
    precision, reason = device_precision(recipe.precision, cpu)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=list(recipe.tracking) or None,
        project_dir=out,
        kwargs_handlers=_process_group() if "WORLD_SIZE" in os.environ else [],
    )
    console.quiet = not accelerator.is_main_process
    check_processes(accelerator)
    if own_process:
        share_cores()  # here, for Accelerate sets the number of threads, too
        disable_progress_bars()
    if reason:
        warn(reason)
    if recipe.deterministic and accelerator.device.type == "cuda":
        say("deterministic: the same bits each time; a step takes longer, of ResNeXt-101 on an H200 1.2 times as long")
    if recipe.tracking:
        accelerator.init_trackers("creature")
    return accelerator


def _check_trackers(tracking: Sequence[str]) -> None:
    installed = {str(tracker) for tracker in get_available_trackers()}
    if unknown := set(tracking) - installed:
        raise UserError(
            f"tracking: {', '.join(sorted(unknown))} is not installed; "
            f"there is: {', '.join(sorted(installed)) or 'none'} "
            "(pip install -e '.[tracking]' brings tensorboard)"
        )


def share_of(accelerator: Accelerator) -> Share:
    """The part of every batch that this process takes."""
    return Share(accelerator.process_index, accelerator.num_processes)


def restarts() -> int:
    """How often the launcher (torch elastic) has started these processes again after one of them was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _process_group() -> list[KwargsHandler]:
    """Have the processes meet by keys of their own in each attempt.

    The launcher keeps one store over all attempts, with the addresses of processes that are dead.
    """
    _register_rendezvous()
    return [InitProcessGroupKwargs(init_method=f"{RENDEZVOUS}://", timeout=WAIT)]  # guard: rendezvous


@cache  # torch takes a scheme once in a process
def _register_rendezvous() -> None:
    register_rendezvous_handler(RENDEZVOUS, rendezvous_of_attempt)


def rendezvous_of_attempt(url: str, **options: Any) -> Iterator[tuple[Any, int, int]]:
    """What torch's env:// gives, (store, rank, world size), with the store's keys prefixed by the attempt."""
    for store, rank, world_size in rendezvous(url.replace(RENDEZVOUS, "env", 1), **options):
        # guard: keys-of-attempt
        yield distributed.PrefixStore(f"attempt {restarts()}", store), rank, world_size  # pyright: ignore[reportPrivateImportUsage]


def check_processes(accelerator: Accelerator) -> None:
    """Raises UserError for sharded weights, and where the launcher's processes do not know of each other."""
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UserError(
            f"{accelerator.distributed_type.value}: shards of weights are no checkpoint that timm can load, and these "
            "models fit on one GPU; launch with --multi_gpu"
        )
    if (launched := int(os.environ.get("WORLD_SIZE", "1"))) != accelerator.num_processes:
        raise UserError(
            f"the launcher started {launched} processes, but Accelerate sees {accelerator.num_processes}; "
            f"on CPUs use\n{LAUNCH_ON_CPUS}"
        )
    # On CPUs, or one GPU, the launcher starts one process whatever it was told, and notes where all would meet.
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "accelerate launch was given several processes and started one: on one GPU leave --num_processes out, on "
            f"several say --multi_gpu, on CPUs use\n{LAUNCH_ON_CPUS}"
        )


# torch names it in public since 2.14.
_set_timeout = getattr(distributed, "set_timeout", None) or distributed.distributed_c10d._set_pg_timeout


@contextmanager
def wait_limit(accelerator: Accelerator, limit: timedelta, after: timedelta) -> Iterator[None]:
    """Within the block, give up on a process that has not answered for `limit`; `after` holds again behind it."""
    if accelerator.num_processes == 1:
        yield
        return
    _set_timeout(limit)  # guard: step-timeout
    try:
        yield
    finally:
        _set_timeout(after)


@contextmanager
def naming_lost_process(accelerator: Accelerator) -> Iterator[None]:
    """Raise BrokenError where another process is gone or hangs, which each backend reports by errors of its own."""
    try:
        yield
    except RuntimeError as error:
        lost = re.search(r"gloo|nccl|connection (closed|reset|refused)|timed? ?out|peer", str(error), re.IGNORECASE)
        if accelerator.num_processes == 1 or not lost:  # guard: lost-process
            raise
        # Without the places in the backend's source, and its guesses.
        reason = re.sub(r"\[/\S+\] *|\. This is typically.*", "", first_line(error))
        raise BrokenError(
            f"another process of this training is gone or hangs ({reason}); start again with --resume"
        ) from error
