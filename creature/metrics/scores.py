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

_FEATURES = datasets.Features(predictions=datasets.Value("int64"), references=datasets.Value("int64"))


class Accuracy(evaluate.Metric):
    """Share of rows whose prediction is the label (scikit-learn's accuracy_score)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=str(self.__doc__), citation="", features=_FEATURES)

    def _compute(  # type: ignore[override]
        self, predictions: Sequence[int], references: Sequence[int]
    ) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(evaluate.Metric):
    """Mean F1 over the classes that have rows (scikit-learn)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=str(self.__doc__), citation="", features=_FEATURES)

    def _compute(  # type: ignore[override]
        self, predictions: Sequence[int], references: Sequence[int]
    ) -> dict[str, float]:
        _, f1 = _recall_and_f1(predictions, references, np.unique(references))
        return {"macro_f1": float(f1.mean())}


class ClassRecall(evaluate.Metric):
    """Recall of each class, null for a class without rows (scikit-learn)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=str(self.__doc__), citation="", features=_FEATURES)

    def _compute(  # type: ignore[override]
        self, predictions: Sequence[int], references: Sequence[int], classes: int
    ) -> dict[str, list[float | None]]:
        recall, _ = _recall_and_f1(predictions, references, np.arange(classes))
        present = set(references)
        return {"class_recall": [float(recall[k]) if k in present else None for k in range(classes)]}


def _recall_and_f1(
    predictions: Sequence[int], references: Sequence[int], labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    _, recall, f1, _ = precision_recall_fscore_support(
        references,
        predictions,
        labels=labels,
        average=None,  # type: ignore[arg-type]
        zero_division=0,  # type: ignore[arg-type]
    )
    return np.asarray(recall), np.asarray(f1)


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


def score(predicted: np.ndarray, labels: np.ndarray, classes: int) -> Scores:
    """The scores of predicted classes (N,) against labels (N,)."""
    count = count_correct(predicted, labels)
    rows = {"predictions": predicted.tolist(), "references": labels.tolist()}
    results: dict[str, Any] = {}
    # A metric makes a folder in its cache even where it keeps everything in memory.
    with tempfile.TemporaryDirectory() as cache:
        for metric, extra in ((Accuracy, {}), (MacroF1, {}), (ClassRecall, {"classes": classes})):
            results |= metric(keep_in_memory=True, cache_dir=cache).compute(**rows, **extra) or {}
    without_rows = [k for k, recall in enumerate(results["class_recall"]) if recall is None]
    return Scores(count.n, count.correct, count.interval, classes_without_rows=without_rows, **results)
