"""An accuracy that says what it rests on. N rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest


@dataclass(frozen=True)
class Count:
    """An accuracy that says what it rests on: correct rows of n."""

    correct: int
    n: int

    @property
    def accuracy(self) -> float:
        """Share of correct rows."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (scipy's binomtest)."""
        found = binomtest(self.correct, self.n).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)

    def figures(self) -> dict[str, float]:
        """What a JSON row says of it."""
        low, high = self.interval
        return {"accuracy": self.accuracy, "correct": self.correct, "n": self.n, "low": low, "high": high}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.4f} [{low:.4f}, {high:.4f}] (n = {self.n})"


def count_correct(predicted: np.ndarray, labels: np.ndarray) -> Count:
    """How many of the predicted classes (N,) are the labels (N,)."""
    return Count(int((predicted == labels).sum()), len(labels))


def scored(result: Mapping[str, Any]) -> str:
    """The accuracy that a fold's result.json holds, marked where its epoch was chosen on the rows it is scored on."""
    return f"{Count(result['correct'], result['n'])}{' selected' if result['selected'] else ''}"
