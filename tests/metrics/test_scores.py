"""Scores against closed formulas and scikit-learn, without a network and without a cache."""

import json
import math
import socket
from dataclasses import asdict

import evaluate
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from creature.metrics.accuracy import Count, count_correct
from creature.metrics.scores import ClassificationScores, score, score_by

K = 5
RNG = np.random.default_rng(0)
LABELS = RNG.choice([0, 1, 3, 4], 200)  # no row of class 2
PREDICTED = np.where(RNG.random(200) < 0.6, LABELS, RNG.integers(0, K, 200))


def wilson(correct: int, n: int) -> tuple[float, float]:
    z, p = 1.959963984540054, correct / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a score asked the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (950, 1000), (1, 30_000)])
def test_the_interval_is_wilson_s(correct, n):
    low, high = Count(correct, n).interval
    np.testing.assert_allclose((low, high), wilson(correct, n), atol=1e-12)
    assert 0 <= low <= correct / n <= high <= 1


def test_a_count_says_what_it_rests_on():
    low, high = wilson(7, 20)
    assert str(Count(7, 20)) == f"0.3500 [{low:.4f}, {high:.4f}] (n = 20)"
    figures = Count(7, 20).figures()
    assert figures | {"low": 0, "high": 0} == {"accuracy": 0.35, "correct": 7, "n": 20, "low": 0, "high": 0}
    np.testing.assert_allclose((figures["low"], figures["high"]), (low, high))


def test_correct_rows_are_counted():
    assert count_correct(np.array([1, 2, 0, 0]), np.array([1, 0, 0, 2])) == Count(2, 4)


def test_scores_are_scikit_learn_s():
    actual = score(PREDICTED, LABELS, K)
    assert (actual.n, actual.correct) == (200, int((PREDICTED == LABELS).sum()))
    assert actual.accuracy == accuracy_score(LABELS, PREDICTED)
    present = [0, 1, 3, 4]
    assert actual.macro_f1 == pytest.approx(f1_score(LABELS, PREDICTED, labels=present, average="macro"), abs=1e-15)
    recall = recall_score(LABELS, PREDICTED, labels=present, average=None)  # pyright: ignore[reportArgumentType]
    assert [actual.class_recall[k] for k in present] == pytest.approx(np.asarray(recall).tolist())
    np.testing.assert_allclose(actual.interval, wilson(actual.correct, 200))


def test_an_epoch_s_score_is_scikit_learn_s():
    present = sorted(set(LABELS.tolist()))
    recall = recall_score(LABELS, PREDICTED, labels=present, average="macro")
    f1 = f1_score(LABELS, PREDICTED, labels=present, average="macro")
    assert score_by("balanced_accuracy", PREDICTED, LABELS, classes=K) == pytest.approx(recall)
    assert score_by("macro_f1", PREDICTED, LABELS, classes=K) == pytest.approx(f1)


def test_a_class_without_rows_has_no_recall_and_no_part_in_the_f1():
    actual = score(np.array([0, 2, 1, 1]), np.array([0, 0, 1, 1]), 4)
    assert actual.class_recall == [0.5, 1.0, None, None]
    assert actual.classes_without_rows == [2, 3]
    assert actual.macro_f1 == pytest.approx((2 / 3 + 1) / 2)


def test_a_class_that_is_never_predicted_counts_as_zero():
    actual = score(np.array([0, 0]), np.array([0, 1]), 2)
    assert actual.class_recall == [1.0, 0.0] and actual.macro_f1 == pytest.approx((2 / 3) / 2)


def test_scores_are_plain_json():
    actual = asdict(score(PREDICTED, LABELS, K))
    assert json.loads(json.dumps(actual)) == {**actual, "interval": list(actual["interval"])}


def test_the_scores_are_a_metric_of_evaluate(tmp_path):
    assert issubclass(ClassificationScores, evaluate.Metric)
    metric = ClassificationScores(cache_dir=str(tmp_path))
    actual = metric.compute(predictions=[0, 1], references=[0, 1], classes=2)
    assert actual == {"accuracy": 1.0, "macro_f1": 1.0, "class_recall": [1.0, 1.0]}


def test_a_cache_that_cannot_be_written_is_not_asked_for(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "file" / "metrics"))
    assert score(PREDICTED, LABELS, K).n == 200
