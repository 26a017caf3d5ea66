"""Weights of runs, chosen on out-of-fold predictions."""

import re

import numpy as np
import pytest

import ensemble
import train
from creature.ensembling.weights import choose_weights
from creature.errors import UserError


def answers(right: np.ndarray, strength: float = 2.0) -> np.ndarray:
    """Logits (N, 3) for rows of class 0: right or wrong by `strength`."""
    logits = np.zeros((len(right), 3))
    logits[np.arange(len(right)), np.where(right, 0, 1)] = strength
    return logits


@pytest.mark.parametrize("strategy", ["logits", "softmax"])
def test_a_run_that_only_errs_gets_no_weight(strategy):
    rows = np.arange(300)
    logits = np.stack([answers(rows % 10 != 0), answers(rows < 0, 1.0)])
    np.testing.assert_allclose(choose_weights(logits, np.zeros(300, dtype=int), strategy), [1, 0])


def test_a_run_that_is_less_sure_but_right_elsewhere_gets_weight():
    """What counts is accuracy: a mild run that mends the other's errors is worth having, whatever its log loss."""
    rows = np.arange(300)
    logits = np.stack([answers(rows % 4 != 0, 2.0), answers(rows % 4 != 1, 0.5)])
    logits[1, rows % 4 == 0, 0] = 3.0
    weights = choose_weights(logits, np.zeros(300, dtype=int), "logits")
    assert weights[1] > 0 and (np.tensordot(weights, logits, 1).argmax(1) == 0).all()


def test_equally_good_runs_that_err_apart_share_the_weight():
    rows = np.arange(300)
    logits = np.stack([answers(rows % 3 != k, 1.0) for k in range(3)])
    np.testing.assert_allclose(choose_weights(logits, np.zeros(300, dtype=int), "softmax"), 1 / 3, atol=0.03)


@pytest.fixture(scope="session")
def rival(tiny, tmp_path_factory):
    """A second run on the tiny recipe's folds, with another loss and seed, of one epoch."""
    out = tmp_path_factory.mktemp("runs") / "rival"
    settings = ["loss.name=focal", "seed=1", "schedule.epochs=1"]
    train.main(["--recipe", str(tiny), "--out", str(out), *(word for s in settings for word in ("--set", s))])
    return out


def test_weights_are_chosen_shown_and_used(run, rival, drawn, tmp_path, capsys):
    test = str(drawn / "test")
    assert ensemble.main([str(run), str(rival), "--images", test, "--out", str(tmp_path / "a.csv"), "--weights"]) == 0
    shown = capsys.readouterr().out
    assert "chosen on the other folds" in shown and shown.count("(n = 72)") >= 4
    table = shown.partition("Weights, chosen")[2]
    weights = [re.search(rf"{re.escape(str(each))} *│ *(\d\.\d\d) ", table).group(1) for each in (run, rival)]  # type: ignore[union-attr]
    assert sum(map(float, weights)) == pytest.approx(1)
    ensemble.main([str(run), str(rival), "--images", test, "--out", str(tmp_path / "b.csv"), "--weights", *weights])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_weights_on_one_shared_fold_are_marked(run, rival, capsys):
    ensemble.main([str(run / "fold-0"), str(rival), "--weights"])
    output = capsys.readouterr()
    assert "the runs share one fold only" in output.err
    assert re.search(r"these weights .*\(n = 24\) selected", output.out)


def test_a_run_whose_epoch_was_chosen_on_the_rows_is_marked(run, tiny, tmp_path, capsys):
    best = tmp_path / "best"
    settings = ["checkpoint.select=best", "seed=2", "schedule.epochs=1"]
    train.main(["--recipe", str(tiny), "--out", str(best), *(word for s in settings for word in ("--set", s))])
    capsys.readouterr()
    ensemble.main([str(run), str(best), "--weights"])
    lines = capsys.readouterr().out.partition("Weights, chosen")[2].splitlines()
    marked = {name: any(name in line and "selected" in line for line in lines) for name in (str(best), str(run))}
    assert marked == {str(best): True, str(run): False}
    assert sum("weights" in line and "selected" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--weights"], "chosen among runs; name two or more"),
        (["{run}", "{rival}", "--strategy", "vote", "--weights"], "votes have none of"),
        (["{run}/fold-0", "{rival}/fold-1", "--weights"], "no finished fold in common"),
    ],
)
def test_what_cannot_be_weighed_is_said(run, rival, words, message):
    with pytest.raises(UserError, match=message):
        ensemble.main([word.format(run=run, rival=rival) for word in words])
