"""The processes of one training: their number, how long one waits for another, and what it says when one is gone."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import distributed

from creature.terminal import UserError

# A step takes seconds; a scan of a million pictures by the main process, while the others wait, an hour.
WAIT, WAIT_IN_STEP = timedelta(hours=2), timedelta(seconds=45)


@contextmanager
def waiting_less(accelerator: Accelerator) -> Iterator[None]:
    """Give up within the block on a process that has not answered for WAIT_IN_STEP, not only after WAIT."""
    if accelerator.num_processes == 1:
        yield
        return
    _set_timeout(WAIT_IN_STEP)
    try:
        yield
    finally:
        _set_timeout(WAIT)


# torch names it in public since 2.14.
_set_timeout = getattr(distributed, "set_timeout", None) or distributed.distributed_c10d._set_pg_timeout


def restarted() -> bool:
    """Whether the launcher (torch elastic) has started these processes again after one of them was lost."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextmanager
def noticing_loss(accelerator: Accelerator) -> Iterator[None]:
    """Say in a sentence that another process is gone or hangs, which the backends tell as errors of their own."""
    try:
        yield
    except RuntimeError as error:
        gone = re.search(r"gloo|nccl|connection (closed|reset|refused)|timed? ?out|peer", str(error), re.IGNORECASE)
        if accelerator.num_processes == 1 or not gone:
            raise
        raise UserError(
            f"another process of this training is gone or hangs ({str(error).splitlines()[0][:200]}); nothing is saved "
            "after that, start again with --resume"
        ) from None


def check_processes(accelerator: Accelerator) -> None:
    """Raise UserError for sharded weights, and where the launcher's processes do not know of each other."""
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UserError(
            f"{accelerator.distributed_type.value}: shards of weights are no checkpoint that timm can load, and these "
            "models fit on one GPU; launch with --multi_gpu"
        )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != accelerator.num_processes:
        raise UserError(
            f"the launcher started {world} processes, but Accelerate sees {accelerator.num_processes}; on CPUs use\n"
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 train.py ..."
        )
