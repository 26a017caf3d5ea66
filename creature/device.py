"""What the device is good at: its cores, its memory, the precision to compute in; torch is imported when needed."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def usable_cores() -> int:
    """Cores that the scheduler lets this process run on: a job's share of a large machine, not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_precision(precision: str, cpu: bool) -> tuple[str, str]:
    """The precision to use on this device, and why it is not the recipe's (empty where it is)."""
    import torch

    if precision == "fp32":
        return precision, ""
    if cpu or not torch.cuda.is_available():
        return "fp32", f"precision: {precision} is slower than fp32 on this device, or not there at all; fp32 is used"
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        return "fp32", "precision: this GPU only emulates bf16; fp32 is used (precision=fp16 is fast on it)"
    return precision, ""


def process_cores() -> int:
    """This process's share of the cores, where a launcher has started several on this host."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def choose_workers(workers: int | str, device: "torch.device") -> int:
    """How many processes prepare images: a number, or by `auto` what the device needs and the cores allow.

    A GPU takes what all but one of the cores can prepare, up to 16. A CPU computes with the same cores, of which a
    quarter has the next batch ready.
    """
    if workers != "auto":
        return int(workers)
    return max(1, process_cores() // 4 if device.type == "cpu" else min(16, process_cores() - 1))


def copy_to(device: "torch.device", tensor: "torch.Tensor") -> "torch.Tensor":
    """The tensor on the device; a GPU takes it out of pinned memory, and the host goes on meanwhile."""
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)


def to_channels_last(model: "torch.nn.Module") -> None:
    """Store a model's convolutions as NHWC, in place; `model.to` does so, and refuses the 3-D ones of lambda layers."""
    import torch

    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def start_gpu(device: "torch.device") -> None:
    """Have a GPU get ready while the host does something else: its first use takes seconds."""
    import torch

    def use() -> None:
        with suppress(RuntimeError):  # which whoever needs the device gets, too
            torch.zeros(1, device=device)

    if device.type == "cuda":
        Thread(target=use, daemon=True).start()


def choose_decoders(device: "torch.device", images: int | None) -> int:
    """How many processes decode images to predict, of which there may be any number (None); 0: threads do.

    Threads of one interpreter decode what a CPU computes, or a few images before processes would have started; a GPU
    waits for them. (On 16 cores beside an H200, threads decoded 700 photos a second.)
    """
    few = images is not None and images < 500
    return 0 if device.type == "cpu" or few or process_cores() < 4 else min(16, process_cores() - 1)


def share_cores() -> None:
    """Let the processes of this host share its cores equally; for a script's start, as it sets torch's threads.

    The launcher's default is one thread, Python's is every core, and the number changes the last bits of a sum.
    """
    import torch

    torch.set_num_threads(process_cores())


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Within the block torch takes only algorithms that give the same bits each time; before a GPU is first used.

    Other threads of the process are affected, too; the settings are as before after the block.
    """
    import torch

    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    options: Any = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), cudnn.benchmark, options.fill_uninitialized_memory
    workspace = os.environ.get(WORKSPACE)
    os.environ[WORKSPACE] = workspace or ":4096:8"  # one of the two that cuBLAS's manual names
    torch.set_deterministic_debug_mode("error")
    cudnn.benchmark = options.fill_uninitialized_memory = False  # filling only shows mistakes, and takes time
    try:
        yield
    finally:
        mode, cudnn.benchmark, options.fill_uninitialized_memory = before
        torch.set_deterministic_debug_mode(mode)
        if workspace is None:
            del os.environ[WORKSPACE]


def keep_image_memory() -> None:
    """Let Pillow keep the memory of up to 1 GiB of images in this process; large ones are decoded sooner then."""
    from PIL import Image

    Image.core.set_blocks_max(64)  # of 16 MiB


def keep_memory(device: "torch.device") -> None:
    """Let this process keep the memory that it frees: of images, and of batches on a CPU where the C library is glibc.

    Each batch asks for the gigabytes that the last one freed. By default the kernel takes large blocks back in between
    and clears all their pages again, which took as long as the network. For scripts, as it is the process's setting.
    """
    keep_image_memory()
    if device.type == "cpu" and sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.malloc_trim(0)  # what was freed until now is not of a batch
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
