"""Losses on logits (B, K) with hard labels (B,) or soft targets (B, K).

A loss is one value a row, so that any weighting is exact.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from creature.recipe import Loss

RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_loss(loss: Loss) -> RowLoss:
    """Cross-entropy per row (B,), with label smoothing (Szegedy et al. 2016); in fp32 whatever the logits are."""
    return lambda logits, targets: cross_entropy(
        logits.float(), targets, reduction="none", label_smoothing=loss.smoothing
    )
