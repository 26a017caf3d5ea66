"""Losses on logits (B, K) with hard labels (B,) or soft targets (B, K).

A loss is one value a row, so that any weighting is exact.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, log_softmax

from creature.recipe import Loss

RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_loss(loss: Loss, counts: Sequence[int], device: torch.device | None = None) -> RowLoss:
    """Cross-entropy, focal loss (Lin et al. 2017) or binary cross-entropy per row (B,), in fp32 where logits have less.

    The last is summed over the classes, as each may be in an image (Beyer et al. 2020, Wightman et al. 2021).

    `counts` (K,): training rows of each class, which `balance` weighs by. Smoothing: Szegedy et al. 2016. With
    logit_adjust (Menon et al. 2021) the log of each class's share is added to the logits: the network then learns
    logits without the prior, which favour no class for being frequent.
    """
    gamma = loss.gamma if loss.name == "focal" else 0.0
    rows = np.maximum(np.asarray(counts, dtype=np.float64), 1)  # a class may have no row in this fold
    weight = torch.tensor(class_weights(loss.balance, rows), dtype=torch.float32, device=device)
    offset = torch.tensor(np.log(rows / rows.sum()), dtype=torch.float32, device=device)
    binary = loss.name == "binary_cross_entropy"
    plain = not (gamma or binary) and not loss.smoothing and loss.balance == "none"

    def row_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        classes = logits.shape[-1]
        if logits.dtype.itemsize < 4:
            logits = logits.float()
        if plain and targets.ndim == 1:  # the same, in fewer operations
            return cross_entropy(logits, targets, reduction="none")
        shares = targets if targets.ndim == 2 else soft_labels(targets, classes)
        if loss.smoothing:
            shares = shares * (1 - loss.smoothing) + loss.smoothing / classes
        if loss.balance == "logit_adjust":
            logits = logits + offset
        if binary:
            of_class = binary_cross_entropy_with_logits(logits, shares, reduction="none").sum(-1)
            return of_class * (shares * weight).sum(-1) if loss.balance in ("sqrt", "inverse") else of_class
        if loss.balance in ("sqrt", "inverse"):
            shares = shares * weight
        log_p = log_softmax(logits, dim=-1)
        if gamma:
            # 1 - p without cancellation; not quite 0, where the slope of a power below 1 has no end.
            shares = shares * (-torch.expm1(log_p)).clamp_min(1e-12) ** gamma
        return -(shares * log_p).sum(-1)

    return row_loss


def soft_labels(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Labels (B,) as shares of the classes (B, K); torch's one_hot looks at their values, so a GPU is awaited."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def class_weights(balance: str, rows: np.ndarray) -> np.ndarray:
    """Weight of each class (K,): its rows to the power of -1/2 (sqrt) or -1 (inverse); the mean over all rows is 1."""
    power = {"sqrt": -0.5, "inverse": -1.0}.get(balance, 0.0)
    return rows**power * rows.sum() / (rows ** (1 + power)).sum()
