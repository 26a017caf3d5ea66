"""The head start: a logistic regression on features, of a fold's training rows alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from creature.errors import UserError
from creature.metrics.predictions import load_predictions
from creature.training import features, learner
from creature.training.features import FeatureExtractor
from creature.training.linear_probe import PENALTIES, choose_penalty, solve, solve_classifier
from helpers import faults
from helpers.runs import losses, start, weights_hash


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Some weights, as if pretrained on ten classes."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), path)
    return path


def settings(weights: Path, *more: str) -> tuple[str, ...]:
    return ("backbone.head_start=probe", f"backbone.weights={weights}", *more)


def rows(n: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of three classes around corners that are 1 apart."""
    draw = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % 3
    return torch.eye(8)[labels] + spread * torch.randn(n, 8, generator=draw), labels


@pytest.mark.parametrize("penalty", [1.0, 0.01])
def test_the_solution_is_that_of_scikit_learn(penalty):
    features, labels = rows(300, 0.5)
    weight, bias = solve(features, labels, 3, penalty=penalty)
    other = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-8, max_iter=1000).fit(features, labels)
    np.testing.assert_allclose(weight, other.coef_, atol=2e-3)
    np.testing.assert_allclose(bias - bias.mean(), other.intercept_ - other.intercept_.mean(), atol=2e-3)


def test_the_penalty_is_large_where_features_say_nothing_and_small_where_they_say_all():
    features, labels = rows(300, 0.05)
    noise = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    assert choose_penalty(noise, labels, 3, seed=0) == PENALTIES[0]
    assert choose_penalty(features, labels, 3, seed=0) == PENALTIES[-1]


def test_a_classifier_is_solved_on_features_of_any_scale():
    features, labels = rows(300, 0.3)
    classifier = nn.Linear(8, 3)
    solve_classifier(classifier, features, labels.numpy(), seed=0)
    actual = classifier(features).softmax(1)
    solve_classifier(classifier, 1000 * features, labels.numpy(), seed=0)
    torch.testing.assert_close(classifier(1000 * features).softmax(1), actual, atol=1e-3, rtol=0)
    assert (actual.argmax(1) == labels).float().mean() > 0.9


def test_features_are_computed_once_for_all_folds_and_the_score_before_the_first_step_is_kept(
    tiny, weights, tmp_path, monkeypatch, capsys
):
    extracted = faults.note_calls(monkeypatch, FeatureExtractor, "forward")
    out = tmp_path / "run"
    assert start(tiny, out, *settings(weights, "optimizer.lr=1e-9")) == 0
    seen = [len(call.args[1]) for call in extracted]
    assert sum(seen[1:]) == 72  # the first is the check of the classifier's place
    message = capsys.readouterr().out
    for fold in range(3):
        result = json.loads((out / f"fold-{fold}/result.json").read_text())
        # With frozen statistics and next to no steps, what is trained is what was solved.
        assert result["start"]["n"] == result["n"]
        assert f"starts at a probe of the features: {result['start']['correct'] / result['n']:.4f}" in message


def test_the_first_step_starts_where_the_probe_stands(tiny, weights, tmp_path, capsys):
    out, still = tmp_path / "run", ("optimizer.lr=1e-9", "backbone.freeze_batch_stats=true", "folds.train=[0]")
    assert start(tiny, out, *settings(weights, *still)) == 0
    result = json.loads((out / "fold-0/result.json").read_text())
    assert result["correct"] == result["start"]["correct"] and result["n"] == result["start"]["n"]
    body = [name for name in load_file(weights) if not name.startswith("fc.")]
    before, after = load_file(weights), load_file(out / "fold-0/model.safetensors")
    assert body and all(torch.allclose(before[name].float(), after[name].float(), atol=1e-5) for name in body)


def test_held_out_rows_take_no_part(tiny, weights, tmp_path, monkeypatch):
    still = settings(weights, "optimizer.lr=1e-9", "backbone.freeze_batch_stats=true", "folds.train=[0]")
    assert start(tiny, tmp_path / "plain", *still) == 0
    start_at_probe, spoiled = learner.start_at_probe, []

    def spoil(started, data):
        held = data.folds.held_out(started.fold)
        data.features[held] = 99.0
        spoiled.append(held.sum())
        start_at_probe(started, data)

    monkeypatch.setattr(learner, "start_at_probe", spoil)
    assert start(tiny, tmp_path / "spoiled", *still) == 0
    assert spoiled == [24] and weights_hash(tmp_path / "spoiled/fold-0") == weights_hash(tmp_path / "plain/fold-0")


def test_a_stopped_run_goes_on_bitwise_without_another_probe(tiny, weights, tmp_path, monkeypatch):
    more = settings(weights, "folds.train=[0]")
    assert start(tiny, tmp_path / "whole", *more) == 0
    faults.start_until_step(2, tiny, tmp_path / "cut", *more)
    faults.forbid(monkeypatch, features, "add_features")
    assert start(tiny, tmp_path / "cut", *more, resume=True) == 0
    assert weights_hash(tmp_path / "cut/fold-0") == weights_hash(tmp_path / "whole/fold-0")
    assert losses(tmp_path / "cut/fold-0") == losses(tmp_path / "whole/fold-0")
    results = [json.loads((tmp_path / run / "fold-0/result.json").read_text()) for run in ("whole", "cut")]
    assert results[0]["start"] == results[1]["start"]


def test_random_features_are_no_start(tiny, tmp_path):
    with pytest.raises(UserError, match=r"backbone\.head_start: a probe of random features"):
        start(tiny, tmp_path / "run", "backbone.head_start=probe")


def test_predictions_of_a_probed_fold_are_its_own(tiny, weights, tmp_path):
    assert start(tiny, tmp_path / "run", *settings(weights, "folds.train=[1]")) == 0
    held = load_predictions(tmp_path / "run/fold-1/held_out.safetensors")
    assert len(held.ids) == 24 and np.isfinite(held.logits).all()
