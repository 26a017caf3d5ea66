"""train.py: what a run leaves on disk, exactness, resume, and what is refused."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

import ensemble
from creature.data import describe
from creature.data.class_folders import one_class_error
from creature.data.folds import read_folds
from creature.errors import Interrupted, UserError
from creature.metrics.predictions import Predictions, load_predictions
from creature.metrics.scores import score_by
from creature.recipe_file import load_recipe
from creature.training import finish, loop, run_folder
from helpers import faults
from helpers.fold_files import folds_rows
from helpers.runs import losses, read_history, start, weights_hash
from helpers.tables import fill, images


def test_a_run_holds_exactly_these_files(run: Path):
    fold = {
        "config.json", "fold.lock", "held_out.safetensors", "history.jsonl", "model.safetensors", "recipe.yaml",
        "result.json",
    }  # fmt: skip
    actual = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "kept" not in path.parts}
    top = {"folds.arrow", "recipe.yaml", "run.json", "run.lock"}
    actual = {name for name in actual if not name.startswith("ensemble/")}
    assert actual == top | {f"fold-{k}/{name}" for k in range(3) for name in fold}
    for k in range(3):
        epochs = {path.name for path in (run / f"fold-{k}" / "kept").iterdir()}
        assert "epoch-0002" in epochs and len(epochs) <= 2


def test_folds_hold_out_each_row_once_and_results_say_what_they_rest_on(run: Path):
    held = [load_predictions(run / f"fold-{k}" / "held_out.safetensors") for k in range(3)]
    ids = [name for predictions in held for name in predictions.ids]
    rows = folds_rows(run)
    assert sorted(ids) == sorted(row[0] for row in rows) and len(set(ids)) == 72
    for k, predictions in enumerate(held):
        result = json.loads((run / f"fold-{k}" / "result.json").read_text())
        label = {row[0]: row[1] for row in rows}
        right = sum(
            int(best) == label[name] for name, best in zip(predictions.ids, predictions.logits.argmax(1), strict=True)
        )
        assert (result["n"], result["correct"], result["selected"]) == (len(predictions.ids), right, False)
        assert result["interval"][0] < result["accuracy"] < result["interval"][1] or right in (0, result["n"])


def test_timm_loads_a_fold_and_gives_the_held_out_logits(run: Path, drawn: Path):
    fold = run / "fold-1"
    model = timm.create_model(f"local-dir:{fold}", pretrained=True).eval()
    see: Any = create_transform(**resolve_model_data_config(model))
    held = load_predictions(fold / "held_out.safetensors")
    pictures = torch.stack([see(Image.open(drawn / name)) for name in held.ids])
    with torch.inference_mode():
        np.testing.assert_allclose(model(pictures).numpy(), held.logits, atol=1e-5)
    config = json.loads((fold / "config.json").read_text())
    assert tuple(config["label_names"]) == held.class_names and "num_classes" not in config.get("model_args", {})


@pytest.mark.parametrize("settings", [("images.workers=1",), ("images.workers=2",)])
def test_two_runs_of_one_recipe_are_bitwise_equal_whatever_the_worker_count(run, tiny, tmp_path, settings):
    start(tiny, tmp_path / "again", "folds.train=[1]", *settings)
    assert weights_hash(tmp_path / "again" / "fold-1") == weights_hash(run / "fold-1")
    assert losses(tmp_path / "again" / "fold-1") == losses(run / "fold-1")


def test_another_seed_gives_other_weights(run, tiny, tmp_path):
    start(tiny, tmp_path / "other", "folds.train=[1]", "seed=1")
    assert weights_hash(tmp_path / "other" / "fold-1") != weights_hash(run / "fold-1")
    assert (tmp_path / "other" / "folds.arrow").read_bytes() == (run / "folds.arrow").read_bytes()


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
@pytest.mark.parametrize("method", ["adamw", "sgd"])
def test_resume_after_an_interruption_is_bitwise_equal(tiny, tmp_path, monkeypatch, stop_at, method):
    settings = (
        "folds.train=[0]",
        f"optimizer.name={method}",
        "augment.mix=mixup_or_cutmix",
        "checkpoint.every_minutes=0",
    )
    whole = tmp_path / "whole"
    start(tiny, whole, *settings)
    with pytest.MonkeyPatch.context() as patch:
        faults.interrupt_at_step(patch, stop_at + 1)
        with pytest.raises(KeyboardInterrupt):
            start(tiny, tmp_path / "cut", *settings)
    assert start(tiny, tmp_path / "cut", *settings, resume=True) == 0
    for name in ("model.safetensors", "held_out.safetensors"):
        assert (tmp_path / "cut/fold-0" / name).read_bytes() == (whole / "fold-0" / name).read_bytes()
    assert losses(tmp_path / "cut/fold-0") == losses(whole / "fold-0")


def test_resume_steps_back_from_a_damaged_resume_point(tiny, tmp_path, monkeypatch, run):
    settings = ("folds.train=[0]", "checkpoint.every_minutes=0")
    faults.fail_in(monkeypatch, finish, "finish_fold", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        start(tiny, tmp_path / "cut", *settings)
    monkeypatch.undo()
    newest = sorted((tmp_path / "cut/fold-0/state").iterdir())[-1] / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    assert start(tiny, tmp_path / "cut", *settings, resume=True) == 0
    assert weights_hash(tmp_path / "cut/fold-0") == weights_hash(run / "fold-0")


def test_a_fold_that_exists_is_never_overwritten(run, tiny, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    before = weights_hash(tmp_path / "run/fold-0")
    with pytest.raises(UserError, match="exists and is never overwritten; --resume"):
        start(tiny, tmp_path / "run")
    assert start(tiny, tmp_path / "run", resume=True) == 0
    assert weights_hash(tmp_path / "run/fold-0") == before


def test_a_missing_fold_starts_in_an_existing_run(run, tiny, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/fold-2")
    assert start(tiny, tmp_path / "run", "folds.train=[2]") == 0
    assert weights_hash(tmp_path / "run/fold-2") == weights_hash(run / "fold-2")


def test_another_recipe_is_refused_with_the_difference(run, tiny, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(UserError, match=r"optimizer.lr: 0.003 -> 0.01"):
        start(tiny, tmp_path / "run", "optimizer.lr=0.01", resume=True)


def test_weights_that_are_not_to_be_had_leave_no_run_behind(tiny, tmp_path, monkeypatch):
    """Or the way out that is named, another setting, would be refused as a change of the run."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"backbone.pretrained: weights of test_resnet are not cached .*\n.*backbone.weights"
    ):
        start(tiny, tmp_path / "run", "backbone.pretrained=true")
    assert not (tmp_path / "run").exists()


def test_a_run_names_its_folder_and_says_where_there_was_nothing_to_resume(tiny, tmp_path, capsys):
    start(tiny, tmp_path / "run", "folds.train=[0]", "schedule.epochs=1", resume=True)
    output = capsys.readouterr().out
    assert f"{tmp_path / 'run'}: nothing is there to go on with; a new run begins" in output
    assert f"{tmp_path / 'run'}: 72 images of 12 classes, 3 folds" in output
    start(tiny, tmp_path / "run", "folds.train=[0]", "schedule.epochs=1", resume=True)
    assert "nothing is there" not in capsys.readouterr().out


def test_a_holdout_that_comes_later_is_said_not_to_be_the_run_s(run, drawn, tiny, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    start(tiny, tmp_path / "run", f"images.holdout=[{drawn / 'train'}]", resume=True)
    assert "images.holdout: not as in" in capsys.readouterr().err
    start(tiny, tmp_path / "run", resume=True)
    assert "images." not in capsys.readouterr().err


def _swap(one: Path, other: Path) -> None:
    one.rename(one.with_suffix(".moved"))
    other.rename(one)
    one.with_suffix(".moved").rename(other)


# What is done to the first fish and the first bird, and what is said of it.
CHANGES = {
    "one more": (
        lambda a, b: shutil.copyfile(b, a.with_name("new.jpg")),
        r"1 new \(such as train/fish/new",
    ),
    "one less": (lambda a, b: a.unlink(), r"1 gone \(such as train/fish/"),
    "another name": (
        lambda a, b: a.rename(a.with_name("x.jpg")),
        r"1 gone .*, 1 new \(such as train/fish/x",
    ),
    "another label": (
        lambda a, b: a.rename(b.with_name("x.jpg")),
        r"1 gone .*, 1 new \(such as train/bird/x",
    ),
    "swapped": (_swap, r"2 with other content"),
    "turned": (
        lambda a, b: Image.open(a).rotate(90).save(a),
        r"1 with other content \(such as train/fish/",
    ),
    "a byte": (lambda a, b: a.write_bytes(a.read_bytes() + b"\0"), r"1 with other content"),
    "broken": (lambda a, b: a.write_bytes(b""), r"1 gone \(such as train/fish/"),
    "a class renamed": (lambda a, b: a.parent.rename(a.parent.with_name("ray")), r"6 gone .*, 6 new"),
    "a class more": (lambda a, b: shutil.copytree(b.parent, b.parent.with_name("ray")), r"6 new"),
    "a class less": (lambda a, b: shutil.rmtree(b.parent), r"6 gone"),
    "an empty class": (lambda a, b: a.parent.with_name("ray").mkdir(), r"no image of the classes ray"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_any_change_of_the_images_is_noticed_before_a_run_goes_on(run, tiny, drawn, tmp_path, kind):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(drawn / "train", tmp_path / "train")
    change, output = CHANGES[kind]
    change(*(sorted((tmp_path / "train" / species).iterdir())[0] for species in ("fish", "bird")))
    with pytest.raises(UserError, match=output):
        start(tiny, tmp_path / "run", f"images.train=[{tmp_path / 'train'}]", resume=True)


def test_changed_images_are_refused_and_moved_ones_are_not(run, tiny, drawn, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(drawn / "train", tmp_path / "elsewhere/train")
    moved = f"images.train=[{tmp_path / 'elsewhere/train'}]"
    assert start(tiny, tmp_path / "run", moved, resume=True) == 0
    victim = sorted((tmp_path / "elsewhere/train/fish").iterdir())[0]
    shutil.copyfile(sorted((tmp_path / "elsewhere/train/bird").iterdir())[0], victim)
    with pytest.raises(UserError, match=r"1 with other content \(such as train/fish/"):
        start(tiny, tmp_path / "run", moved, resume=True)


def test_a_renamed_folder_goes_on_under_the_ids_that_it_began_with(run, tiny, drawn, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(drawn / "train", tmp_path / "renamed")
    shutil.rmtree(tmp_path / "run/fold-2")
    assert start(tiny, tmp_path / "run", f"images.train=[{tmp_path / 'renamed'}]", resume=True) == 0
    assert weights_hash(tmp_path / "run/fold-2") == weights_hash(run / "fold-2")


def test_a_run_is_not_written_into_images(tiny, drawn, tmp_path):
    shutil.copytree(drawn / "train", tmp_path / "photos")
    settings = f"images.train=[{tmp_path / 'photos'}]"
    before = sorted(tmp_path.rglob("*"))
    for out, message in (("photos", "within the images"), ("photos/run", "within the images"), (".", "holds images")):
        with pytest.raises(UserError, match=f"--out: .*{message}.*give --out a new folder"):
            start(tiny, tmp_path / out, settings)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tilde_in_a_recipe_is_the_home_folder(tmp_path, monkeypatch, tiny):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = ["images.train=[~/a, hub:me/x]", "images.labels=~/l.csv", "loss.teacher=~/run", "folds.count=1"]
    settings += ["images.validation=[~/v]", "images.holdout=[~/h]", "backbone.weights=~/w.safetensors"]
    recipe = load_recipe(tiny, settings)
    images = recipe.images
    paths = [images.train[0], *images.validation, *images.holdout, images.labels, recipe.loss.teacher]
    assert [*paths, recipe.backbone.weights] == [
        str(tmp_path / name) for name in ("a", "v", "h", "l.csv", "run", "w.safetensors")
    ]
    assert images.train[1] == "hub:me/x"


def test_a_flat_holdout_has_labels_of_its_own(tiny, drawn, tmp_path, capsys):
    holdout = [f"images.holdout=[{drawn / 'test'}]", f"images.holdout_labels={drawn / 'test_labels.csv'}"]
    start(tiny, tmp_path / "run", "folds.train=[0]", "schedule.epochs=1", *holdout)
    assert ensemble.main([str(tmp_path / "run")]) == 0
    assert "images.holdout │" in capsys.readouterr().out


def test_a_locked_fold_names_its_holder(run, tiny, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/fold-2")
    with (
        run_folder.lock_fold(tmp_path / "run/fold-2"),
        pytest.raises(UserError, match=f"is being trained by process {os.getpid()} on"),
    ):
        start(tiny, tmp_path / "run", "folds.train=[2]")


def test_the_best_epoch_is_marked_selected_and_the_last_one_stands_beside_it(tiny, tmp_path, capsys):
    start(
        tiny,
        tmp_path / "best",
        "folds.train=[0]",
        "checkpoint.select=best",
        "schedule.epochs=4",
        "checkpoint.every_epochs=2",
    )
    assert "selected" in capsys.readouterr().out
    result = json.loads((tmp_path / "best/fold-0/result.json").read_text())
    history = [json.loads(line) for line in (tmp_path / "best/fold-0/history.jsonl").read_text().splitlines()]
    best = max(history, key=lambda row: (row["correct"], -row["epoch"]))
    assert (result["epoch"], result["correct"], result["selected"]) == (best["epoch"], best["correct"], True)
    assert (result["last"]["epoch"], result["last"]["correct"]) == (4, history[-1]["correct"])
    kept = {int(path.name[-4:]) for path in (tmp_path / "best/fold-0/kept").iterdir()}
    assert kept == {2, 4, best["epoch"]}


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_the_best_epoch_is_the_best_by_the_score_that_is_asked_for(tiny, tmp_path, monkeypatch, metric):
    """Of uneven classes: always the frequent one is right more often, and recognises less."""
    labels = np.array([0] * 20 + [1, 2])
    answers = iter([np.zeros(22, int), np.array([1] * 8 + [0] * 12 + [1, 2]), np.zeros(22, int)])
    scores = []

    def scored(_: Predictions, name: str) -> float:
        assert name == metric
        scores.append(score_by(name, next(answers), labels, classes=3))
        return scores[-1]

    monkeypatch.setattr(loop, "selected_by", scored)
    settings = ("folds.train=[0]", "checkpoint.select=best", f"checkpoint.metric={metric}", "schedule.epochs=3")
    start(tiny, tmp_path / "run", *settings)
    assert json.loads((tmp_path / "run/fold-0/result.json").read_text())["epoch"] == 2
    assert [row["selected_by"] for row in read_history(tmp_path / "run/fold-0")] == scores
    assert scores[1] > scores[0] == scores[2]


def test_an_epoch_s_score_is_that_of_its_held_out_rows(tiny, tmp_path):
    start(tiny, tmp_path / "run", "folds.train=[0]", "checkpoint.metric=macro_f1")
    held = load_predictions(tmp_path / "run/fold-0/held_out.safetensors")
    expected = score_by("macro_f1", held.predicted, held.labels, classes=12)
    assert read_history(tmp_path / "run/fold-0")[-1]["selected_by"] == pytest.approx(expected)
    start(tiny, tmp_path / "plain", "folds.train=[0]")
    assert "selected_by" not in read_history(tmp_path / "plain/fold-0")[-1]


def test_few_images_are_trained_on_for_more_epochs_as_if_the_recipe_had_them(tiny, tmp_path, capsys):
    """72 images in three folds: 48 to train on are 3 steps of 16."""
    settings = ("augment.sizes=[16,32]", "schedule.warmup_epochs=0.5", "schedule.min_steps=10")
    assert start(tiny, tmp_path / "run", *settings) == 0
    said = capsys.readouterr().out
    line = "schedule.min_steps: 4 epochs a fold instead of 2, for 12 steps instead of 6; 48 images make 3 an epoch\n"
    assert line in said
    assert len(re.findall(r"schedule.min_steps: 4 epochs like these take about \d+\.\d minutes\n", said)) == 3
    assert start(tiny, tmp_path / "long", settings[0], "schedule.warmup_epochs=1", "schedule.epochs=4") == 0
    assert "min_steps" not in capsys.readouterr().out
    for fold in ("fold-0", "fold-2"):
        assert weights_hash(tmp_path / "run" / fold) == weights_hash(tmp_path / "long" / fold)
        result = json.loads((tmp_path / "run" / fold / "result.json").read_text())
        assert (result["epochs"], result["epoch"], len(read_history(tmp_path / "run" / fold))) == (4, 4, 4)


def test_enough_images_are_trained_on_as_the_recipe_says(tiny, run, tmp_path, capsys):
    assert start(tiny, tmp_path / "run", "schedule.min_steps=6", "folds.train=[1]") == 0
    assert "min_steps" not in capsys.readouterr().out
    assert weights_hash(tmp_path / "run/fold-1") == weights_hash(run / "fold-1")


def test_all_folds_take_the_epochs_that_the_one_with_the_fewest_images_needs(tiny, tmp_path):
    """33 images in two folds, batches of 3: 17 to train on are 6 steps, 16 are 5, the last one of 4."""
    classes = tmp_path / "images"
    for species, count in (("fish", 17), ("owl", 16)):
        (classes / species).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(np.random.default_rng(number + 100 * count).integers(0, 255, (32, 32, 3), np.uint8))
            image.save(classes / species / f"{number}.png")
    settings = (f"images.train=[{classes}]", "folds.count=2", "batch_size=3", "schedule.min_steps=24")
    assert start(tiny, tmp_path / "run", *settings) == 0
    results = [json.loads((tmp_path / f"run/fold-{fold}/result.json").read_text()) for fold in (0, 1)]
    assert sorted(result["images_trained"] for result in results) == [16, 17]
    assert [result["epochs"] for result in results] == [5, 5]


def test_one_model_is_held_out_on_its_validation_images(drawn, tiny, tmp_path, capsys):
    validation = tmp_path / "val"
    for species in sorted((drawn / "train").iterdir()):
        (validation / species.name).mkdir(parents=True)
        picture = sorted(species.iterdir())[0]
        picture_copy = validation / species.name / picture.name
        picture_copy.write_bytes(picture.read_bytes() + b"\0")
    start(tiny, tmp_path / "one", "folds.count=1", f"images.validation=[{validation}]")
    held = load_predictions(tmp_path / "one/fold-0/held_out.safetensors")
    assert len(held.ids) == 12 and all(name.startswith("val/") for name in held.ids)
    assert json.loads((tmp_path / "one/fold-0/result.json").read_text())["images_trained"] == 72
    assert "images.validation: it shares 12 images that look the same" in " ".join(capsys.readouterr().err.split())


def test_a_class_rarer_than_the_folds_has_its_place_in_each_and_no_score_where_it_has_no_rows(
    drawn, tiny, tmp_path, capsys
):
    shutil.copytree(drawn / "train", tmp_path / "train")
    rare = sorted((tmp_path / "train").iterdir())[-1]  # the last class: a head that counts classes would lack it
    for picture in sorted(rare.iterdir())[1:]:
        picture.unlink()
    start(tiny, tmp_path / "run", f"images.train=[{tmp_path / 'train'}]")
    sentence = (
        f"folds.count: classes with fewer images than its 3 folds: 1, such as {rare.name} with 1; correct a label"
    )
    assert sentence in capsys.readouterr().err
    without = []
    for fold in (0, 1, 2):
        held = load_predictions(tmp_path / f"run/fold-{fold}/held_out.safetensors")
        assert held.logits.shape[1] == len(held.class_names) == 12 and held.class_names[-1] == rare.name
        result = json.loads((tmp_path / f"run/fold-{fold}/result.json").read_text())
        assert [k for k, recall in enumerate(result["class_recall"]) if recall is None] == result[
            "classes_without_rows"
        ]
        without.append(11 in result["classes_without_rows"])
    assert sorted(without) == [False, True, True]


def test_accumulating_a_batch_in_parts_gives_the_same_loss(tiny, tmp_path):
    layer_norm = ("folds.train=[0]", "backbone.name=test_vit", "images.size=32")
    start(tiny, tmp_path / "whole", *layer_norm)
    start(tiny, tmp_path / "parts", *layer_norm, "gradient_accumulation_steps=4")
    np.testing.assert_allclose(losses(tmp_path / "parts/fold-0"), losses(tmp_path / "whole/fold-0"), rtol=1e-5)


def test_training_sees_random_views_and_held_out_rows_none(tiny, tmp_path, monkeypatch):
    from creature.data.loader import ImageDataset

    seen: dict[bool, set[bytes]] = {True: set(), False: set()}
    load = ImageDataset._load

    def watched(self, item, name, image):
        pixels, reason = load(self, item, name, image)
        if name.endswith("/fish/00001.jpg"):
            seen[len(self.augmentations) > 1].add(pixels.numpy().tobytes())
        return pixels, reason

    monkeypatch.setattr(ImageDataset, "_load", watched)
    start(tiny, tmp_path / "run", "schedule.epochs=3")
    assert len(seen[True]) == 3  # a view an epoch, the same in both folds that train on it
    assert len(seen[False]) == 1


def test_a_broken_picture_is_named_and_left_out(drawn, tiny, tmp_path, capsys):
    shutil.copytree(drawn / "train", tmp_path / "train")
    (tmp_path / "train/fish/broken.jpg").write_bytes(b"no image")
    start(tiny, tmp_path / "run", "folds.train=[0]", f"images.train=[{tmp_path / 'train'}]")
    assert "train/fish/broken.jpg" in capsys.readouterr().err
    assert "train/fish/broken.jpg" in read_folds(tmp_path / "run").bad
    with pytest.raises(UserError, match=r"images.max_bad allows 0"):
        start(tiny, tmp_path / "run2", f"images.train=[{tmp_path / 'train'}]", "images.max_bad=0")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("backbone.name=test_resnt", "backbone.name: timm has no model"),
        ("backbone.weights=nowhere.safetensors", "backbone.weights: no such file"),
        ("tracking=[nonsense]", "tracking: nonsense"),
    ],
)
def test_what_needs_timm_or_the_device_is_checked_before_any_image_is_read(tiny, tmp_path, setting, message):
    with pytest.raises(UserError, match=message):
        start(tiny, tmp_path / "run", setting, "images.train=[/nowhere]")
    assert not (tmp_path / "run").exists()


def test_bf16_on_a_cpu_falls_back_with_one_warning(tiny, tmp_path, capsys, run):
    start(tiny, tmp_path / "run", "folds.train=[0]", "precision=bf16")
    assert capsys.readouterr().err.count("fp32 is used") == 1
    assert weights_hash(tmp_path / "run/fold-0") == weights_hash(run / "fold-0")


def test_tensorboard_tracks_when_asked(tiny, tmp_path):
    pytest.importorskip("tensorboard", reason="the tracking extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    start(tiny, tmp_path / "run", "folds.train=[1]", "tracking=[tensorboard]")
    (events,) = (tmp_path / "run").rglob("events.out.tfevents*")
    log = EventAccumulator(str(events.parent)).Reload()
    history = [json.loads(line) for line in (tmp_path / "run/fold-1/history.jsonl").read_text().splitlines()]
    for tag, name in (("train_loss", "loss"), ("held_out_accuracy", "accuracy"), ("learning_rate", "learning_rate")):
        tracked = log.Scalars(f"fold-1/{tag}")
        assert [scalar.step for scalar in tracked] == [1, 2]
        np.testing.assert_allclose([scalar.value for scalar in tracked], [row[name] for row in history], rtol=1e-6)
    assert all(tag.startswith("fold-1/") for tag in log.Tags()["scalars"])


def test_a_diverging_loss_stops_with_advice(tiny, tmp_path):
    with pytest.raises(UserError, match=r"finite.*try a lower optimizer.lr"):
        start(tiny, tmp_path / "run", "optimizer.name=sgd", "optimizer.lr=1e30")


def test_the_threads_are_the_recipe_s_affair_not_the_launcher_s(run, monkeypatch):
    result = json.loads((run / "fold-0/result.json").read_text())
    assert result["threads"] == torch.get_num_threads() >= 1


# Compiled


@pytest.mark.full
def test_a_compiled_training_has_the_same_losses_and_goes_on_bitwise(tiny, tmp_path):
    from torch._dynamo.utils import counters

    settings = ("folds.train=[0,1]", "batch_size=20")  # 20, 20 and 8 rows
    start(tiny, tmp_path / "plain", *settings)
    counters.clear()
    start(tiny, tmp_path / "whole", *settings, "backbone.compile=true")
    assert counters["stats"]["unique_graphs"] == 2 * 2  # a fold's two sizes of a batch; held-out rows need none
    with pytest.MonkeyPatch.context() as patch:
        faults.fail_in(patch, loop, "predict", KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            start(tiny, tmp_path / "cut", *settings, "backbone.compile=true")
    assert start(tiny, tmp_path / "cut", *settings, "backbone.compile=true", resume=True) == 0
    for fold in ("fold-0", "fold-1"):
        np.testing.assert_allclose(losses(tmp_path / "whole" / fold), losses(tmp_path / "plain" / fold), rtol=1e-2)
        assert weights_hash(tmp_path / "cut" / fold) == weights_hash(tmp_path / "whole" / fold)
    assert timm.create_model(f"local-dir:{tmp_path / 'whole/fold-0'}", pretrained=True)


@pytest.fixture
def no_compiler() -> Iterator[None]:
    from torch._inductor import config

    with config.patch({"force_disable_caches": True, "cpp.cxx": (None, "/nowhere/c++")}):
        yield


def test_without_a_compiler_compile_says_so(tiny, tmp_path, no_compiler):
    with pytest.raises(UserError, match=r"^backbone.compile: .*compiler.*; start another run, with it set to false"):
        start(tiny, tmp_path / "run", "folds.train=[0]", "backbone.compile=true")


def test_a_run_of_an_earlier_version_whose_compile_was_auto_goes_on_uncompiled(tiny, run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/fold-1")
    saved = tmp_path / "run/recipe.yaml"
    saved.write_text(saved.read_text().replace("compile: false", "compile: auto"))
    assert start(tiny, tmp_path / "run", "backbone.compile=auto", resume=True) == 0
    assert "recipe.yaml: backbone.compile: auto is no longer offered, and taken as false" in capsys.readouterr().err
    assert weights_hash(tmp_path / "run/fold-1") == weights_hash(run / "fold-1")


def test_who_is_asked_to_stop_while_it_compiles_stops(tiny, tmp_path, monkeypatch):
    """Whatever is raised while torch compiles, it turns into errors of its own."""

    def interrupt(*_: object, **__: object) -> None:
        raise Interrupted("stopped as asked")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", interrupt)
    with pytest.raises(Interrupted):
        start(tiny, tmp_path / "run", "folds.train=[0]", "backbone.compile=true")


def test_validation_pictures_that_are_trained_on_are_no_score(drawn, tiny, tmp_path, capsys):
    """By content, and whatever they look like: two flat images are copies as well."""
    held, flat = tmp_path / "held", tmp_path / "flat"
    for path in sorted((drawn / "train").glob("*/*.jpg"))[::9]:
        (held / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, held / path.parent.name / f"copy-{path.name}")
    for folder in (drawn / "train").iterdir():
        (held / folder.name).mkdir(exist_ok=True)
    one, label = ["folds.count=1", "schedule.epochs=1"], sorted(path.name for path in held.iterdir())[0]
    with pytest.raises(UserError, match=r"images\.validation: it has no image that can be decoded and is not in"):
        start(tiny, tmp_path / "none", *one, f"images.validation=[{held}]")
    Image.new("RGB", (32, 32), (9, 9, 9)).save(held / label / "flat.png")
    shutil.copytree(drawn / "train", flat)
    Image.new("RGB", (32, 32), (9, 9, 9)).save(flat / label / "flat.png")
    for test in sorted((drawn / "test").iterdir())[:2]:
        shutil.copyfile(test, held / label / test.name)
    start(tiny, tmp_path / "run", *one, f"images.train=[{flat}]", f"images.validation=[{held}]")
    output = " ".join(capsys.readouterr().err.split())
    assert "images.validation: 9 of its images are in images.train, too, and will not be scored" in output
    assert json.loads((tmp_path / "run/fold-0/result.json").read_text())["n"] == 2


def test_a_class_of_which_nothing_is_trained_on_is_refused(drawn, tiny, tmp_path):
    train_on, held = tmp_path / "train", tmp_path / "held"
    shutil.copytree(drawn / "train", train_on)
    (train_on / "lynx").mkdir()
    for folder in train_on.iterdir():
        (held / folder.name).mkdir(parents=True)
    shutil.copyfile(next((drawn / "test").iterdir()), held / "lynx/one.jpg")
    words = ["folds.count=1", f"images.train=[{train_on}]", f"images.validation=[{held}]"]
    with pytest.raises(UserError, match=r"images\.train: no image of the classes lynx; add some, or remove"):
        start(tiny, tmp_path / "run", *words)


@pytest.mark.parametrize(
    "splits", [("train", "val"), ("Test", "Train"), ("Testing", "Training"), ("seg_test", "seg_train")]
)
def test_splits_are_no_classes(drawn, tiny, tmp_path, splits):
    for split in splits:
        shutil.copytree(drawn / "train/fish", tmp_path / "data" / split / "fish")
    message = rf"images\.train: .*data holds {', '.join(splits)}, which are splits, not classes; name those to train on"
    with pytest.raises(UserError, match=message):
        start(tiny, tmp_path / "run", f"images.train=[{tmp_path / 'data'}]")


def test_splits_beside_another_folder_are_no_classes_either(tmp_path):
    for name in ("Train", "Valid", "extra"):
        fill(tmp_path / "data" / name, "fish/1.png")
    with pytest.raises(UserError, match=r"data holds Train, Valid, which are splits, not classes"):
        images(tmp_path / "data")


def test_the_folder_that_was_meant_is_named_from_two_levels_above(tmp_path):
    fill(tmp_path / "data/archive/images", "fish/1.png", "bird/2.png")
    error = one_class_error([str(tmp_path / "data")], "archive", "images.train")
    assert str(error).endswith(f"look like classes: give {tmp_path / 'data/archive/images'}")


def test_the_folders_that_were_meant_are_named_within_splits(tmp_path):
    for split in ("test", "train"):
        fill(tmp_path / "data" / split / "all", "fish/1.png", "bird/2.png")
    error = one_class_error([str(tmp_path / "data")], "all", "folders")
    meant = f"{tmp_path / 'data/test/all'}, {tmp_path / 'data/train/all'}"
    assert str(error).endswith(f"the folders in it (bird, fish) look like classes: give {meant}")


@pytest.mark.parametrize("level", ["all", "train", "archive/images"])
def test_one_class_alone_is_refused_and_the_folder_that_was_meant_is_named(drawn, tiny, tmp_path, level):
    for name in ("fish", "bird"):
        shutil.copytree(drawn / "train" / name, tmp_path / "nested" / level / name)
    meant = tmp_path / "nested" / level
    message = rf"holds one class alone, {meant.name}; the folders in it \(bird, fish\) look like classes: give {meant}$"
    with pytest.raises(UserError, match=message):
        start(tiny, tmp_path / "run", f"images.train=[{meant.parent}]")
    if level != "train":  # which inspect takes for a split, and looks into
        with pytest.raises(UserError, match=message):
            describe.main([str(meant.parent)])
    with pytest.raises(UserError, match="holds one class alone, fish; give a folder with a folder for each class"):
        shutil.rmtree(meant / "bird")
        start(tiny, tmp_path / "run", f"images.train=[{meant}]")


def test_a_copied_fold_is_refused_before_the_others_are_trained(run, tiny, tmp_path):
    begun = shutil.copytree(run, tmp_path / "run")
    shutil.copytree(begun / "fold-0", begun / "fold-7")
    shutil.rmtree(begun / "fold-2")
    with pytest.raises(UserError, match=r"fold-7 holds fold 0, .* move the copy out of the run"):
        start(tiny, begun, resume=True)
    assert not (begun / "fold-2").exists()


def test_a_run_that_was_begun_by_mistake_may_be_removed(drawn, tiny, tmp_path):
    shutil.copytree(drawn / "train/fish", tmp_path / "other/a")
    shutil.copytree(drawn / "train/bird", tmp_path / "other/b")
    (broken := tmp_path / "w.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError):
        start(tiny, tmp_path / "run", f"images.train=[{tmp_path / 'other'}]", f"backbone.weights={broken}")
    assert (tmp_path / "run/recipe.yaml").exists()
    with pytest.raises(UserError, match=r"or remove .*run, where no fold has been trained yet"):
        start(tiny, tmp_path / "run")
