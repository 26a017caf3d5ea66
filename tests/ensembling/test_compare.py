"""Comparisons of models on the same rows."""

import numpy as np
import pytest
from scipy.stats import chi2

from creature.ensembling.compare import compare_members, disagreements, show_comparison
from creature.metrics.recorded import RecordedPredictions
from creature.metrics.significance import compare_paired, holm
from helpers.runs import read_csv

NAMES = ("cat", "dog", "emu")


def test_mcnemar_s_test_is_exact():
    """Of 10 rows that only one has right, 9 go to the first: 2 (1 + 10) / 1024."""
    first = np.array([True] * 9 + [False] + [True] * 30 + [False] * 5)
    second = np.array([False] * 9 + [True] + [True] * 30 + [False] * 5)
    actual = compare_paired(first, second)
    assert (actual.first, actual.second, actual.n) == (9, 1, 45)
    assert actual.p == pytest.approx(2 * (1 + 10) / 2**10)
    assert actual.difference == pytest.approx(first.mean() - second.mean())


def test_the_exact_test_nears_mcnemar_s_chi_square_for_many_rows():
    actual = compare_paired(np.repeat([True, False], [560, 480]), np.repeat([False, True], [560, 480]))
    assert actual.p == pytest.approx(chi2.sf((560 - 480 - 1) ** 2 / (560 + 480), df=1), rel=0.02)


def test_models_that_never_differ_are_not_told_apart():
    assert compare_paired(np.array([True, False]), np.array([True, False])).p == 1.0


def test_holm_s_correction():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.fixture
def recorded() -> RecordedPredictions:
    """Ten images of cats; the vote is wrong on one more than the mean of logits, fold-0 on four."""
    message = {"logits": 9, "softmax": 9, "vote": 8, "fold-0": 6, "fold-1": 10}
    return RecordedPredictions(
        ids=tuple(f"{row}.jpg" for row in range(10)),
        content_hashes=tuple(f"{row:032x}" for row in range(1, 11)),
        labels=np.zeros(10, dtype=np.int64),
        predicted={name: (np.arange(10) >= right).astype(np.int64) for name, right in message.items()},
        strategy="logits",
        class_names=NAMES,
    )


def test_deciders_are_scored_on_new_pictures_alone(recorded):
    stands = np.array(["seen"] * 5 + ["unseen"] * 5)
    actual = {row.name: row for row in compare_members(recorded, stands)}
    assert {name: (row.count.correct, row.count.n) for name, row in actual.items()} == {
        "logits": (4, 5),
        "softmax": (4, 5),
        "vote": (3, 5),
        "fold-0": (1, 5),
        "fold-1": (5, 5),
    }
    assert actual["logits"].against is None
    assert (actual["vote"].against.first, actual["vote"].against.second) == (0, 1)
    assert actual["fold-0"].p == pytest.approx(min(1.0, 4 * actual["fold-0"].against.p))
    assert compare_members(recorded, np.array(["seen"] * 10)) == []


def test_disagreements_name_picture_truth_and_what_each_said(recorded):
    strategies = ("logits", "softmax", "vote")
    assert disagreements(recorded, strategies) == [("8.jpg", "cat", "cat", "cat", "dog")]
    assert len(disagreements(recorded, tuple(recorded.predicted))) == 4


def test_the_comparison_is_shown_and_written(recorded, tmp_path, capsys):
    show_comparison("test", recorded, np.array(["unseen"] * 9 + ["seen"]), file=tmp_path / "d.csv")
    shown = capsys.readouterr().out
    assert "1 images, trained on" in shown and "(n = 9)" in shown and "(n = 10)" not in shown
    assert "1 of 10 images are given different classes" in shown
    rows = read_csv(tmp_path / "d.csv")
    assert rows[0] == ["image", "label", "logits", "softmax", "vote", "fold-0", "fold-1"]
    assert [row[0] for row in rows[1:]] == ["6.jpg", "7.jpg", "8.jpg", "9.jpg"]
