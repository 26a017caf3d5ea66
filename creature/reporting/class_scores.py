"""Scores of each class on a run's held-out rows, and what classes are confused with. N rows, K classes."""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from creature.metrics.accuracy import Count
from creature.reporting.study import ScoredRows
from creature.reporting.tables import Value

COLUMNS = ("class", "rows", "recall", "95 % from", "to", "precision", "F1", "most often taken for")


@dataclass(frozen=True)
class ConfusedPair:
    """Rows of one class that are taken for another one."""

    label: int
    predicted: int
    count: int
    rows: int  # of the class


def score_classes(rows: ScoredRows) -> list[tuple[Value, ...]]:
    """The values of COLUMNS for every class, in the order of the class indices; empty for a class without rows."""
    classes = np.arange(len(rows.class_names))
    precision, _, f1, _ = precision_recall_fscore_support(rows.labels, rows.predicted, labels=classes, zero_division=0)  # type: ignore[arg-type]
    taken_for: dict[int, str] = {}
    for pair in confused_pairs(rows):
        taken_for.setdefault(pair.label, rows.class_names[pair.predicted])
    recalls = count_recalls(rows)
    scores: list[tuple[Value, ...]] = []
    for k, name in enumerate(rows.class_names):
        if k not in recalls:
            scores.append((name, 0, *[""] * (len(COLUMNS) - 2)))
            continue
        recall, beside = recalls[k], (float(np.asarray(precision)[k]), float(np.asarray(f1)[k]))
        scores.append((name, recall.n, recall.accuracy, *recall.interval, *beside, taken_for.get(k, "")))
    return scores


def count_recalls(rows: ScoredRows) -> dict[int, Count]:
    """The correct rows of each class that has rows."""
    total = np.bincount(rows.labels, minlength=len(rows.class_names))
    correct = np.bincount(rows.labels[rows.right], minlength=len(rows.class_names))
    return {int(k): Count(int(correct[k]), int(total[k])) for k in np.flatnonzero(total)}


def confused_pairs(rows: ScoredRows) -> list[ConfusedPair]:
    """Every pair of classes that is confused, the most frequent first."""
    counts = confusion_matrix(rows.labels, rows.predicted, labels=np.arange(len(rows.class_names)))
    total = counts.sum(1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[: np.count_nonzero(counts)]
    pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
    return [ConfusedPair(int(k), int(j), count=int(counts[k, j]), rows=int(total[k])) for k, j in pairs]
