"""A run's folder, read: which folds there are, and what each of them says; always as the folder is now."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import ensemble
import predict
from creature.errors import BrokenError, UserError
from creature.member_folds import find_members
from creature.metrics.predictions import load_predictions
from creature.reporting import report
from creature.run import Run
from helpers import ROOT
from helpers.runs import start, weights_hash


@pytest.fixture
def run_copy(run: Path, tmp_path: Path) -> Path:
    """The trained run, to be changed; without what other tests predicted with its ensemble."""
    shutil.copytree(run, tmp_path / "run_copy")
    shutil.rmtree(tmp_path / "run_copy/ensemble", ignore_errors=True)
    return tmp_path / "run_copy"


def result(run: Path) -> dict:
    return json.loads((run / "ensemble/result.json").read_text())


@pytest.mark.parametrize("name", ["fold-0-old", "fold-00", "fold-0 (copy)"])
def test_a_copied_fold_is_left_out_with_a_warning_and_its_rows_count_once(run_copy, capsys, name):
    shutil.copytree(run_copy / "fold-0", run_copy / name)
    assert [fold.name for fold in Run(run_copy).folds] == ["fold-0", "fold-1", "fold-2"]
    assert f"{run_copy / name} is left out" in capsys.readouterr().err
    assert ensemble.main([str(run_copy)]) == 0
    assert len(result(run_copy)["members"]) == 3 and result(run_copy)["out_of_fold"]["n"] == 72
    assert Run(run_copy).out_of_fold.score.n == 72
    assert report.main([str(run_copy), "--out", str(run_copy / "report")]) == 0
    with (run_copy / "report/scores.csv").open(newline="") as file:
        assert {row["n"] for row in csv.DictReader(file) if row["split"] == "held_out"} == {"72"}


def test_a_copy_under_another_number_is_refused(run_copy):
    shutil.copytree(run_copy / "fold-0", run_copy / "fold-3")
    with pytest.raises(UserError, match=r"fold-3 holds fold 0, as its result\.json says; a fold counts once"):
        _ = Run(run_copy).folds
    with pytest.raises(UserError, match="move the copy out of the run"):
        ensemble.main([str(run_copy)])


def test_a_fold_and_its_copy_are_no_two_members(run_copy):
    shutil.copytree(run_copy / "fold-0", run_copy / "fold-0-old")
    with pytest.raises(UserError, match=r"fold-0 and .*fold-0-old are both fold 0 of their run"):
        ensemble.main([str(run_copy / "fold-0"), str(run_copy / "fold-0-old")])
    with pytest.raises(UserError, match="a fold is given twice"):
        ensemble.main([str(run_copy), str(run_copy / "fold-0")])


def test_a_run_that_is_trained_again_is_read_again(tiny, tmp_path):
    """Train, ensemble, train other folds and then with another seed, ensemble: in one process."""
    run, settings = tmp_path / "run", ("schedule.epochs=1",)
    start(tiny, run, *settings, "folds.train=[0, 1]")
    assert ensemble.main([str(run)]) == 0
    assert [member["fold"] for member in result(run)["members"]] == ["fold-0", "fold-1"]
    start(tiny, run, *settings, "folds.train=[2]", resume=True)
    assert ensemble.main([str(run)]) == 0
    assert [member["fold"] for member in result(run)["members"]] == ["fold-0", "fold-1", "fold-2"]
    assert result(run)["out_of_fold"]["n"] == 72
    shutil.rmtree(run)
    start(tiny, run, *settings, "seed=1", "folds.seed=1")
    assert ensemble.main([str(run)]) == 0
    folds = [run / f"fold-{k}" for k in range(3)]
    assert [member["sha256"] for member in result(run)["members"]] == list(map(weights_hash, folds))
    right = [json.loads((fold / "result.json").read_text())["correct"] for fold in folds]
    assert [member["out_of_fold"]["correct"] for member in result(run)["members"]] == right


def test_held_out_predictions_say_labels_and_content_hashes_themselves(run):
    table = Run(run).fold_table
    labels = dict(zip(table.ids.to_pylist(), table.labels.tolist(), strict=True))
    hashes = dict(zip(table.ids.to_pylist(), table.hashes.to_pylist(), strict=True))
    for fold in Run(run).folds:
        saved = load_predictions(fold.folder / "held_out.safetensors")
        assert saved.labels.tolist() == [labels[name] for name in saved.ids]
        assert list(saved.content_hashes) == [hashes[name] for name in saved.ids]
        assert saved.score == fold.score and fold.score.correct == fold.result.correct


@pytest.mark.parametrize("golden", ["0.1-first", "0.1-faults"])
def test_held_out_predictions_of_an_older_version_are_read_as_those_of_now(golden):
    (fold,) = Run(ROOT / "tests/golden" / golden / "run").folds
    saved = load_predictions(fold.folder / "held_out.safetensors")
    assert (saved.labels == -1).all() and set(saved.content_hashes) == {""}
    table, held = fold.run.fold_table, fold.held_out
    rows = [table.ids.to_pylist().index(name) for name in held.ids]
    assert held.labels.tolist() == table.labels[rows].tolist() and held.ids == saved.ids
    assert list(held.content_hashes) == [table.hashes[row].as_py() for row in rows] and all(held.content_hashes)
    np.testing.assert_array_equal(held.logits, saved.logits)
    assert (fold.score.correct, fold.score.n) == (fold.result.correct, fold.result.n)


def test_predictions_of_other_rows_are_refused(run_copy):
    shutil.copyfile(run_copy / "fold-1/held_out.safetensors", run_copy / "fold-0/held_out.safetensors")
    with pytest.raises(BrokenError, match="its rows are not those that the run's fold table holds out"):
        _ = Run(run_copy).folds[0].held_out


def test_members_are_found_in_one_order_whatever_the_order_of_the_arguments(run_copy):
    paths = [run_copy / f"fold-{k}" for k in (2, 0, 1)]
    assert [fold.folder for fold in find_members(paths)] == [fold.folder for fold in find_members([run_copy])]
    with pytest.raises(UserError, match="nothing: no such folder"):
        predict.main([str(run_copy / "nothing"), "x.jpg"])


def test_a_run_without_a_finished_fold_has_no_out_of_fold_predictions(tmp_path):
    with pytest.raises(UserError, match="no finished fold here; give a run folder"):
        _ = Run(tmp_path).out_of_fold


def test_a_copied_run_does_not_count_twice(run_copy, tmp_path):
    shutil.copytree(run_copy, tmp_path / "copy")
    with pytest.raises(UserError, match=r"copy/fold-0 and .*run_copy/fold-0 have the same weights; a copy counts once"):
        ensemble.main([str(run_copy), str(tmp_path / "copy")])


def test_a_path_that_is_no_run_is_named(tmp_path):
    for read in (lambda run: run.folds, lambda run: run.recipe, lambda run: run.classes):
        with pytest.raises(UserError, match="nowhere: no such folder"):
            read(Run(tmp_path / "nowhere"))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_the_umask_holds_for_every_file(drawn, tiny, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        start(tiny, tmp_path / "run", "folds.train=[0]", "schedule.epochs=1", "checkpoint.every_epochs=1")
        images, labels = str(drawn / "test"), str(drawn / "test_labels.csv")
        ensemble.main([str(tmp_path / "run"), "--images", images, "--labels", labels, "--out", str(tmp_path / "p.csv")])
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".safetensors" for path in files) > 4
    assert {str(path): path.stat().st_mode & 0o777 for path in files} == {str(path): mode for path in files}
