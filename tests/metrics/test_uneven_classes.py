"""What is shown beside an accuracy where classes are uneven."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from creature.metrics.accuracy import Count
from creature.metrics.uneven_classes import balanced_accuracy, uneven_lines

NAMES = ("fox", "owl", "toad")


@pytest.mark.parametrize("counts", [(50, 50, 50), (60, 50, 45), (3, 2, 2), (20, 20, 0)])
def test_even_classes_need_no_more_than_the_accuracy(counts):
    labels = np.repeat(np.arange(3), counts)
    assert uneven_lines(np.zeros_like(labels), labels, NAMES) == []


def test_a_rare_class_that_is_never_right_is_named_beside_the_share_of_the_large_one():
    labels = np.repeat([0, 1], (250, 12))
    predicted = np.where(np.arange(262) == 3, 1, 0)
    balanced, hardly = uneven_lines(predicted, labels, NAMES)
    assert f"balanced accuracy {balanced_accuracy_score(labels, predicted):.4f} [" in balanced
    assert balanced.endswith("(the mean recall of 2 classes); always fox would be right on 0.9542")
    assert hardly.startswith("hardly ever recognised: owl 0 of 12; loss.balance=")


def test_a_class_of_two_beside_even_ones_is_named():
    labels = np.repeat([0, 1, 2], (250, 250, 2))
    lines = uneven_lines(np.where(labels == 2, 0, labels), labels, ("bird", "cat", "deer"))
    assert "balanced accuracy 0.6667" in lines[0] and lines[1].startswith("hardly ever recognised: deer 0 of 2;")


def test_rare_classes_that_are_right_are_not_named():
    labels = np.repeat([0, 1, 2], (90, 8, 8))
    assert len(uneven_lines(labels, labels, NAMES)) == 1


def test_the_interval_holds_the_true_mean_recall_as_often_as_it_says():
    rng, true, sizes = np.random.default_rng(0), np.array([0.9, 0.5, 0.7]), (200, 15, 40)
    inside = 0
    for _ in range(2000):
        recalls = [Count(int(rng.binomial(n, p)), n) for n, p in zip(sizes, true, strict=True)]
        _, low, high = balanced_accuracy(recalls)
        inside += low <= true.mean() <= high
    assert 0.93 <= inside / 2000 <= 0.98
