"""What the device is good at: the precision to compute in, and its cores."""

import os

import torch

from creature.cores import usable_cores


def device_precision(precision: str, cpu: bool) -> tuple[str, str]:
    """The precision to use on this device, and why it is not the recipe's (empty where it is)."""
    if precision == "fp32":
        return precision, ""
    if cpu or not torch.cuda.is_available():
        return "fp32", f"precision: {precision} is slower than fp32 on this device, or not there at all; fp32 is used"
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        return "fp32", "precision: this GPU only emulates bf16; fp32 is used (precision=fp16 is fast on it)"
    return precision, ""


def share_threads(device: torch.device) -> int:
    """How many batches to compute at once, and an equal share of this process's cores for each; one on a GPU.

    Cores that share a batch wait for the slowest of them after each layer, while others decode. Four batches at most,
    for their Python takes turns.
    """
    share_cores()
    if device.type != "cpu":
        return 1
    cores = torch.get_num_threads()
    at_once = max(range(1, min(4, cores) + 1), key=lambda k: (cores // k * k, k))  # as many as leave no core idle
    torch.set_num_threads(cores // at_once)
    return at_once


def share_cores() -> None:
    """Let the processes of this host share its cores equally.

    The launcher's default is one thread, Python's is every core, and the number changes the last bits of a sum.
    """
    torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
