"""Scores, computed once from a table of predictions: accuracy with its interval, macro F1, recall of each class."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from creature.metrics.accuracy import count_correct


class ClassificationScores(evaluate.Metric):
    """Accuracy, mean F1 of the classes that have rows, and recall of each class, null without rows (scikit-learn)."""

    def _info(self) -> evaluate.MetricInfo:
        columns = datasets.Features(predictions=datasets.Value("int64"), references=datasets.Value("int64"))
        return evaluate.MetricInfo(description=str(self.__doc__), citation="", features=columns)

    def _compute(  # type: ignore[override]
        self, predictions: Sequence[int], references: Sequence[int], classes: int
    ) -> dict[str, Any]:
        _, recall, f1, rows = map(
            np.asarray,
            precision_recall_fscore_support(
                references,
                predictions,
                labels=np.arange(classes),
                average=None,  # type: ignore[arg-type]
                zero_division=0,  # type: ignore[arg-type]
            ),
        )
        present = rows > 0
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "macro_f1": float(f1[present].mean()),
            # guard: recall-without-rows
            "class_recall": [float(recall[k]) if present[k] else None for k in range(classes)],
        }


@dataclass(frozen=True)
class Scores:
    """All scores of one model on N rows of K classes, as result.json has them."""

    n: int
    correct: int
    interval: tuple[float, float]  # of the accuracy, 95 %
    accuracy: float
    macro_f1: float
    class_recall: list[float | None]  # None for a class without rows
    classes_without_rows: list[int]


def score_by(metric: str, predicted: np.ndarray, labels: np.ndarray, *, classes: int) -> float:
    """One score of predicted classes (N,): accuracy, macro_f1, or balanced_accuracy, the mean recall of the classes."""
    scores = score(predicted, labels, classes)
    recalls = [recall for recall in scores.class_recall if recall is not None]
    return float(np.mean(recalls)) if metric == "balanced_accuracy" else getattr(scores, metric)


def score(predicted: np.ndarray, labels: np.ndarray, classes: int) -> Scores:
    """The scores of predicted classes (N,) against labels (N,)."""
    count = count_correct(predicted, labels)
    # A metric makes a folder in its cache even where it keeps everything in memory.
    with tempfile.TemporaryDirectory() as cache:
        metric = ClassificationScores(keep_in_memory=True, cache_dir=cache)
        results = metric.compute(predictions=predicted.tolist(), references=labels.tolist(), classes=classes) or {}
    without_rows = [k for k, recall in enumerate(results["class_recall"]) if recall is None]
    return Scores(count.n, count.correct, count.interval, classes_without_rows=without_rows, **results)
