"""Which labels to doubt, by out-of-fold probabilities: of models that never saw the row. N rows, K classes.

Self-confidence and the confident joint are those of Northcutt et al. 2021 (Confident Learning; cleanlab).
"""

from collections.abc import Sequence

import numpy as np

CLASS_COLUMNS = ("class", "images", "contradicted", "surely", "most often put into")


def suspects(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows whose most probable class is another than their label, the least probable label first.

    Of (N, K) probabilities and labels (N,). The ranking is self-confidence, which found more flipped labels of photos
    than the normalized margin, or either of them adjusted by class, did.
    """
    contradicted = np.flatnonzero(probabilities.argmax(1) != labels)
    return contradicted[np.argsort(probabilities[contradicted, labels[contradicted]], kind="stable")]


def confident(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each row (N,) is put into another class as surely as that class's own rows are on average.

    That average is the threshold by which the confident joint counts wrong labels.
    """
    classes = np.arange(probabilities.shape[1])
    usual = np.array([probabilities[labels == k, k].mean() if (labels == k).any() else np.inf for k in classes])
    reached = np.where(probabilities >= usual, probabilities, 0.0)
    return reached.any(1) & (reached.argmax(1) != labels)


def by_class(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[tuple[str, ...]]:
    """A line of CLASS_COLUMNS for each class with contradicted labels, those with the largest share first."""
    rows, sure, said = suspects(probabilities, labels), confident(probabilities, labels), probabilities.argmax(1)
    lines = []
    for k, name in enumerate(names):
        own, total = rows[labels[rows] == k], int((labels == k).sum())
        if len(own):
            into = names[int(np.bincount(said[own]).argmax())]
            lines.append((len(own) / total, (name, str(total), str(len(own)), str(int(sure[own].sum())), into)))
    return [line for _, line in sorted(lines, key=lambda pair: -pair[0])]
