"""Runs of earlier versions, kept small (make_golden.py): they still predict, explain themselves and go on."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import ensemble
import predict
import train
from creature.metrics.predictions import load_predictions
from creature.run import Fold
from helpers import ROOT
from helpers.runs import losses

GOLDEN = sorted((ROOT / "tests/golden").iterdir())


def test_there_are_golden_runs():
    assert [path.name for path in GOLDEN] == ["0.1-faults", "0.1-first"]


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(request.param, tmp_path / "golden")
    return tmp_path / "golden"


def test_a_finished_fold_of_an_earlier_version_predicts_and_says_how_good_it_is(golden, tmp_path):
    assert predict.main([str(golden / "run/fold-0"), str(golden / "pictures"), "--out", str(tmp_path / "p.csv")]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + 12
    assert ensemble.main([str(golden / "run/fold-0")]) == 0
    held = load_predictions(golden / "run/fold-0/held_out.safetensors")
    assert len(held.ids) == Fold(golden / "run/fold-0").result.n == 6


def test_a_fold_that_an_earlier_version_began_goes_on_to_what_that_version_made_of_it(golden, tmp_path):
    expected = json.loads((golden / "expected.json").read_text())
    settings = ["--set", f"images.train=[{golden / 'pictures'}]", "--out", str(golden / "run"), "--resume"]
    assert (golden / "run/fold-1/state/step-00000003").exists()
    assert train.main(["--recipe", str(golden / "recipe.yaml"), *settings]) == 0
    np.testing.assert_allclose(losses(golden / "run/fold-1"), expected["losses"], rtol=1e-3)
    out = tmp_path / "p.csv"
    words = ["--images", str(golden / "pictures"), "--format", "full", "--out", str(out)]
    assert ensemble.main([str(golden / "run"), *words]) == 0
    with out.open(newline="") as file:
        actual = {row["id"]: (row["label"], float(row["probability"])) for row in csv.DictReader(file)}
    assert {name: label for name, (label, _) in actual.items()} == {
        name: label for name, (label, _) in expected["predictions"].items()
    }
    ours, theirs = ([p for _, p in rows.values()] for rows in (actual, expected["predictions"]))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
