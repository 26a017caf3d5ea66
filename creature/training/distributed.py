"""The processes of one training: their number, how long one waits for another, and what it says when one is gone."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import distributed
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from creature.errors import UserError

# A step takes seconds; held-out rows and saving, minutes; a scan of a million images by the main process, an hour.
WAIT, WAIT_IN_FOLD, WAIT_IN_STEP = timedelta(hours=2), timedelta(minutes=10), timedelta(seconds=45)


@contextmanager
def waiting(accelerator: Accelerator, limit: timedelta, after: timedelta) -> Iterator[None]:
    """Give up within the block on a process that has not answered for `limit`; `after` holds again behind it."""
    if accelerator.num_processes == 1:
        yield
        return
    _set_timeout(limit)
    try:
        yield
    finally:
        _set_timeout(after)


# torch names it in public since 2.14.
_set_timeout = getattr(distributed, "set_timeout", None) or distributed.distributed_c10d._set_pg_timeout


def attempt() -> int:
    """How often the launcher (torch elastic) has started these processes again after one of them was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _meet(url: str, **options: Any) -> Iterator[tuple[Any, int, int]]:
    for store, rank, world in rendezvous(url.replace(MEETING, "env", 1), **options):
        own = distributed.PrefixStore(f"attempt {attempt()}", store)  # pyright: ignore[reportPrivateImportUsage]
        yield own, rank, world


# The launcher keeps one store over all attempts, with the addresses of dead processes: each attempt has its own keys.
MEETING = "attempt"
register_rendezvous_handler(MEETING, _meet)


@contextmanager
def noticing_loss(accelerator: Accelerator) -> Iterator[None]:
    """Say in a sentence that another process is gone or hangs, which the backends tell as errors of their own."""
    try:
        yield
    except RuntimeError as error:
        gone = re.search(r"gloo|nccl|connection (closed|reset|refused)|timed? ?out|peer", str(error), re.IGNORECASE)
        if accelerator.num_processes == 1 or not gone:
            raise
        # Without the places in the backend's source, and its guesses.
        reason = re.sub(r"\[/\S+\] *|\. This is typically.*", "", str(error).splitlines()[0])[:200]
        raise UserError(
            f"another process of this training is gone or hangs ({reason}); start again with --resume"
        ) from error


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
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m creature train ..."
        )
