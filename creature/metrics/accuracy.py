"""An accuracy with the number of rows that it is measured on. N rows."""

import math
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054  # 95 % of a normal distribution lies within so many standard deviations


@dataclass(frozen=True)
class Count:
    """An accuracy as correct rows of n."""

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
        """The accuracy with its interval, for JSON."""
        low, high = self.interval
        return {"accuracy": self.accuracy, "correct": self.correct, "n": self.n, "low": low, "high": high}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.4f} [{low:.4f}, {high:.4f}] (n = {self.n})"


def count_correct(predicted: np.ndarray, labels: np.ndarray) -> Count:
    """How many of the predicted classes (N,) are the labels (N,)."""
    return Count(int((predicted == labels).sum()), len(labels))
