"""Tests of whether one of two models is better on the same rows, alone or among many comparisons. N rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from creature.metrics.accuracy import Count


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same n rows, and how many of them each alone has right."""

    first: int
    second: int
    n: int

    @property
    def difference(self) -> float:
        """Accuracy of the first minus that of the second."""
        return (self.first - self.second) / self.n

    def __str__(self) -> str:
        return f"{100 * self.difference:+.2f} points ({self.first} : {self.second})"

    @property
    def p(self) -> float:
        """McNemar's exact test, two-sided: how likely a split as uneven as this is where both are equally good."""
        from scipy.stats import binomtest  # here, for an ensemble that compares nothing need not wait for scipy

        together = self.first + self.second
        return float(binomtest(self.first, together).pvalue) if together else 1.0


def shown_p(p: float) -> str:
    """A p value for people."""
    return f"{p:.2g}" if p >= 0.0001 else "below 0.0001"


def compare_paired(first: np.ndarray, second: np.ndarray) -> PairedComparison:
    """Compare two models by whether each row (N,) is right."""
    return PairedComparison(int((first & ~second).sum()), int((second & ~first).sum()), len(first))


def difference_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the difference of two accuracies, by whether each row (N,) is right.

    Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10: Wilson's intervals of both, less what they share.
    """
    n, both = len(first), int((first & second).sum())
    counts = Count(int(first.sum()), n), Count(int(second.sum()), n)
    (p, q), ((low_p, high_p), (low_q, high_q)) = (c.accuracy for c in counts), (c.interval for c in counts)
    margins = math.prod(c.correct * (n - c.correct) for c in counts)
    agreement = both * (n - counts[0].correct - counts[1].correct + both)
    shared = agreement - (counts[0].correct - both) * (counts[1].correct - both)
    shared = max(shared - n / 2, 0) if shared > 0 else shared  # the correction for continuity
    correlation = shared / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(one**2 - 2 * correlation * one * other + other**2)

    return p - q - reach(p - low_p, high_q - q), p - q + reach(high_p - p, q - low_q)


def holm(values: Sequence[float]) -> list[float]:
    """p values, corrected for their number (Holm 1979): of tables without a difference, 5 % have one below 0.05."""
    order = np.argsort(values, kind="stable")
    steps = np.asarray(values, dtype=np.float64)[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected.tolist()
