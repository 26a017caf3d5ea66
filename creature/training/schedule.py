"""The learning rate as a pure function of the time in epochs; nothing to save, nothing to step."""

import math

from creature.recipe import Schedule


def lr_factor(schedule: Schedule, epoch: float) -> float:
    """Share of the peak learning rate at a time in epochs, which counts from 0 and may be a fraction.

    Warm restarts: Loshchilov and Hutter 2017 (SGDR), falling to zero in each cycle. The warm-up always rises by the
    step: by the epoch, its first epoch would train at a rate of zero.
    """
    if epoch < schedule.warmup_epochs:
        return epoch / schedule.warmup_epochs
    if schedule.update == "epoch":
        epoch = max(math.floor(epoch), schedule.warmup_epochs)
    past, length = epoch - schedule.warmup_epochs, schedule.epochs - schedule.warmup_epochs
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "cosine_warm_restarts":
        length = schedule.restart_epochs
        while past >= length:
            past -= length
            length *= schedule.restart_factor
    return (1 + math.cos(math.pi * past / length)) / 2
