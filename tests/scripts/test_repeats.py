"""Folds drawn several times: R members that never saw a row, whose ensemble stands in for the whole one."""

import csv
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from torchvision.transforms.functional import to_tensor

import ensemble
from creature.data.folds import FoldTable, assign_folds, folds_hash, read_folds, write_folds
from creature.ensembling import out_of_fold
from creature.ensembling.calibrate import rows_of_ensemble
from creature.errors import BrokenError, UserError
from creature.member_folds import find_members
from creature.metrics.accuracy import Count
from creature.metrics.blend import Blending, blend
from creature.metrics.predictions import load_predictions, save_predictions
from creature.metrics.recorded import load_recorded
from creature.publishing import publish
from creature.recipe_file import check_recipe
from creature.reporting import labels, report
from creature.reporting.study import read_runs
from creature.run import Run
from creature.storage import file_hash
from helpers import faults
from helpers.fold_files import folds_rows, old_text
from helpers.memory import holding
from helpers.runs import TINY, read_table, start, weights_hash

TWICE = ("folds.repeats=2", "schedule.epochs=1")
GOLDEN = """{
 "count": 3,
 "seed": 5,
 "fingerprint": "ff",
 "names": [
  "cat",
  "a \\"dog\\"",
  "\\u732b"
 ],
 "bad": {
  "x/bad.png": "empty file"
 },
 "columns": ["id", "label", "fold", "hash"],
 "rows": [
["x/0.png", 0, 1, "a0"],
["x/1.png", 1, 1, "a1"],
["x/2.png", 2, 1, "a2"],
["x/3.png", 0, 2, "a3"],
["x/4.png", 1, 2, "a4"],
["x/5.png", 2, 2, "a5"],
["x/6.png", 0, 0, "a6"],
["x/7.png", 1, 0, "a7"],
["x/8.png", 2, 0, "a8"]
],
 "sha256": "8fa4212b80b942ed2dd0abc441e5de544d71ebe234677c9c94e67abecc749200"}
"""  # as it was before there were repeats


def drawn_folds(rows: int = 9, repeats: int = 1, seed: int = 5) -> FoldTable:
    labels, groups = np.arange(rows) % 3, [str(row - row % 9 // 8) for row in range(rows)]
    return FoldTable(
        count=3,
        seed=seed,
        class_names=("cat", 'a "dog"', "猫"),
        fingerprint="ff",
        ids=pa.chunked_array([[f"x/{row}.png" for row in range(rows)]]),
        labels=labels,
        partitions=tuple(assign_folds(labels, groups, 3, seed=seed, repeat=repeat) for repeat in range(repeats)),
        hashes=pa.chunked_array([[f"a{row}" for row in range(rows)]]),
        bad={"x/bad.png": "empty file"},
    )


def test_a_fold_file_of_an_earlier_version_is_read_and_has_the_hash_that_it_always_had(tmp_path):
    (tmp_path / "folds.json").write_text(GOLDEN)
    again, folds = read_folds(tmp_path), drawn_folds()
    assert again.table.equals(folds.table) and old_text(folds) == GOLDEN
    for name in ("count", "seed", "class_names", "fingerprint", "bad"):
        assert getattr(again, name) == getattr(folds, name)
    assert folds_hash(again) == folds_hash(folds) == "bc63673c8899e52476edeb657e46c9bfda5231631b4fb4cdf210a49cecb6c210"


def test_without_repeats_a_recipe_has_the_identity_that_it_always_had(tiny):
    settings = json.loads(tiny.read_text())
    once, twice = (check_recipe(settings | {"folds": {"count": 3, "repeats": n}}, "") for n in (1, 2))
    before = "b5fef556300479814a8e32ea8acbf6b5aedfea1434f05468e7890433349eba70"
    assert once.identity() == check_recipe(settings, "").identity() == before != twice.identity()


def test_with_repeats_a_fold_file_is_read_as_it_was_written_and_has_another_hash(tmp_path):
    folds = drawn_folds(300, 3)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/folds.json").write_text(old_text(folds))
    write_folds(tmp_path, folds)
    for again in (read_folds(tmp_path), read_folds(tmp_path / "old")):
        assert again.table.column_names == ["id", "label", "fold", "repeat_1", "repeat_2", "hash"]
        assert again.table.equals(folds.table) and again.members == 9
        np.testing.assert_array_equal(again.partitions, folds.partitions)
    hashes = {folds_hash(drawn_folds(300, repeats)) for repeats in (1, 2, 3)}
    assert len(hashes) == 3 and folds_hash(read_folds(tmp_path)) in hashes
    assert (drawn_folds(300, 3).partitions[0] == drawn_folds(300, 1).partitions[0]).all()


def test_the_partitions_of_a_mapped_fold_file_hold_no_memory_for_a_row(tmp_path):
    write_folds(tmp_path, drawn_folds(20_000, 5))
    folds, held = holding(lambda: read_folds(tmp_path))
    assert len(folds.partitions) == 5 and held <= 20_000


@pytest.mark.parametrize("repeats", [0, 1, 3, 10**12, "2", True, None])
def test_a_fold_file_that_has_not_the_repeats_that_it_says_is_refused(tmp_path, repeats):
    path = tmp_path / "folds.json"
    data = json.loads(old_text(drawn_folds(9, 2)))
    del data["sha256"]
    path.write_text(json.dumps(data | {"repeats": 2}))
    assert read_folds(tmp_path).members == 6
    path.write_text(json.dumps(data | {"repeats": repeats}))
    with pytest.raises(BrokenError, match="cannot be read as a fold file"):
        read_folds(tmp_path)
    data["rows"][0][3] = 3
    path.write_text(json.dumps(data | {"repeats": 2}))
    with pytest.raises(BrokenError, match="a label or fold that does not exist"):
        read_folds(tmp_path)


SIZES = [*range(1, 15), *[1] * 95]  # of groups, as sites have them: 14 of other sizes, and many images that stand alone


def all_differ(drawn: list[np.ndarray]) -> bool:
    """Whether no two assignments put the same rows together, whatever their folds are called."""
    together = [fold[:, None] == fold for fold in drawn]
    return all((one != other).any() for one, other in itertools.combinations(together, 2))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_partitions_differ_and_each_is_stratified_and_keeps_groups_together(seed):
    labels = np.random.default_rng(seed).integers(0, 4, 200)
    alone = [str(row) for row in range(200)]
    drawn = [assign_folds(labels, alone, 5, seed=seed, repeat=repeat) for repeat in range(4)]
    for fold in drawn:
        counts = np.array([np.bincount(labels[fold == k], minlength=4) for k in range(5)])
        assert np.ptp(counts, axis=0).max() <= 1
    groups = np.repeat(np.arange(len(SIZES)), SIZES).astype(str)
    grouped = [assign_folds(labels, groups, 5, seed=seed, repeat=repeat) for repeat in range(4)]
    for fold in grouped:
        assert len(set(zip(groups, fold.tolist(), strict=True))) == len(SIZES)
        assert np.ptp(np.bincount(fold, minlength=5)) <= 14
    assert all_differ(drawn) and all_differ(grouped)


@pytest.mark.parametrize("seed", range(20))
def test_large_groups_too_are_put_together_anew_in_each_partition(seed):
    """Dealt in the order of their sizes, they would be the same each time; by chance 3 % of seeds draw two alike."""
    groups = np.repeat(np.arange(len(SIZES)), SIZES)
    labels = np.random.default_rng(seed).integers(0, 4, 200)
    drawn = [assign_folds(labels, groups.astype(str), 5, seed=seed, repeat=repeat) for repeat in range(4)]
    assert all_differ([fold[groups < 14] for fold in drawn])


def test_other_seeds_draw_other_repeats():
    drawn = [drawn_folds(90, 3, seed).partitions for seed in (0, 1, 2)]
    assert len({fold.tobytes() for partitions in drawn for fold in partitions}) == 9


def test_each_repeat_holds_each_row_out_once():
    folds = drawn_folds(90, 2)
    held = np.stack([folds.held_out(fold) for fold in range(folds.members)])
    assert (held.sum(0) == 2).all() and (held[:3].sum(0) == 1).all() and (held[3:].sum(0) == 1).all()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"count": 1, "repeats": 2}, "folds.repeats: one model has no folds that could be drawn again"),
        (
            {"count": 3, "repeats": 2, "train": [6]},
            "folds.train: 6 is no fold; with folds.count 3 and folds.repeats 2 ",
        ),
        ({"repeats": 0}, "folds.repeats: input should be greater than or equal to 1"),
    ],
)
def test_repeats_that_make_no_sense_are_refused(values, line):
    images = {"train": ["x"], **({"validation": ["y"]} if values.get("count") == 1 else {})}
    with pytest.raises(UserError) as caught:
        check_recipe({**TINY, "images": images, "folds": values}, "test")
    assert str(caught.value).startswith(f"test: 1 mistake\n  {line}")


def test_all_members_of_all_repeats_are_trained():
    recipe = check_recipe({**TINY, "images": {"train": ["x"]}, "folds": {"count": 3, "repeats": 2}}, "test")
    assert recipe.train_folds == (0, 1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, set[int]]]:
    """A run of three folds, drawn twice, and the rows that each member's steps have seen."""
    out, seen = tmp_path_factory.mktemp("repeats") / "run", {}
    with pytest.MonkeyPatch.context() as patch:
        faults.before_steps(
            patch, lambda step: seen.setdefault(step.learner.fold, set()).update(map(int, step.batch.rows))
        )
        assert start(tiny, out, *TWICE) == 0
    return out, seen


@pytest.fixture(scope="module")
def twice(trained: tuple[Path, dict[int, set[int]]]) -> Path:
    return trained[0]


def answers(run: Path) -> dict[str, list[np.ndarray]]:
    """By id, what the members say that held it out."""
    actual: dict[str, list[np.ndarray]] = {}
    for fold in sorted(run.glob("fold-*")):
        held = load_predictions(fold / "held_out.safetensors")
        for name, logits in zip(held.ids, held.logits, strict=True):
            actual.setdefault(name, []).append(logits)
    return actual


def truth(run: Path) -> dict[str, int]:
    return {row[0]: row[1] for row in folds_rows(run)}


def test_every_row_has_as_many_members_as_repeats_that_no_step_showed_it_to(trained):
    run, seen = trained
    ids = read_folds(run).ids.to_pylist()
    assert sorted(seen) == list(range(6))
    unseen = {fold: {name for row, name in enumerate(ids) if row not in rows} for fold, rows in seen.items()}
    for fold, names in unseen.items():
        assert set(load_predictions(run / f"fold-{fold}/held_out.safetensors").ids) == names
    assert all(sum(name in names for names in unseen.values()) == 2 for name in ids)
    for name, _, *drawn, _ in folds_rows(run):
        assert {fold for fold, names in unseen.items() if name in names} == {drawn[0], 3 + drawn[1]}


def test_the_ensemble_of_a_row_is_of_the_members_that_no_step_showed_it_to(trained):
    run, seen = trained
    rows = out_of_fold.unseen_rows(find_members([run]))
    ids = read_folds(run).ids.to_pylist()
    assert sorted(rows.ids) == sorted(ids) and rows.logits.shape == (2, 72, 12)
    for name, message in zip(rows.ids, rows.logits.transpose(1, 0, 2), strict=True):
        row = ids.index(name)
        innocent = [fold for fold in range(6) if row not in seen[fold]]
        for fold, run_copy in zip(innocent, message, strict=True):
            held = load_predictions(run / f"fold-{fold}/held_out.safetensors")
            np.testing.assert_array_equal(held.logits[held.ids.index(ids[row])], run_copy)


@pytest.mark.parametrize("strategy", ["logits", "softmax", "vote"])
def test_the_ensemble_of_repeats_is_scored_beside_each_repeat_and_named(twice, tmp_path, capsys, strategy):
    shutil.copytree(twice, tmp_path / "run")
    assert ensemble.main([str(tmp_path / "run"), "--strategy", strategy]) == 0
    shown, classes = capsys.readouterr().out, truth(twice)
    right = sum(
        int(blend(np.stack(message)[:, None], strategy).argmax()) == classes[name]
        for name, message in answers(twice).items()
    )
    table, sentence = shown.replace("│", " ").split("The ensemble of 2")
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert f"{tmp_path / 'run'}, ensemble of 2 models that never saw the image {Count(right, 72)}" in lines
    each = [json.loads((twice / f"fold-{fold}/result.json").read_text())["correct"] for fold in range(6)]
    for repeat in (0, 1):
        pooled = Count(sum(each[3 * repeat : 3 * repeat + 3]), 72)
        assert f"{tmp_path / 'run'}, repeat {repeat}, 3 folds pooled {pooled}" in lines
    assert "(n = 144)" not in shown  # no row counts twice
    assert (
        f"(by {strategy}, equal weights) stands in for that of all 6, which is larger and can't be scored" in sentence
    )
    message = json.loads((tmp_path / "run/ensemble/result.json").read_text())
    assert message["ensemble_of_repeats"] == {"models": 2, **Count(right, 72).figures()}
    assert message["out_of_fold"] == Count(sum(each[:3]), 72).figures() and len(message["members"]) == 6
    assert type(message["out_of_fold"]["n"]) is type(message["ensemble_of_repeats"]["correct"]) is int


def test_without_repeats_nothing_is_said_of_them(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    ensemble.main([str(tmp_path / "run")])
    report.main([str(tmp_path / "run"), "--out", str(tmp_path / "report")])
    message = capsys.readouterr().out + (tmp_path / "run/ensemble/result.json").read_text()
    assert not any(word in message for word in ("repeat 0", "several times", "ensemble of", "ensemble_of", "stands in"))


def test_predictions_of_a_member_in_the_place_of_another_s_are_refused(twice, tmp_path):
    shutil.copytree(twice, tmp_path / "run")
    shutil.copyfile(twice / "fold-0/held_out.safetensors", tmp_path / "run/fold-3/held_out.safetensors")
    with pytest.raises(BrokenError, match=r"fold-3.held_out.safetensors: its rows are not those"):
        out_of_fold.unseen_rows(find_members([tmp_path / "run"]))
    shutil.copytree(twice, tmp_path / "other")
    shutil.move(tmp_path / "other/fold-0", tmp_path / "other/fold-6")
    result = json.loads((twice / "fold-0/result.json").read_text()) | {"fold": 6}
    (tmp_path / "other/fold-6/result.json").write_text(json.dumps(result))
    with pytest.raises(BrokenError, match="fold: 6 is none of the run's folds"):
        ensemble.main([str(tmp_path / "other")])


def test_a_repeat_that_is_not_finished_is_left_out_and_the_lack_is_said(twice, tmp_path, capsys):
    part = tmp_path / "part"
    shutil.copytree(twice, part)
    shutil.rmtree(part / "fold-4")
    ensemble.main([str(part)])
    shown = capsys.readouterr().out
    assert "ensemble of" not in shown.partition("an ensemble that never saw an image needs")[0]
    assert "needs finished folds of two repeats" in shown and "repeat 1, 2 folds pooled" in shown
    (actual,) = read_runs([str(part)], None)
    assert len(actual.held.ids) == 72 and actual.unseen.models == 1
    ensemble.main([str(part / "fold-0"), str(part / "fold-3")])  # rows that both held out, and no others
    assert "ensemble of 2 models" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    rows = out_of_fold.unseen_rows(find_members([part / "fold-0", part / "fold-3"]))
    folds = read_folds(part)
    assert sorted(rows.ids) == sorted(folds.ids.filter(folds.held_out(0) & folds.held_out(3)).to_pylist())


def test_a_resumed_repeat_has_the_weights_of_an_uninterrupted_one(twice, tiny, tmp_path):
    faults.start_until_step(2, tiny, tmp_path / "cut", *TWICE, "folds.train=[4]")
    assert start(tiny, tmp_path / "cut", *TWICE, "folds.train=[4]", resume=True) == 0
    assert weights_hash(tmp_path / "cut/fold-4") == weights_hash(twice / "fold-4")
    assert (tmp_path / "cut/folds.arrow").read_bytes() == (twice / "folds.arrow").read_bytes()
    with pytest.raises(UserError, match=r"folds\.repeats: 2 -> 3"):
        start(tiny, tmp_path / "cut", "schedule.epochs=1", "folds.repeats=3", resume=True)


def test_members_of_other_repeats_are_not_combined(twice, run):
    with pytest.raises(UserError, match=r"must share one fold table \(same images, folds.count, folds.repeats"):
        ensemble.main([str(twice), str(run)])


def other_answers(fold: Path) -> None:
    """Have a member say something else of the rows that it held out: every other one is right, the rest is noise."""
    held, classes = load_predictions(fold / "held_out.safetensors"), truth(fold.parent)
    logits = np.random.default_rng(0).normal(size=held.logits.shape).astype(np.float32)
    for row, name in enumerate(held.ids[::2]):
        logits[2 * row, classes[name]] += 99
    (fold / "held_out.safetensors").unlink()  # which kept/ has, too
    save_predictions(fold / "held_out.safetensors", replace(held, logits=logits))
    weights, result = fold / "model.safetensors", json.loads((fold / "result.json").read_text())
    save_file(load_file(weights), weights, {"format": "pt", "fold": "another one"})  # a copy would be refused
    result["sha256"]["model.safetensors"] = file_hash(weights)
    (fold / "result.json").write_text(json.dumps(result))


def test_weights_of_runs_are_chosen_on_their_ensembles_of_repeats(twice, tmp_path, capsys):
    shutil.copytree(twice, tmp_path / "other")
    for fold in find_members([tmp_path / "other"]):
        other_answers(fold.folder)
    assert ensemble.main([str(twice), str(tmp_path / "other"), "--weights"]) == 0
    shown = capsys.readouterr().out.partition("Weights, chosen")[2]
    classes = truth(twice)
    for run in (twice, tmp_path / "other"):
        right = sum(np.stack(message).mean(0).argmax() == classes[name] for name, message in answers(run).items())
        assert any(str(run) in line and str(Count(int(right), 72)) in line for line in shown.splitlines())
    both = [
        np.mean([*mine, *theirs], axis=0).argmax() == classes[name]
        for (name, mine), theirs in zip(answers(twice).items(), answers(tmp_path / "other").values(), strict=True)
    ]
    assert any("equal weights" in line and str(Count(int(sum(both)), 72)) in line for line in shown.splitlines())


def test_report_and_labels_go_by_the_ensemble_of_repeats_and_count_each_row_once(twice, run, tmp_path, capsys):
    shutil.copytree(twice, tmp_path / "twice")
    assert report.main([str(tmp_path / "twice"), str(run), "--out", str(tmp_path / "report")]) == 0
    (actual,) = read_runs([str(tmp_path / "twice")], None)
    models, rows, probabilities = actual.unseen.models, actual.unseen.rows, actual.unseen.probabilities
    message = answers(twice)
    expected = [blend(np.stack(message[name])[:, None])[0] for name in rows.ids]
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    with (tmp_path / "report/scores.csv").open(newline="") as file:
        records = {(row["run"], row["split"]): row for row in csv.DictReader(file)}
    assert models == 2 and float(records["twice", "held_out_ensemble_of_2"]["accuracy"]) == rows.count.accuracy
    held = {row["n"] for (_, split), row in records.items() if split.startswith("held_out")}
    assert held == {"72"} and ("tiny", "held_out_ensemble_of_2") not in records
    text = (tmp_path / "report/scores.md").read_text()
    assert f"(n = {len(rows.ids)}) by 2 members" in text and "twice (6 of 6 folds)" in text
    assert "Judged by the 2 members that never saw the image" in (tmp_path / "report/index.html").read_text()
    assert labels.main([str(tmp_path / "twice")]) == 0
    listed = read_table(tmp_path / "twice/labels.csv")
    assert {row["image"] for row in listed} == {rows.ids[k] for k in np.flatnonzero(~rows.right)}
    assert "not judged" not in capsys.readouterr().err


def test_a_run_with_repeats_is_published_with_what_can_be_said_of_it(twice, tmp_path, capsys):
    shutil.copytree(twice, tmp_path / "run")
    assert publish.main([str(tmp_path / "run"), "me/x", "--dry-run", "--license", "mit", "--data", "drawn"]) == 0
    main = tmp_path / "run/export/main"
    assert sorted(path.name for path in main.parent.iterdir()) == [*(f"fold-{k}" for k in range(6)), "main"]
    message = json.loads((main / "ensemble.json").read_text())
    assert [member["name"] for member in message["members"]] == [f"fold-{k}" for k in range(6)]
    assert message["ensemble_of_repeats"]["models"] == 2 and message["ensemble_of_repeats"]["n"] == 72
    card, folds = (main / "README.md").read_text(), read_folds(main)
    np.testing.assert_array_equal(folds.partitions, read_folds(twice).partitions)
    assert "| 3 members, each image by the one that never saw it | out of fold |" in card
    assert "| ensemble of 2 members, for each image those that never saw it | out of fold |" in card
    assert "stands in for that of all 6, which is larger and cannot be scored" in " ".join(card.split())
    assert "6 of 6, 3 drawn 2 times, seed 0" in card and "(n = 144)" not in card


def test_what_was_selected_on_the_rows_is_marked_with_the_last_epoch_beside_it(twice, tmp_path):
    shutil.copytree(twice, best := tmp_path / "best")
    for fold in sorted(best.glob("fold-*")):
        other_answers(fold)
        result = json.loads((fold / "result.json").read_text()) | {"selected": True}
        (fold / "result.json").write_text(json.dumps(result))
    actual = find_members([best])
    columns, lines = out_of_fold.out_of_fold_table(actual, "logits")
    assert columns[-1] == "the same at the last epoch" and lines[-1][1].endswith("(n = 72) selected")
    classes = truth(twice)
    last = sum(np.stack(message).mean(0).argmax() == classes[name] for name, message in answers(twice).items())
    assert lines[-1][2] == str(Count(int(last), 72)) != lines[-1][1].removesuffix(" selected")
    shutil.rmtree(best / "fold-3/kept")
    assert out_of_fold.out_of_fold_table(find_members([best]), "logits")[1][-1][2] == "not kept"


@pytest.fixture(scope="module")
def gambled(tiny: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of three folds, drawn twice, on two classes that are nothing but chance; and its images."""
    folder, draw = tmp_path_factory.mktemp("gamble"), np.random.default_rng(0)
    pictures = sorted((drawn / "train").rglob("*.jpg"))
    for name, path in zip(draw.permutation(np.resize(["heads", "tails"], len(pictures))), pictures, strict=True):
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / "train" / name / f"{path.parent.name}-{path.name}")
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", num_classes=2).train()
    pixels = torch.stack([to_tensor(Image.open(path).convert("RGB")) for path in pictures])
    for _ in range(30):  # features of some size, from which a classifier can learn by heart
        model(pixels)
    save_file(model.state_dict(), folder / "w.safetensors")
    settings = (
        f"images.train=[{folder / 'train'}]",
        f"backbone.weights={folder / 'w.safetensors'}",
        "backbone.frozen=true",
        "augment.crop_scale=[0.08,1.0]",
        "optimizer.lr=0.3",
        "folds.repeats=2",
        "schedule.epochs=10",
        "batch_size=8",
    )
    assert start(tiny, folder / "run", *settings) == 0
    return folder / "run", folder / "train"


def test_on_random_labels_the_ensemble_of_repeats_is_chance_and_naive_scoring_is_refused(gambled, tmp_path, capsys):
    run, pictures = gambled
    table = tmp_path / "labels.csv"
    listed = [f"{path.stem},{path.parent.name}" for path in sorted(pictures.rglob("*.jpg"))]
    table.write_text("\n".join(["image_name,label", *listed]) + "\n")
    capsys.readouterr()
    assert ensemble.main([str(run), "--images", str(pictures), "--labels", str(table)]) == 0
    shown = capsys.readouterr().out
    models, count = out_of_fold.score_of_repeats(find_members([run]), "logits") or (0, Count(0, 1))
    assert models == 2 and count.n == 72 and str(count) in shown
    assert binomtest(count.correct, count.n).pvalue > 0.01
    known = load_recorded(run / "ensemble/images.safetensors")
    naive = int((known.predicted["logits"] == known.labels).sum())
    assert binomtest(naive, 72).pvalue < 1e-4  # what members say of rows that they were trained on is no score
    refused = shown.partition("Ensemble of 6")[2]
    assert "72 images, trained on" in refused and "seen" in refused and "(n =" not in refused


def test_promises_of_repeats_are_marked_where_an_epoch_was_selected_and_are_none_of_votes(twice, tmp_path):
    shutil.copytree(twice, best := tmp_path / "best")
    for fold in best.glob("fold-*"):
        result = json.loads((fold / "result.json").read_text()) | {"selected": True}
        (fold / "result.json").write_text(json.dumps(result))
    for run, selected in ((twice, False), (best, True)):
        actual = find_members([run])
        equal = Blending(np.ones(len(actual)))
        rows = rows_of_ensemble(Run(run), actual, equal)
        assert rows and (rows.selected, len(rows.labels)) == (selected, 72)
        assert rows_of_ensemble(Run(run), actual, replace(equal, strategy="vote")) is None
