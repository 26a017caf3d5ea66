"""Labels that may be wrong, by the probabilities of models that never saw the row. N rows, K classes.

Self-confidence and the confident joint are those of Northcutt et al. 2021 (Confident Learning; cleanlab).
"""

from collections.abc import Sequence

import numpy as np

CLASS_COLUMNS = ("class", "images", "contradicted", "surely", "most often put into")


def suspects(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows whose most probable class is another than their label, the least probable label first.

    Given probabilities (N, K) and labels (N,). The ranking is self-confidence, which was measured to find more flipped
    labels of photographs than the normalized margin, or either of them adjusted by class.
    """
    contradicted = np.flatnonzero(probabilities.argmax(1) != labels)
    return contradicted[np.argsort(probabilities[contradicted, labels[contradicted]], kind="stable")]


def confident(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each row (N,) has another class at least as probable as that class is on average for its own rows.

    That average is the threshold by which the confident joint counts wrong labels.
    """
    classes = np.arange(probabilities.shape[1])
    average = np.array([probabilities[labels == k, k].mean() if (labels == k).any() else np.inf for k in classes])
    reached = np.where(probabilities >= average, probabilities, 0.0)
    return reached.any(1) & (reached.argmax(1) != labels)


def by_class(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, ...]]:
    """A line of CLASS_COLUMNS for each class with contradicted labels, those with the largest share first."""
    contradicted, sure = suspects(probabilities, labels), confident(probabilities, labels)
    predicted = probabilities.argmax(1)
    shares: dict[tuple[str, ...], float] = {}
    for k, name in enumerate(class_names):
        rows, total = contradicted[labels[contradicted] == k], int((labels == k).sum())
        if len(rows):
            most_often = class_names[int(np.bincount(predicted[rows]).argmax())]
            shares[name, str(total), str(len(rows)), str(int(sure[rows].sum())), most_often] = len(rows) / total
    return sorted(shares, key=lambda line: -shares[line])
