"""What this machine offers a computation: cores, the precision that is fast, memory that stays with the process.

`share_cores` and `keep_memory` change the whole process: scripts call them at their start, the package never does.
"""

import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def usable_cores() -> int:
    """Cores that the scheduler lets this process run on: a job's share of a large machine, not the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_precision(precision: str, cpu: bool) -> tuple[str, str]:
    """The precision to use on this device, and why it differs from the one asked for (empty where it does not)."""
    import torch

    if precision == "fp32":
        return precision, ""
    if cpu or not torch.cuda.is_available():
        return "fp32", f"precision: {precision} is slower than fp32 on this device, or not there at all; fp32 is used"
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        return "fp32", "precision: this GPU only emulates bf16; fp32 is used (precision=fp16 is fast on it)"
    return precision, ""


def share_cores() -> None:
    """Let the processes of this host share its cores equally.

    The launcher's default is one thread, Python's is every core, and the number changes the last bits of a sum.
    """
    import torch

    torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def keep_memory(device: "torch.device") -> None:
    """Let this process keep the memory that it frees, if it computes on a CPU and its C library is glibc.

    Each batch asks for the gigabytes that the last one freed. By default, large blocks go back to the kernel in
    between, which clears all their pages again: that took as long as the network.
    """
    if device.type == "cpu" and sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.malloc_trim(0)  # what was freed until now belongs to no batch
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
