"""predict.py and ensemble.py: prediction files, honest scores, and what is refused."""

import json
import re
import shutil
import zipfile
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import ensemble
import predict
import train
from creature.console import BROKEN_IMAGES
from creature.errors import Interrupted, UserError
from creature.inference import members, predictor, prepare
from creature.inference.inputs import InputPath, list_inputs, read_inputs
from creature.inference.predictor import predict_batches
from creature.inference.prepare import ImageInput
from creature.metrics.blend import blend
from creature.reporting import report
from creature.run import Run
from helpers import faults
from helpers.processes import read_only
from helpers.runs import read_csv, start


def test_an_ensemble_writes_the_report_s_format(run, drawn, tmp_path):
    out = tmp_path / "prediction.csv"
    assert ensemble.main([str(run), "--images", str(drawn / "test"), "--out", str(out), "--zip"]) == 0
    header, *rows = read_csv(out)
    names = [name for name, _ in rows]
    assert header == ["image_name", "pred_label"]
    assert names == sorted(path.stem for path in (drawn / "test").iterdir()) and len(names) == 24
    assert {label for _, label in rows} <= {path.name for path in (drawn / "train").iterdir()}
    with zipfile.ZipFile(tmp_path / "prediction.zip") as packed:
        assert packed.namelist() == ["prediction.csv"] and packed.read("prediction.csv") == out.read_bytes()


def test_the_ensemble_is_the_blend_of_its_members(run, drawn, tmp_path):
    out = tmp_path / "all.csv"
    test = str(drawn / "test")
    ensemble.main([str(run), "--images", test, "--out", str(out), "--format", "full", "--top", "12"])
    inputs = sorted((drawn / "test").iterdir())
    loaded = [members.load_member(run / f"fold-{k}", torch.device("cpu")) for k in range(3)]
    pictures = read_inputs([InputPath(path.name, str(path)) for path in inputs])
    answers = list(predict_batches(members.predictor(loaded), pictures, 7))
    expected = blend(np.concatenate([batch.logits for batch in answers], axis=1))
    for row, probabilities in zip(read_csv(out)[1:], expected, strict=True):
        assert row[1] == "ok" and row[2] == loaded[0].class_names[probabilities.argmax()]
        np.testing.assert_allclose([float(p) for p in row[3::2]], np.sort(probabilities)[::-1], atol=2e-6)


def test_order_of_members_and_images_changes_no_byte(run, drawn, tmp_path):
    pictures = [str(path) for path in sorted((drawn / "test").iterdir())]
    folds = [str(run / f"fold-{k}") for k in range(3)]
    for name, some, paths in (("a", folds, pictures), ("b", folds[::-1], pictures[::-1])):
        ensemble.main([*some, "--images", *paths, "--out", str(tmp_path / name), "--format", "full", "--top", "3"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_out_of_fold_accuracy_is_printed_per_fold_and_pooled(run, capsys):
    assert ensemble.main([str(run)]) == 0
    shown = capsys.readouterr().out
    results = [json.loads((run / f"fold-{k}/result.json").read_text()) for k in range(3)]
    right = sum(result["correct"] for result in results)
    assert f"{right / 72:.4f}" in shown and "(n = 72)" in shown and shown.count("(n = 24)") == 3
    saved = json.loads((run / "ensemble/result.json").read_text())
    assert (saved["out_of_fold"]["correct"], saved["out_of_fold"]["n"]) == (right, 72)


@pytest.mark.parametrize("ending", ["", ".jpg"])
def test_labelled_images_are_scored(run, drawn, tmp_path, capsys, ending):
    out = tmp_path / "p.csv"
    truth = dict(read_csv(drawn / "test_labels.csv")[1:])
    labels = tmp_path / "labels.csv"
    labels.write_text("image_name,label\n" + "".join(f"{name}{ending},{label}\n" for name, label in truth.items()))
    ensemble.main([str(run), "--images", str(drawn / "test"), "--labels", str(labels), "--out", str(out)])
    right = sum(truth[name] == label for name, label in read_csv(out)[1:])
    assert f"{right / 24:.4f}" in capsys.readouterr().out


def test_a_picture_that_a_member_trained_on_is_seen_whatever_its_name(run, drawn, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(drawn / "test", images)
    shutil.copyfile(drawn / "train/fish/00001.jpg", images / "renamed.jpg")
    labels = tmp_path / "labels.csv"
    labels.write_text((drawn / "test_labels.csv").read_text() + "renamed,fish\n")
    ensemble.main([str(run), "--images", str(images), "--labels", str(labels)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 images, trained on" in shown and "seen" in shown and "(n = 25)" not in shown


def test_only_seen_pictures_get_no_accuracy_at_all(run, drawn, tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    names = [path.stem for path in (drawn / "train/fish").iterdir()]
    labels.write_text("image_name,label\n" + "".join(f"{name},fish\n" for name in names))
    ensemble.main([str(run), "--images", str(drawn / "train/fish"), "--labels", str(labels)])
    ours = capsys.readouterr().out.split("Ensemble of 3")[1]
    assert "seen" in ours and "(n =" not in ours


def test_the_holdout_of_the_recipe_is_scored(tiny, drawn, tmp_path, capsys):
    holdout = tmp_path / "held"
    for name, label in read_csv(drawn / "test_labels.csv")[1:]:
        (holdout / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(drawn / f"test/{name}.jpg", holdout / label / f"{name}.jpg")
    train.main([
        "--recipe", str(tiny), "--out", str(tmp_path / "run"), "--set", f"images.holdout=[{holdout}]",
        "--set", "schedule.epochs=1",
    ])  # fmt: skip
    capsys.readouterr()
    ensemble.main([str(tmp_path / "run")])
    assert "images.holdout" in (shown := capsys.readouterr().out) and shown.count("(n = 24)") == 4


@pytest.mark.parametrize("strategy", ["softmax", "vote"])
def test_strategies_run(run, drawn, tmp_path, strategy):
    out = tmp_path / "p.csv"
    assert ensemble.main([str(run), "--images", str(drawn / "test"), "--strategy", strategy, "--out", str(out)]) == 0
    assert len(read_csv(out)) == 25


def test_a_member_of_weight_one_among_zeros_decides_alone(run, drawn, tmp_path):
    folds = [str(run / f"fold-{k}") for k in range(3)]
    test = str(drawn / "test")
    ensemble.main([*folds, "--weights", "0", "1", "0", "--images", test, "--out", str(tmp_path / "a.csv")])
    predict.main([folds[1], test, "--out", str(tmp_path / "b.csv"), "--format", "submission"])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    with pytest.raises(UserError, match="--weights: one number"):
        ensemble.main([*folds, "--weights", "1", "1"])


def test_members_of_other_folds_are_refused_and_other_backbones_are_not(run, tiny, drawn, tmp_path):
    train.main(
        ["--recipe", str(tiny), "--out", str(tmp_path / "seed"), "--set", "folds.seed=1", "--set", "folds.train=[0]"]
    )
    with pytest.raises(UserError, match="must share one fold table"):
        ensemble.main([str(run), str(tmp_path / "seed")])
    other = tmp_path / "other"
    settings = ["backbone.name=test_vit", "images.size=48", "folds.train=[0]", "schedule.epochs=1"]
    train.main(["--recipe", str(tiny), "--out", str(other), *(w for s in settings for w in ("--set", s))])
    out = tmp_path / "p.csv"
    assert ensemble.main([str(run), str(other), "--images", str(drawn / "test"), "--out", str(out)]) == 0
    assert len(read_csv(out)) == 25


def test_members_of_other_classes_are_refused(run, tiny, drawn, tmp_path):
    shutil.copytree(drawn / "train", tmp_path / "train")
    (tmp_path / "train/fish").rename(tmp_path / "train/trout")
    train.main([
        "--recipe", str(tiny), "--out", str(tmp_path / "run"), "--set", f"images.train=[{tmp_path / 'train'}]",
        "--set", "folds.train=[0]", "--set", "schedule.epochs=1",
    ])  # fmt: skip
    with pytest.raises(UserError, match="different classes; they differ in fish, trout"):
        ensemble.main([str(run), str(tmp_path / "run")])


def test_broken_pictures_keep_their_rows_and_change_no_other(run, drawn, tmp_path, capsys):
    test = tmp_path / "test"
    shutil.copytree(drawn / "test", test)
    predict.main([str(run / "fold-0"), str(test), "--out", str(tmp_path / "before.csv"), "--format", "full"])
    victims = sorted(test.iterdir())[3:5]
    victims[0].write_bytes(b"")
    victims[1].write_bytes(victims[1].read_bytes()[:200])
    capsys.readouterr()
    full, short = tmp_path / "after.csv", tmp_path / "short.csv"
    assert predict.main([str(run / "fold-0"), str(test), "--out", str(full)]) == BROKEN_IMAGES
    assert victims[0].name in capsys.readouterr().err
    before, after = read_csv(tmp_path / "before.csv"), read_csv(full)
    assert [row for i, row in enumerate(after) if i not in (4, 5)] == [
        row for i, row in enumerate(before) if i not in (4, 5)
    ]
    assert after[4][:3] == [victims[0].name, "empty file", ""]
    assert ensemble.main([str(run), "--images", str(test), "--out", str(short)]) == BROKEN_IMAGES
    rows = read_csv(short)
    counts = json.loads((run / "fold-0/result.json").read_text())["class_counts"]
    names = json.loads((run / "fold-0/config.json").read_text())["label_names"]
    assert len(rows) == 25 and rows[4] == [victims[0].stem, names[int(np.argmax(counts))]]


def test_a_template_gives_columns_and_order(run, drawn, tmp_path):
    names = sorted((path.name for path in (drawn / "test").iterdir()), reverse=True)
    template = tmp_path / "sample.csv"
    template.write_text("id,class\n" + "".join(f"{name},x\n" for name in names))
    out = tmp_path / "p.csv"
    ensemble.main([str(run), "--images", str(drawn / "test"), "--template", str(template), "--out", str(out)])
    assert read_csv(out)[0] == ["id", "class"] and [row[0] for row in read_csv(out)[1:]] == names


def test_two_pictures_of_one_name_are_refused_in_a_submission(run, drawn, tmp_path):
    shutil.copytree(drawn / "test", tmp_path / "test")
    first = sorted((tmp_path / "test").iterdir())[0]
    Image.open(first).save(first.with_suffix(".png"))
    with pytest.raises(UserError, match="would both be"):
        ensemble.main([str(run), "--images", str(tmp_path / "test"), "--out", str(tmp_path / "p.csv")])


def test_predict_shows_a_table_of_pictures_and_folders(run, drawn, capsys):
    picture = sorted((drawn / "test").iterdir())[0]
    assert predict.main([str(run / "fold-0"), str(picture), str(drawn / "train/fish"), "--top", "3"]) == 0
    shown = capsys.readouterr().out
    assert picture.stem in shown.replace("\n", "") and "3." in shown and "7 images" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "x.jpg"], r"has 3 folds; name one, such as .*, or all of them with --members"),
        (["{run}/nothing", "x.jpg"], "nothing: no such folder"),
        (["{run}/fold-0", "nothing.jpg"], "nothing.jpg: no such file or folder"),
        (["{run}/fold-0", "{run}", "--zip"], "--zip and --template need --out"),
        (["{run}/fold-0", "{run}"], "no images in"),
        (["{run}/fold-0", "{run}", "--device", "warp"], "device: |no images"),
    ],
)
def test_mistakes_get_one_sentence(run, words, message):
    with pytest.raises(UserError, match=message):
        predict.main([word.format(run=run) for word in words])


@pytest.mark.parametrize("damage", ["config", "weights", "architecture", "missing tensor"])
def test_a_damaged_model_is_refused_in_one_sentence(run, drawn, tmp_path, damage):
    fold = tmp_path / "fold-0"
    shutil.copytree(run / "fold-0", fold)
    config, weights = fold / "config.json", fold / "model.safetensors"
    if damage == "config":
        config.write_text("{")
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "architecture":
        config.write_text(config.read_text().replace("test_resnet", "os_system"))
    else:
        tensors = load_file(weights)
        tensors.pop(next(name for name in tensors if name.endswith(".weight")))
        save_file(tensors, weights)
    with pytest.raises(UserError, match=r"no model can be loaded from here|timm has no architecture"):
        predict.main([str(fold), str(drawn / "test"), "--out", str(tmp_path / "p.csv")])


def test_predictions_do_not_read_ahead_of_the_file(run, drawn):
    """Memory must not grow with the folder: two batches are in flight, not more."""
    pictures = sorted((drawn / "test").iterdir())
    member = members.load_member(run / "fold-0", torch.device("cpu"))
    asked: list[Path] = []

    def endless():
        for path in cycle(pictures):
            asked.append(path)
            yield ImageInput(path.name, path.read_bytes)

    batches: Any = predict_batches(members.predictor([member]), endless(), 4)
    next(batches)
    assert len(asked) <= 8
    batches.close()


def test_strategies_and_members_are_compared(run, drawn, tmp_path, capsys):
    run_copy = tmp_path / "run"
    shutil.copytree(run, run_copy)
    labels = str(drawn / "test_labels.csv")
    assert ensemble.main([str(run_copy), "--images", str(drawn / "test"), "--labels", labels, "--compare"]) == 0
    shown = capsys.readouterr().out.partition("Strategies and members on")[2]
    for who in ("logits", "softmax", "vote", "fold-0", "fold-1", "fold-2"):
        assert re.search(rf"│ {who} +│ +\d\.\d{{4}} \[\d\.\d{{4}}, \d\.\d{{4}}\] \(n = 24\)", shown)
    assert re.search(r"\d+ of 24 images are given different classes by the three strategies", shown)
    rows = read_csv(run_copy / "ensemble/disagreements-images.csv")
    assert rows[0][:2] == ["image", "label"] and all(len(set(row[2:])) > 1 for row in rows[1:])
    truth = {f"{name}.jpg": label for name, label in read_csv(drawn / "test_labels.csv")[1:]}
    assert all(truth[row[0]] == row[1] for row in rows[1:])


def test_a_comparison_needs_pictures(run):
    with pytest.raises(UserError, match="--compare needs images"):
        ensemble.main([str(run), "--compare"])


def test_where_an_unfinished_run_stopped_is_said_with_the_line_that_goes_on(tiny, drawn, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        faults.ask_at_step(patch, 5, stop=True)
        with pytest.raises(Interrupted):
            start(tiny, run, "folds.train=[0, 1]")
    for program, words in ((ensemble, []), (predict, [str(drawn / "test")])):
        for path in (run, run / "fold-0"):
            with pytest.raises(UserError, match="no finished fold here; fold-0 stopped after epoch 1; ") as caught:
                program.main([str(path), *words])
    line = str(caught.value).split("; ")[-1]
    assert line.endswith(" goes on") and line.startswith("creature train ")
    assert train.main(line.split()[2:-2]) == 0


def test_folds_of_a_run_that_are_not_finished_are_named(run, drawn, tmp_path, capsys):
    half = tmp_path / "half"
    shutil.copytree(run, half)
    (half / "fold-1/result.json").unlink()
    epochs = len((half / "fold-1/history.jsonl").read_text().splitlines())
    expected = f"warning: {half}: 2 finished folds of it alone; fold-1 stopped after epoch {epochs}; creature train"
    for program, words in ((ensemble, ["--weights", "1"]), (predict, [str(drawn / "test"), "--members"])):
        assert program.main([str(half), *words]) == 0
        assert capsys.readouterr().err.count(expected) == 1
    ensemble.main([str(half / "fold-0")])
    assert expected not in capsys.readouterr().err


def test_some_folds_of_a_run_leave_what_all_of_them_said(run, drawn, tmp_path):
    run_copy = tmp_path / "run"
    shutil.copytree(run, run_copy)
    shutil.rmtree(run_copy / "ensemble", ignore_errors=True)
    words = ["--images", str(drawn / "test"), "--labels", str(drawn / "test_labels.csv")]
    ensemble.main([str(run_copy), *words])
    before = {path.name: path.read_bytes() for path in (run_copy / "ensemble").iterdir()}
    ensemble.main([str(run_copy / "fold-0"), *words])
    assert {path.name: path.read_bytes() for path in (run_copy / "ensemble").iterdir()} == before
    assert sorted(before) == ["images.safetensors", "result.json"]


def test_a_foreign_evaluation_view_is_refused_and_not_replaced(run, drawn, tmp_path):
    shutil.copytree(run / "fold-0", tmp_path / "fold-0")
    config = tmp_path / "fold-0/config.json"
    config.write_text(config.read_text().replace('"bilinear"', '"bicubic"'))
    with pytest.raises(UserError, match=r"its evaluation view \(bicubic, crop_pct 1.0\) is not one"):
        predict.main([str(tmp_path / "fold-0"), str(drawn / "test")])


def test_mirror_images_count_half_and_are_no_second_decoding(run, drawn, tmp_path, monkeypatch):
    mirrored = tmp_path / "mirrored"
    mirrored.mkdir()
    for path in (drawn / "test").iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored / f"{path.stem}.png")
    decoded = faults.note_calls(monkeypatch, prepare, "decode")
    loaded = [members.load_member(run / f"fold-{k}", torch.device("cpu")) for k in range(3)]
    plain_predictor = members.predictor(loaded)
    both = predictor.with_mirroring(plain_predictor)

    def logits(asked, folder):
        pictures = read_inputs(list_inputs([str(folder)]))
        return np.concatenate([batch.logits for batch in predict_batches(asked, pictures, 8)], axis=1)

    plain, flipped = logits(plain_predictor, drawn / "test"), logits(plain_predictor, mirrored)
    decoded.clear()
    actual = logits(both, drawn / "test")
    assert len(decoded) == 24
    np.testing.assert_allclose(actual, (plain + flipped) / 2, atol=1e-5)
    np.testing.assert_allclose(logits(both, mirrored), actual, atol=1e-5)
    assert np.abs(actual - plain).max() > 1e-3


def test_mirror_images_are_named_beside_the_scores(run, drawn, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    words = [str(copy), "--images", str(drawn / "test"), "--labels", str(drawn / "test_labels.csv"), "--mirror"]
    assert ensemble.main(words) == 0
    assert json.loads((copy / "ensemble/result.json").read_text())["mirror"] is True
    assert report.main([str(copy), "--out", str(tmp_path / "report")]) == 0
    assert "with mirror images" in (tmp_path / "report/scores.md").read_text()
    words[-1:] = []
    assert ensemble.main(words) == 0
    assert report.main([str(copy), "--out", str(tmp_path / "report")]) == 0
    assert "mirror" not in (tmp_path / "report/scores.md").read_text()


def test_a_score_alone_tells_of_broken_pictures_too(run, drawn, tmp_path):
    shutil.copytree(drawn / "test", tmp_path / "test")
    (tmp_path / "test/broken.jpg").write_bytes(b"no image")
    labels = str(drawn / "test_labels.csv")
    assert ensemble.main([str(run), "--images", str(tmp_path / "test"), "--labels", labels]) == BROKEN_IMAGES


def test_an_ensemble_writes_no_shards(run, drawn, tmp_path):
    with pytest.raises(UserError, match=r"--out: writes one file, such as predictions\.csv, got the folder"):
        ensemble.main([str(run), "--images", str(drawn / "test"), "--out", f"{tmp_path}/", "--format", "full"])


def test_predictions_never_replace_the_labels_that_they_are_scored_by(run, drawn, tmp_path):
    (labels := tmp_path / "labels.csv").write_text(text := (drawn / "test_labels.csv").read_text())
    words = [str(run), "--images", str(drawn / "test"), "--labels", str(labels), "--out"]
    with pytest.raises(UserError, match=r"--out: .*labels\.csv is one of the files that this reads"):
        ensemble.main([*words, str(tmp_path / "../" / tmp_path.name / "labels.csv")])
    assert labels.read_text() == text
    assert ensemble.main([*words, str(tmp_path / "new.csv")]) == ensemble.main([*words, str(tmp_path / "new.csv")]) == 0


def test_answers_with_labels_do_not_go_unsaid(run, drawn, tmp_path, capsys):
    run_copy = tmp_path / "run_copy"
    shutil.copytree(run, run_copy)
    shutil.rmtree(run_copy / "ensemble", ignore_errors=True)
    test, labels = ["--images", str(drawn / "test")], ["--labels", str(drawn / "test_labels.csv")]
    ensemble.main([str(run_copy), *test, *labels])
    ensemble.main([str(run_copy), *test, *labels])
    assert "with a label" not in capsys.readouterr().err
    few = tmp_path / "few.csv"
    few.write_text("".join((drawn / "test_labels.csv").read_text().splitlines(keepends=True)[:6]))
    ensemble.main([str(run_copy), *test, "--labels", str(few)])
    assert "keeps its 24 predictions with a label" in (error := " ".join(capsys.readouterr().err.split()))
    assert "of these here, 5 have one" in error
    kept = {path.name: path.read_bytes() for path in (run_copy / "ensemble").glob("*.safetensors")}
    scores = (run_copy / "ensemble/result.json").read_bytes()
    ensemble.main([str(run_copy), *test, "--out", str(tmp_path / "p.csv")])
    ensemble.main(
        [str(run_copy), "--images", str(drawn / "train"), "--out", str(tmp_path / "q.csv"), "--format", "full"]
    )
    assert "of these here, none have one" in " ".join(capsys.readouterr().err.split())
    assert {path.name: path.read_bytes() for path in (run_copy / "ensemble").glob("*.safetensors")} == kept
    assert (run_copy / "ensemble/result.json").read_bytes() == scores


def test_uneven_classes_are_said_wherever_an_accuracy_is(drawn, tiny, tmp_path, capsys):
    for name, count in (("fish", 6), ("bird", 2)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for path in sorted((drawn / "train" / name).iterdir())[:count]:
            shutil.copy(path, tmp_path / "train" / name)
    said = "classes are uneven: balanced accuracy"
    assert (
        start(tiny, tmp_path / "run", f"images.train=[{tmp_path / 'train'}]", "folds.count=2", "schedule.epochs=1") == 0
    )
    assert said in capsys.readouterr().out
    pictures = sorted((drawn / "test").iterdir())[:6]
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "image,label\n" + "".join(f"{p.name},{'fish' if k else 'bird'}\n" for k, p in enumerate(pictures))
    )
    words = ["--images", *map(str, pictures), "--labels", str(labels)]
    assert ensemble.main([str(tmp_path / "run"), *words]) == 0
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'run'}: {said}" in shown and f"{labels}: {said}" in shown
    assert report.main([str(tmp_path / "run"), "--out", str(tmp_path / "report")]) == 0
    assert said in (tmp_path / "report/scores.md").read_text()


def test_labelled_images_of_two_sets_are_kept_beside_each_other(run, drawn, tmp_path):
    run_copy = tmp_path / "run"
    shutil.copytree(run, run_copy)
    shutil.rmtree(run_copy / "ensemble", ignore_errors=True)
    for number, names in enumerate((sorted((drawn / "test").iterdir())[:10], sorted((drawn / "test").iterdir())[10:])):
        (folder := tmp_path / str(number)).mkdir()
        for path in names:
            shutil.copy(path, folder)
        shutil.copy(drawn / "test_labels.csv", labels := tmp_path / f"labels-{number}.csv")
        ensemble.main([str(run_copy), "--images", str(folder), "--labels", str(labels)])
    predictions = Run(run_copy).predictions
    assert [len(table.ids) for table in predictions.values()] == [14, 10]
    result = json.loads((run_copy / "ensemble/result.json").read_text())["ensemble"]
    assert [score["unseen"]["n"] for score in result.values()] == [10, 14]


def test_a_run_that_may_not_be_written_to_is_scored_compared_and_predicted_with(run, drawn, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("ensemble"))
    words = ["--images", str(drawn / "test"), "--labels", str(drawn / "test_labels.csv"), "--compare"]
    done = read_only(copy, "ensemble", str(copy), *words, "--out", str(tmp_path / "p.csv"))
    assert done.returncode == 0, done.stderr
    assert f"{copy}/ensemble: Permission denied; scores and predictions are not kept there" in done.stderr
    assert "24 rows are in" in done.stdout and len(read_csv(tmp_path / "p.csv")) == 25
    assert not (copy / "ensemble").exists()
