"""An accuracy that says what it rests on. N rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Z = 1.959963984540054  # of the normal distribution, 95 % lies within so many deviations


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
        """The 95 % interval of Wilson 1927, as scipy's binomtest has it, whose import takes half a second."""
        width = 2 * (self.n + Z**2)
        center = (2 * self.correct + Z**2) / width
        half = Z / width * math.sqrt(4 * self.correct * (1 - self.accuracy) + Z**2)
        return center - half if self.correct else 0.0, center + half if self.correct < self.n else 1.0

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
