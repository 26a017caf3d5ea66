"""Blending: logits of M members on N rows of K classes -> probabilities. Arrays in, arrays out."""

from dataclasses import dataclass

import numpy as np

STRATEGIES = ("logits", "softmax", "vote")


@dataclass(frozen=True, eq=False)
class Blending:
    """How an ensemble's members are blended."""

    weights: np.ndarray  # (M,)
    strategy: str = "logits"
    mirror: bool = False  # whether mirror images are predicted, too

    def weighs_like(self, other: "Blending") -> bool:
        """Whether as many members are blended in the same way; mirror images apart."""
        mine, theirs = (weights / weights.sum() for weights in (self.weights, other.weights))
        return self.strategy == other.strategy and mine.shape == theirs.shape and bool(np.allclose(mine, theirs))


def blend(logits: np.ndarray, strategy: str = "logits", weights: np.ndarray | None = None) -> np.ndarray:
    """Probabilities (N, K) of logits (M, N, K): the mean of logits, of probabilities, or the share of votes.

    A tie of votes goes to the larger mean logit. `weights` (M,), equal if not given, need not sum to 1. Members are
    added in an order that their values decide, so that the caller's order never changes a bit.
    """
    weighing = np.ones(len(logits)) if weights is None else weights.astype(np.float64)
    share = (weighing / _ordered_sum(weighing))[:, None, None]
    logits = logits.astype(np.float64)
    mean = _ordered_sum(logits * share)
    if strategy == "logits":
        return _softmax(mean)
    if strategy == "softmax":
        return _ordered_sum(_softmax(logits) * share)
    from scipy.stats import rankdata  # here, for blending by logits need not wait for scipy

    votes = np.eye(logits.shape[-1])[logits.argmax(-1)]
    # Ranks, for the differences of tiny probabilities would be lost beside a vote; far below the weight of any vote.
    tiebreak = 1e-9 / mean.shape[-1] * rankdata(mean, axis=-1)
    total = _ordered_sum(votes * share) + tiebreak
    return total / total.sum(-1, keepdims=True)


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Logs of probabilities, which are logits of the same probabilities; finite where one is 0, too."""
    return np.log(probabilities.clip(1e-300))


def _ordered_sum(terms: np.ndarray) -> np.ndarray:
    return np.sort(terms, axis=0).sum(0)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
