"""One model in the ensemble's place: soups of weights, students of out-of-fold answers, and how they are judged."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ensemble
import predict
from creature.data.folds import read_folds
from creature.ensembling import acceptance, new_images, soup
from creature.ensembling.acceptance import MARGIN, Candidate, Comparison, compare_with_ensemble, verdict
from creature.ensembling.distill import SHARE, soft_targets, student_recipe
from creature.ensembling.soup import average_weights, batch_norms, choose, choose_greedily
from creature.errors import UserError
from creature.member_folds import find_members
from creature.metrics.predictions import load_predictions
from creature.metrics.significance import difference_interval, holm
from creature.recipe_file import dump_recipe, load_recipe
from creature.reporting import report
from creature.reporting.single_table import single_table
from creature.reporting.study import read_runs
from creature.run import Run
from helpers.fold_files import folds_rows
from helpers.runs import read_csv, read_table, start, weights_hash


@pytest.fixture
def run_copy(run: Path, tmp_path: Path) -> Path:
    """The trained run, to be changed."""
    shutil.copytree(run, tmp_path / "run_copy")
    return tmp_path / "run_copy"


@pytest.fixture(scope="session")
def held(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images in class folders."""
    folder = tmp_path_factory.mktemp("held")
    for name, label in read_csv(drawn / "test_labels.csv")[1:]:
        (folder / label).mkdir(exist_ok=True)
        shutil.copyfile(drawn / f"test/{name}.jpg", folder / label / f"{name}.jpg")
    return folder


@pytest.fixture
def student(tiny: Path, held: Path, tmp_path: Path) -> Path:
    """A recipe for a student."""
    settings = json.loads(tiny.read_text())
    settings["images"]["holdout"] = [str(held)]
    (path := tmp_path / "student.yaml").write_text(json.dumps(settings))
    return path


def load_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def words(drawn: Path) -> list[str]:
    return ["--images", str(drawn / "test"), "--labels", str(drawn / "test_labels.csv")]


def test_a_soup_is_the_mean_of_all_tensors_and_of_equal_ones_each_of_them(run, run_copy):
    folds = Run(run_copy).folds
    mean, each = average_weights(folds), [load_file(fold.folder / "model.safetensors") for fold in folds]
    assert mean.keys() == each[0].keys()
    for name, value in mean.items():
        expected = torch.stack([tensors[name].double() for tensors in each]).mean(0)
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=0)
        assert value.dtype == each[0][name].dtype
    equal = average_weights([folds[0]] * 3)
    assert all(torch.equal(equal[name], value) for name, value in each[0].items())


def test_a_greedy_soup_begins_with_the_best_and_keeps_whom_it_is_no_worse_with():
    worth = {(0,): 5, (1,): 9, (2,): 7, (1, 2): 9, (0, 1, 2): 8}
    assert choose_greedily([0, 1, 2], worth.__getitem__) == (1, 2)
    assert choose_greedily([0, 1], {(0,): 1, (1,): 2, (0, 1): 1}.__getitem__) == (1,)


def test_each_half_is_answered_by_the_soup_that_the_other_half_chose():
    """Member 0 is right on half 0 alone, member 1 on half 1 alone: what a half chooses is wrong on the other."""
    half, labels = np.array([0, 0, 0, 1, 1]), np.ones(5, dtype=np.int64)
    message = {(0,): 1 - half, (1,): half, (0, 1): np.zeros(5, dtype=np.int64)}
    choice = choose([0, 1], message.__getitem__, labels=labels, half=half)
    assert (choice.on_all, choice.on_halves) == ((0,), ((0,), (1,)))
    assert not (choice.predicted == labels).any()


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe 1998, table II, method 10
        ((20, 12, 2, 16), (0.0562, 0.3292)),
        ((36, 14, 0, 0), (0.1528, 0.4167)),
    ],
)
def test_the_interval_of_a_difference_is_newcombe_s(table, expected):
    both, first, second, neither = table
    one = np.repeat([True, True, False, False], table)
    other = np.repeat([True, False, True, False], table)
    assert len(one) == both + first + second + neither
    assert difference_interval(one, other) == pytest.approx(expected, abs=5e-4)
    low, high = difference_interval(other, one)
    assert (-high, -low) == pytest.approx(expected, abs=5e-4)


def judged(right: int, alone: int, theirs: int, n: int) -> Comparison:
    """A model beside an ensemble: `alone` right where the ensemble is not, `theirs` the other way around."""
    labels = np.zeros(n, dtype=np.int64)
    model, all_of_them = np.ones((2, n), dtype=np.int64)
    model[: right + alone] = 0
    all_of_them[:right] = all_of_them[right + alone : right + alone + theirs] = 0
    unseen = acceptance.UnseenImages(
        title="t",
        content_hashes=np.arange(n),
        labels=labels,
        ensemble=Candidate("e", 2, all_of_them),
        members=(),
        images=lambda: (),
        strategy="logits",
        mirror=False,
    )
    return compare_with_ensemble(unseen, Candidate("m", 1, model))


def test_a_model_is_accepted_where_the_lower_bound_is_above_minus_a_point():
    assert judged(right=9_000, alone=100, theirs=110, n=10_000).accepted
    few = judged(right=900, alone=10, theirs=11, n=1000)
    assert not few.accepted and few.low < -MARGIN < few.high
    sentence = verdict(few, few.count, 500)
    assert sentence.startswith("not accepted: it may be a point worse")
    assert few.count.n < int(re.search(r"some ([\d,]+) labelled", sentence)[1].replace(",", ""))  # type: ignore[index]
    worse = judged(right=9_000, alone=100, theirs=400, n=10_000)
    assert not worse.accepted and verdict(worse, worse.count, 500).startswith("not accepted: a point worse")
    chance = judged(right=240, alone=10, theirs=500, n=1000)
    assert "at chance" in verdict(chance, chance.count, 250)


@pytest.mark.parametrize(
    ("alone", "theirs", "reason"),
    [(900, 30, "better than the ensemble:"), (100, 100, "as good as the ensemble on these"), (100, 110, "less than a")],
)
def test_an_accepted_model_is_not_called_worse_than_it_is(alone, theirs, reason):
    line = judged(right=9_000, alone=alone, theirs=theirs, n=10_000)
    sentence = verdict(line, line.count, 500)
    assert sentence.startswith("accepted, for it is ") and reason in sentence


def test_a_soup_is_a_folder_that_predicts_and_stands_beside_its_members(run_copy, drawn, capsys):
    assert ensemble.main([str(run_copy), "--soup", "uniform", *words(drawn)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "One model in the ensemble's place" in shown and "uniform soup" in shown and "accepted" in shown
    message = json.loads((run_copy / "soup/result.json").read_text())
    assert set(message["scores"]) == {"ensemble of 3", "fold-0", "fold-1", "fold-2", "uniform soup"}
    assert message["scores"]["uniform soup"]["n"] == 24 and message["accepted"] is False  # 24 images show no point
    assert [each["chosen"] for each in message["members"]] == [True] * 3
    tensors = [load_file(run_copy / f"fold-{k}/model.safetensors") for k in range(3)]
    mean = load_file(run_copy / "soup/model.safetensors")
    name = next(name for name, value in mean.items() if value.ndim == 4)
    torch.testing.assert_close(mean[name], torch.stack([each[name] for each in tensors]).mean(0))
    out = run_copy / "p.csv"
    assert predict.main([str(run_copy / "soup"), str(drawn / "test"), "--out", str(out)]) == 0
    truth = dict(read_csv(drawn / "test_labels.csv")[1:])
    right = sum(row[2] == truth[Path(row[0]).stem] for row in read_csv(out)[1:])
    assert right == message["scores"]["uniform soup"]["correct"]


def test_a_soup_s_batchnorm_is_that_of_its_own_activations_unless_it_was_frozen(run_copy, run, drawn, tiny):
    """In a layer that sees the pixels themselves, the mean over batches of what it sees."""
    folds = Run(run_copy).folds
    member = soup.cook(folds, torch.device("cpu"))
    first = batch_norms(member.model)[0]
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    member.model.train()
    with torch.no_grad(), soup.training_batches(Run(run_copy), torch.device("cpu")) as batches:
        for batch in batches:
            member.model(member.normalize(batch.pixels))
    means = torch.stack([each.mean((0, 2, 3)) for each in seen]).mean(0)
    member = soup.cook(folds, torch.device("cpu"))
    torch.testing.assert_close(batch_norms(member.model)[0].running_mean, means, atol=1e-5, rtol=1e-4)
    saved = run_copy / "recipe.yaml"
    saved.write_text(saved.read_text().replace("freeze_batch_stats: false", "freeze_batch_stats: true"))
    assert Run(run_copy).recipe.backbone.freeze_batch_stats
    kept = soup.cook(Run(run_copy).folds, torch.device("cpu")).model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in average_weights(folds).items())


def test_the_greedy_soup_says_whom_each_half_chose(run_copy, drawn, capsys):
    assert ensemble.main([str(run_copy), "--soup", *words(drawn)]) == 0
    message = json.loads((run_copy / "soup/result.json").read_text())
    assert "its score is cross-fitted" in capsys.readouterr().out
    assert {"uniform soup", "greedy soup"} < set(message["scores"])
    assert all(len(each["chosen_by_halves"]) == 2 for each in message["members"])
    chosen = [fold for fold, each in enumerate(message["members"]) if each["chosen"]]
    if len(chosen) == 1:  # then the soup is that member, bit for bit
        assert weights_hash(run_copy / "soup") == weights_hash(run_copy / f"fold-{chosen[0]}")


def test_no_model_is_scored_on_pictures_that_a_member_was_trained_on(run_copy, drawn, tmp_path, capsys):
    seen = drawn / "train/fish"
    labels = tmp_path / "labels.csv"
    labels.write_text("image_name,label\n" + "".join(f"{path.stem},fish\n" for path in seen.iterdir()))
    with pytest.raises(UserError, match="one model is scored on labelled images that no member was trained on"):
        ensemble.main([str(run_copy), "--soup", "--images", str(seen), "--labels", str(labels)])
    with pytest.raises(UserError, match="scored on labelled images that no fold saw, and there are none"):
        ensemble.main([str(run_copy), "--soup"])
    assert not (run_copy / "soup").exists()
    assert ensemble.main([str(run_copy), "--soup", "uniform"]) == 0  # and without images, no score
    message = json.loads((run_copy / "soup/result.json").read_text())
    assert not message["scores"] and "accepted" not in message
    assert "has no score" in capsys.readouterr().out


def test_a_soup_is_of_one_whole_run(run_copy, drawn):
    for some in ([str(run_copy / "fold-0"), str(run_copy / "fold-1")], [str(run_copy), "--weights", "1"]):
        with pytest.raises(UserError, match="--soup and --distill are of all finished folds of one run"):
            ensemble.main([*some, "--soup", *words(drawn)])


def test_a_target_is_half_the_label_and_half_what_was_said_out_of_fold(run, tiny, held, tmp_path):
    settings = ["folds.count=1", f"images.validation=[{held}]", f"loss.teacher={run}", "schedule.epochs=1"]
    start(tiny, tmp_path / "s", *settings)
    folds = read_folds(tmp_path / "s")
    targets = soft_targets(run, folds).numpy()
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-5)
    answers = {}
    for k in range(3):
        message = load_predictions(run / f"fold-{k}/held_out.safetensors")
        answers |= dict(zip(message.ids, torch.from_numpy(message.logits).softmax(1).numpy(), strict=True))
    names = {content: name for name, _, _, content in folds_rows(run)}
    for row, content in enumerate(folds.hashes.to_pylist()):
        label = np.eye(len(folds.class_names))[folds.labels[row]]
        run_copy = label if folds.held_out(0)[row] else (1 - SHARE) * label + SHARE * answers[names[content]]
        np.testing.assert_allclose(targets[row], run_copy, atol=1e-6)
    plain = tmp_path / "plain"
    start(tiny, plain, *settings[:2], settings[3])
    assert weights_hash(plain / "fold-0") != weights_hash(tmp_path / "s/fold-0")


def test_targets_that_are_the_labels_train_as_the_labels_do(run, tiny, held, tmp_path, monkeypatch):
    settings = ["folds.count=1", f"images.validation=[{held}]", "schedule.epochs=1"]
    start(tiny, tmp_path / "labels", *settings)
    monkeypatch.setattr("creature.ensembling.distill.SHARE", 0.0)
    start(tiny, tmp_path / "targets", *settings, f"loss.teacher={run}")
    assert weights_hash(tmp_path / "labels/fold-0") == weights_hash(tmp_path / "targets/fold-0")
    start(tiny, tmp_path / "mixed", *settings, "augment.mix=mixup_or_cutmix")
    start(tiny, tmp_path / "both", *settings, "augment.mix=mixup_or_cutmix", f"loss.teacher={run}")
    assert weights_hash(tmp_path / "mixed/fold-0") == weights_hash(tmp_path / "both/fold-0")


def test_a_teacher_that_saw_what_its_student_holds_out_or_other_pictures_is_refused(
    run_copy, tiny, drawn, held, tmp_path
):
    one = ["folds.count=1", "schedule.epochs=1", f"loss.teacher={run_copy}"]
    with pytest.raises(UserError, match=r"loss\.teacher: its members were trained on what each fold would hold out"):
        start(tiny, tmp_path / "a", *one[1:])
    copies = tmp_path / "copies"
    shutil.copytree(drawn / "train", copies)
    with pytest.raises(UserError, match=r"images\.validation: .* was trained on 72 of these images"):
        start(tiny, tmp_path / "b", *one, f"images.train=[{held}]", f"images.validation=[{copies}]")
    next(copies.glob("fish/*")).unlink()
    with pytest.raises(UserError, match=r"loss\.teacher: .* 1 of its own are not in images\.train"):
        start(tiny, tmp_path / "c", *one, f"images.train=[{copies}]", f"images.validation=[{held}]")
    shutil.rmtree(run_copy / "fold-1")
    with pytest.raises(UserError, match=r"for 24 images .* has no member that never saw them"):
        start(tiny, tmp_path / "d", *one, f"images.validation=[{held}]")
    with pytest.raises(UserError, match=r"loss\.teacher: .* is no run with a finished fold"):
        start(tiny, tmp_path / "e", *one[:2], f"loss.teacher={drawn}", f"images.validation=[{held}]")


def test_a_student_does_not_go_on_with_another_teacher_s_answers(run_copy, tiny, held, tmp_path):
    settings = ["folds.count=1", "schedule.epochs=1", f"loss.teacher={run_copy}", f"images.validation=[{held}]"]
    start(tiny, tmp_path / "s", *settings)
    path = run_copy / "fold-0/held_out.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "logits": tensors["logits"] + 1}, path)
    with pytest.raises(UserError, match=r"loss\.teacher: its content"):
        start(tiny, tmp_path / "s", *settings, resume=True)


def test_a_student_stands_beside_members_ensemble_and_soup(run_copy, student, drawn, capsys):
    asked = [str(run_copy), "--soup", "--distill", str(student), *words(drawn)]
    assert ensemble.main(asked) == 0
    out, warned = capsys.readouterr()
    shown = " ".join(out.split())
    assert "images.holdout" not in warned  # its holdout is what it holds out
    assert "nothing is there to go on with" not in out
    for name in ("ensemble of 3", "fold-2", "uniform soup", "greedy soup", "student"):
        assert name in shown.split("One model in the ensemble's place")[1]
    message = json.loads((run_copy / "student/result.json").read_text())
    fold = json.loads((run_copy / "student/fold-0/result.json").read_text())
    assert fold["images_trained"] == 72 and fold["n"] == 24  # all of the run's images; the holdout is held out
    assert message["scores"]["student"]["correct"] == fold["correct"]  # the same images by another way
    assert load_recipe(run_copy / "student/recipe.yaml").loss.teacher == str(run_copy)
    assert report.main([str(run_copy)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Table 4. One model in the ensemble's place" in shown
    rows = {row["who"]: row for row in read_table(run_copy / "report/single.csv")}
    assert list(rows) == ["ensemble of 3", "fold-0", "fold-1", "fold-2", "uniform soup", "greedy soup", "student"]
    for name, row in rows.items():
        kept = json.loads((run_copy / ("student" if name == "student" else "soup") / "result.json").read_text())[
            "scores"
        ]
        assert int(row["correct"]) == kept[name]["correct"] and row["n"] == "24"
    p = holm([float(row["p"]) for row in list(rows.values())[1:]])
    assert [float(row["p_holm"]) for row in list(rows.values())[1:]] == pytest.approx(p)
    assert [row["accepted"] for row in rows.values()][-3:] == ["no"] * 3  # 24 images show no point
    before = weights_hash(run_copy / "student/fold-0")
    assert ensemble.main(asked) == 0 and weights_hash(run_copy / "student/fold-0") == before
    assert "is finished" in capsys.readouterr().out
    assert [fold.folder for fold in find_members([run_copy])] == [
        run_copy / f"fold-{k}" for k in range(3)
    ]  # it is no member
    path = run_copy / "fold-0/held_out.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "logits": tensors["logits"] + 1}, path, load_metadata(path))
    with pytest.raises(
        UserError, match=r"--distill: .*student learned from other predictions than those that .* has now"
    ):
        ensemble.main(asked)


def test_a_report_leaves_out_a_soup_of_other_members(run_copy, drawn, capsys):
    assert ensemble.main([str(run_copy), "--soup", "uniform", *words(drawn)]) == 0
    (path := run_copy / "soup/result.json").write_text(path.read_text().replace('"sha256": "', '"sha256": "0', 1))
    assert report.main([str(run_copy)]) == 0
    assert "was made of other members than there are" in " ".join(capsys.readouterr().err.split())
    assert not (run_copy / "report/single.csv").exists()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"members": []}))
    assert report.main([str(run_copy)]) == 0
    assert "soup was made of other members" in " ".join(capsys.readouterr().err.split())
    message = {"strategy": "logits", "mirror": False, "images": {"source": "x"}, "scores": {"x": 1}}
    hashes = [{"sha256": fold.result.sha256.weights} for fold in Run(run_copy).folds]
    path.write_text(json.dumps({**message, "members": hashes}))
    assert report.main([str(run_copy)]) == 0
    assert re.search(r"soup/result\.json: scores\.x: .*make .*soup again", " ".join(capsys.readouterr().err.split()))


def test_a_soup_says_how_it_was_asked(run_copy, drawn):
    assert ensemble.main([str(run_copy), "--soup", "uniform", "--strategy", "vote", "--mirror", *words(drawn)]) == 0
    table = single_table(read_runs([str(run_copy)], None))
    assert table and {row[-1].text for row in table.rows} == {"run_copy, test_labels.csv by vote, with mirror images"}


def test_a_student_without_pictures_to_hold_out_is_refused(run_copy, tiny, student, drawn):
    with pytest.raises(UserError, match=r"--distill: a student holds out images that no fold saw, and neither"):
        ensemble.main([str(run_copy), "--distill", str(tiny), *words(drawn)])
    student.write_text(json.dumps(json.loads(student.read_text()) | {"checkpoint": {"select": "best"}}))
    with pytest.raises(UserError, match=r"checkpoint\.select in .* must be last"):
        ensemble.main([str(run_copy), "--distill", str(student), *words(drawn)])


def test_a_student_s_recipe_is_refused_before_anything_is_asked(run_copy, student, drawn, tmp_path, monkeypatch):
    start_of = tmp_path / "start.safetensors"
    shutil.copyfile(run_copy / "fold-0/model.safetensors", start_of)
    saved = run_copy / "recipe.yaml"
    saved.write_text(saved.read_text().replace("weights: null", f"weights: {start_of}"))
    recipe = student_recipe(str(student), Run(run_copy))
    assert recipe.backbone.weights == str(start_of)  # the run's, for the same backbone
    settings = json.loads(student.read_text())
    student.write_text(json.dumps(settings | {"backbone": settings["backbone"] | {"name": "test_efficientnet"}}))
    assert student_recipe(str(student), Run(run_copy)).backbone.weights is None
    (run_copy / "student").mkdir()
    (run_copy / "student/recipe.yaml").write_text(dump_recipe(recipe))
    monkeypatch.setattr(new_images, "predict", None)
    with pytest.raises(
        UserError, match=r"student is by another recipe; remove it for a new student.*\n.*backbone\.name"
    ):
        ensemble.main([str(run_copy), "--distill", str(student), *words(drawn)])
    with pytest.raises(UserError, match=r"--distill: .*none\.yaml is no file"):
        ensemble.main([str(run_copy), "--distill", str(tmp_path / "none.yaml"), *words(drawn)])


def test_one_fold_makes_no_soup(run_copy, drawn):
    for fold in (1, 2):
        shutil.rmtree(run_copy / f"fold-{fold}")
    with pytest.raises(UserError, match=r"make one model of several, and .* has one finished fold"):
        ensemble.main([str(run_copy), "--soup", *words(drawn)])
