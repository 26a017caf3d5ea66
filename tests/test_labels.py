"""Labels that may be wrong: planted errors come first, and what is written names them safely."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from creature.judging import labels
from creature.judging.labels import confident, suspects
from creature.learning.predictions import load_predictions
from creature.terminal import UserError


def planted(rows: int = 1000, classes: int = 5, share: float = 0.05, skill: float = 3.0):
    """Probabilities of a model of some skill, labels of which a share is wrong, and which they are."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), truth] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = rng.permutation(rows) < share * rows
    given = np.where(wrong, (truth + rng.integers(1, classes, rows)) % classes, truth)
    return probabilities, given, wrong


def test_planted_errors_come_first_and_right_answers_never():
    probabilities, given, wrong = planted()
    found = suspects(probabilities, given)
    assert wrong[found[: wrong.sum()]].mean() > 0.8
    assert (probabilities[found].argmax(1) != given[found]).all()
    assert len(found) == (probabilities.argmax(1) != given).sum()
    assert (np.diff(probabilities[found, given[found]]) >= 0).all()


def test_it_is_as_good_as_cleanlab():
    rank = pytest.importorskip("cleanlab.rank", reason="cleanlab is not installed; pip install -e '.[test]' brings it")
    for skill in (1.5, 2.0, 3.0):
        probabilities, given, wrong = planted(skill=skill)
        planted_number = wrong.sum()
        ours = wrong[suspects(probabilities, given)[:planted_number]].mean()
        scores = rank.get_label_quality_scores(given, probabilities)
        assert ours >= wrong[np.argsort(scores, kind="stable")[:planted_number]].mean() - 0.02


def test_a_row_is_surely_of_another_class_where_it_is_as_sure_as_that_class_is_on_average():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.85, 0.15], [0.75, 0.25], [0.2, 0.8], [0.3, 0.7]])
    # Class 0's rows are at 0.8 on average, those labelled 1 at 0.475.
    assert confident(probabilities, np.array([0, 0, 1, 1, 1, 1])).tolist() == [False, False, True, False, False, False]


def test_the_table_has_every_contradicted_row_with_what_the_member_that_never_saw_it_says(run: Path, tmp_path, capsys):
    out = tmp_path / "suspects.csv"
    assert labels.main([str(run), "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    truth = {row[0]: row[1] for row in json.loads((run / "folds.json").read_text())["rows"]}
    wrong = {}
    for fold in range(3):
        held = load_predictions(run / f"fold-{fold}/held_out.safetensors")
        wrong |= {
            name: held.names[logits.argmax()]
            for name, logits in zip(held.ids, held.logits, strict=True)
            if logits.argmax() != truth[name]
        }
    assert {row["image"]: row["member_says"] for row in rows} == wrong
    assert all(row["label"] == held.names[truth[row["image"]]] for row in rows)
    likely = [float(row["probability"]) for row in rows]
    assert likely == sorted(likely) and len(rows) > 20
    assert f"{len(rows)}; next: look at them" in capsys.readouterr().out.replace("\n", " ")


def test_folds_that_are_not_finished_are_said(run: Path, tmp_path, capsys):
    part = tmp_path / "part"
    shutil.copytree(run, part)
    shutil.rmtree(part / "fold-1")
    assert labels.main([str(part)]) == 0
    assert "24 images are not judged" in capsys.readouterr().err
    assert (part / "labels.csv").exists()


def test_a_folder_without_a_finished_fold_is_refused(run: Path, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run / "recipe.yaml", bare)
    with pytest.raises(UserError, match="no finished fold"):
        labels.main([str(bare)])
    with pytest.raises(UserError):
        labels.main([str(tmp_path / "nowhere")])
