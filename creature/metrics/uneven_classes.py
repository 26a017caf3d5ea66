"""What an accuracy hides where classes are uneven: balanced accuracy, and classes that are hardly ever recognised.

N rows, K classes.
"""

import math
from collections.abc import Sequence

import numpy as np

from creature.metrics.accuracy import Count

HARDLY_EVER = 0.1  # recall
REMEDIES = "loss.balance=logit_adjust weighs rare classes up; more images of them help most"


def uneven_lines(predicted: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Lines to show beside the accuracy of predicted classes (N,) against labels (N,); none where classes are even.

    Uneven: the most frequent class has three times the rows of the rarest one, and half as many again as the mean; or
    the rarest one has a tenth of the mean.
    """
    total = np.bincount(labels, minlength=len(class_names))
    present = np.flatnonzero(total)
    most = int(total.argmax())
    rarest, mean = total[present].min(), total[present].mean()
    uneven = total[most] >= max(3 * rarest, 1.5 * mean) or rarest <= mean / 10
    if not uneven:
        return []
    correct = np.bincount(labels[predicted == labels], minlength=len(class_names))
    recalls = {int(k): Count(int(correct[k]), int(total[k])) for k in present}
    balanced, low, high = balanced_accuracy(list(recalls.values()))
    lines = [
        f"classes are uneven: balanced accuracy {balanced:.4f} [{low:.4f}, {high:.4f}] (the mean recall of "
        f"{len(recalls)} classes); always {class_names[most]} would be right on {total[most] / len(labels):.4f}"
    ]
    missed = [
        f"{class_names[k]} {count.correct} of {count.n}" for k, count in recalls.items() if count.accuracy < HARDLY_EVER
    ]
    if missed:
        shown = ", ".join(missed[:10]) + f", and {len(missed) - 10} more" * (len(missed) > 10)
        lines.append(f"hardly ever recognised: {shown}; {REMEDIES}")
    return lines


def balanced_accuracy(recalls: Sequence[Count]) -> tuple[float, float, float]:
    """The mean of recalls with its 95 % interval, of Wilson's of each by the MOVER method (Zou and Donner 2008)."""
    mean = sum(recall.accuracy for recall in recalls) / len(recalls)
    below = math.hypot(*(recall.accuracy - recall.interval[0] for recall in recalls)) / len(recalls)
    above = math.hypot(*(recall.interval[1] - recall.accuracy for recall in recalls)) / len(recalls)
    return mean, mean - below, mean + above
