"""What the device is good at: the precision to compute in, its cores and memory."""

import ctypes
import os
import sys

import torch

from creature.device import usable_cores


def device_precision(precision: str, cpu: bool) -> tuple[str, str]:
    """The precision to use on this device, and why it is not the recipe's (empty where it is)."""
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
    torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def keep_memory(device: torch.device) -> None:
    """Let this process keep what it frees, if it computes on a CPU and its C library is glibc.

    Each batch asks for the gigabytes that the last one freed. By default large blocks are the kernel's in between, and
    it clears all their pages again: that took as long as the network.
    """
    if device.type == "cpu" and sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.malloc_trim(0)  # what was freed until now is not of a batch
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
