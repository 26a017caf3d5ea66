"""Labels that may be wrong: planted errors come first, and what is written names them safely."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from creature.data.folds import FoldTable, read_folds, write_folds
from creature.errors import UserError
from creature.metrics.label_errors import confident, suspects
from creature.metrics.predictions import Predictions, load_predictions, save_predictions
from creature.reporting import labels
from helpers.fold_files import folds_rows
from helpers.runs import read_csv, read_table


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
    actual = suspects(probabilities, given)
    assert wrong[actual[: wrong.sum()]].mean() > 0.8
    assert (probabilities[actual].argmax(1) != given[actual]).all()
    assert len(actual) == (probabilities.argmax(1) != given).sum()
    assert (np.diff(probabilities[actual, given[actual]]) >= 0).all()


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
    rows = read_table(out)
    truth = {row[0]: row[1] for row in folds_rows(run)}
    wrong, class_names = {}, read_folds(run).class_names
    for fold in range(3):
        held = load_predictions(run / f"fold-{fold}/held_out.safetensors")
        wrong |= {
            name: held.class_names[logits.argmax()]
            for name, logits in zip(held.ids, held.logits, strict=True)
            if logits.argmax() != truth[name]
        }
    assert {row["image"]: row["member_says"] for row in rows} == wrong
    assert all(row["label"] == class_names[truth[row["image"]]] for row in rows)
    likely = [float(row["probability"]) for row in rows]
    assert likely == sorted(likely) and len(rows) > 20
    assert f"{len(rows)}; next: look at them" in capsys.readouterr().out.replace("\n", " ")


def made_up(run: Path, folder: Path, names: tuple[str, ...], ids: list[str], given, fold, logits) -> Path:
    """A run folder that says what it is told to: ids with labels, who holds them out, and logits of those held out."""
    given, fold = np.array(given), np.array(fold)
    (folder / "fold-0").mkdir(parents=True)
    shutil.copy(run / "recipe.yaml", folder)
    shutil.copy(run / "fold-0/result.json", folder / "fold-0")
    rows = pa.array(ids)
    write_folds(
        folder,
        FoldTable(1, 0, names, fingerprint="made up", ids=rows, labels=given, partitions=(fold,), hashes=rows, bad={}),
    )
    held = tuple(name for name, of in zip(ids, fold, strict=True) if of == 0)
    labels, hashes = given[fold == 0].astype(int), ("",) * len(held)
    save_predictions(
        folder / "fold-0/held_out.safetensors",
        Predictions(held, hashes, labels, logits=np.array(logits, np.float32), class_names=names),
    )
    return folder


def test_names_steer_neither_terminal_nor_spreadsheet(run: Path, tmp_path, capsys):
    names, ids = ("=1+1", "\x1b[31mred"), ["-cmd|' /C calc'!A0", "\x1b]0;taken\x07.jpg", "[bold]x.jpg"]
    folder = made_up(run, tmp_path / "hostile", names, ids, [0, 1, 0], [0, 0, 0], [[0, 3], [2, 0], [0, 1]])
    assert labels.main([str(folder)]) == 0
    rows = read_csv(folder / "labels.csv")[1:]
    assert [row[0] for row in rows] == ["'-cmd|' /C calc'!A0", "\\x1b]0;taken\\x07.jpg", "[bold]x.jpg"]
    assert [row[1] for row in rows] == ["'=1+1", "\\x1b[31mred", "'=1+1"]
    message = capsys.readouterr().out
    assert "\x1b" not in message and "[bold]x.jpg" in message


def test_what_a_row_means_and_what_comes_next_is_said(run: Path, tmp_path, capsys):
    folder = made_up(run, tmp_path / "one", ("a", "b"), ["1", "2"], [0, 1], [0, 0], [[0, 3], [0, 3]])
    assert labels.main([str(folder)]) == 0
    message = " ".join(capsys.readouterr().out.split())
    assert "The model is wrong or the label" in message and "correct the wrong labels, and train again" in message
    folder = made_up(run, tmp_path / "none", ("a", "b"), ["1", "2"], [0, 1], [0, 0], [[3, 0], [0, 3]])
    assert labels.main([str(folder)]) == 0
    assert "no label is contradicted" in capsys.readouterr().out


def test_images_that_the_one_model_was_trained_on_are_said_not_to_be_judged(run: Path, tmp_path, capsys):
    folder = made_up(run, tmp_path / "one", ("a", "b"), list("1234"), [0, 1, 0, 1], [-1, -1, 0, -1], [[0, 3]])
    assert labels.main([str(folder)]) == 0
    message = capsys.readouterr()
    assert "3 images are not judged, for the one model was trained on them" in message.err
    assert "no finished fold holds" not in message.err and "of 1 images" in message.out


def test_planted_errors_stand_first_in_the_table_and_their_classes_in_the_summary(run: Path, tmp_path, capsys):
    """Of five classes the rows of one are mislabelled, as the last class; the logits are of models of some skill."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 400)
    wrong = (truth == 0) & (rng.random(400) < 0.3)
    ids, given, logits = [f"{k}.jpg" for k in range(400)], np.where(wrong, 4, truth), rng.normal(size=(400, 5))
    logits[np.arange(400), truth] += 4
    folder = made_up(run, tmp_path / "planted", tuple("abcde"), ids, given, np.zeros(400, int), logits)
    assert labels.main([str(folder), "--top", "3"]) == 0
    rows = read_table(folder / "labels.csv")
    first = [wrong[ids.index(row["image"])] for row in rows[: wrong.sum()]]
    assert np.mean(first) > 0.8 and {row["surely"] for row in rows if row["label"] == "e"} == {"yes", "no"}
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    classes = [[cell.strip() for cell in line] for line in lines if len(line) == 5]
    assert classes[0][:2] == ["e", str((given == 4).sum())] and classes[0][4] == "a"
    assert sum(len(line) == 4 for line in lines) == 3


def test_folds_that_are_not_finished_are_said(run: Path, tmp_path, capsys):
    part = tmp_path / "part"
    shutil.copytree(run, part)
    shutil.rmtree(part / "fold-1")
    shutil.rmtree(part / "ensemble", ignore_errors=True)  # what other tests asked of the run
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
    with pytest.raises(UserError, match="--top must be 1 or more"):
        labels.main([str(bare), "--top", "0"])
