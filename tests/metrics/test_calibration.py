"""Temperature, sets of labels and answers: what they promise holds on rows that had no part in it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from scipy.special import softmax
from scipy.stats import binom

import creature
import ensemble
import predict
import train
from creature.ensembling import calibrate as calibrate_verb
from creature.errors import BrokenError, UserError
from creature.member_folds import find_members
from creature.metrics import calibration
from creature.metrics.blend import Blending, blend
from creature.metrics.calibration import (
    MODEL_CALIBRATION,
    calibrate,
    calibration_error,
    coverage_threshold,
    fit_temperature,
    precision_threshold,
)
from creature.publishing import export as exporting
from creature.publishing.demo import handler
from creature.publishing.export import export
from creature.reporting import figures
from creature.reporting.study import read_runs
from creature.run import Run
from helpers import faults
from helpers.images import photo
from helpers.runs import read_csv, read_table


@pytest.fixture(autouse=True)
def few_rows_are_enough(monkeypatch):
    """The tiny run's folds hold out 24 rows each."""
    for module in (calibration, exporting):
        monkeypatch.setattr(module, "FEWEST", 10)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """The tiny recipe's run, whose folds note a temperature."""
    out = tmp_path_factory.mktemp("runs") / "calibrated"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "FEWEST", 10)
        assert train.main(["--recipe", str(tiny), "--out", str(out)]) == 0
    return out


def rows(n: int, seed: int, temperature: float = 1.0, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, classes) that are `temperature` times too large, and labels drawn as they say without it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, classes))
    cuts = blend(logits[None]).cumsum(1)
    return temperature * logits, (rng.random((n, 1)) > cuts).sum(1).clip(max=classes - 1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_the_temperature_is_found_and_makes_answers_as_sure_as_they_are_right(temperature):
    logits, labels = rows(20_000, 0, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)
    others, truth = rows(20_000, 1, temperature)
    actual = calibrate(logits, labels)
    assert calibration_error(actual.probabilities(others), truth) < 0.02
    if temperature != 1:
        assert calibration_error(blend(others[None]), truth) > 0.05


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_sets_cover_as_often_as_they_say(coverage):
    """Over many small calibrations, where one row more or less in the rank would show."""
    inside, total = 0, 0
    for seed in range(400):
        logits, labels = rows(20, seed)
        actual = calibrate(logits, labels, coverage)
        others, truth = rows(50, 10_000 + seed)
        inside += actual.label_sets(actual.probabilities(others))[np.arange(50), truth].sum()
        total += 50
    # The rows of one calibration share its luck, so that a binomial of all rows is too narrow: 400 are independent.
    spread = 3 * np.sqrt(coverage * (1 - coverage) / 20 / 400 + coverage * (1 - coverage) / total)
    exact = np.ceil(21 * coverage) / 21
    assert exact - spread < inside / total < exact + spread + 0.01  # the most probable label is always in


def test_the_rank_counts_the_new_picture():
    assert coverage_threshold(np.arange(1, 20) / 20, 0.95) == 1 / 20  # of 19 rows the least
    assert coverage_threshold(np.arange(1, 40) / 40, 0.95) == 2 / 40
    with pytest.raises(UserError, match=r"--coverage: 0.95 needs 19 held-out images, there are 18"):
        coverage_threshold(np.arange(1, 19) / 20, 0.95)


def test_answers_are_as_often_right_as_asked_for():
    missed = 0
    for seed in range(100):
        logits, labels = rows(1000, seed)
        actual = calibrate(logits, labels, min_precision=0.75)
        others, truth = rows(4000, 1000 + seed)
        probabilities = actual.probabilities(others)
        sure = actual.sure(probabilities)
        assert 0.1 < sure.mean() < 1
        missed += (probabilities.argmax(1) == truth)[sure].mean() < 0.75
    assert missed <= binom.ppf(0.999, 100, 0.05)


def test_a_precision_that_no_threshold_reaches_is_refused():
    logits, labels = rows(100, 0)
    with pytest.raises(UserError, match=r"--min-precision: 0.999 is not reached .* on 100 held-out images"):
        calibrate(logits, labels, min_precision=0.999)
    sure, right = np.full(100, 0.9), np.arange(100) < 90  # equally sure ones are answered together, or not at all
    assert precision_threshold(sure, right, 0.8) == 0.9
    with pytest.raises(UserError):
        precision_threshold(sure, right, 0.9)


def test_a_precision_out_of_reach_takes_no_coverage_away(capsys):
    table = calibrate_verb.CalibrationRows(*rows(200, 0), source="fold-0")
    expected = calibrate_verb.score_cells(table, 0.8, None)
    assert calibrate_verb.score_cells(table, 0.8, 0.999) == [*expected, "out of reach", ""]
    assert "0.999 is not reached by any threshold" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match=r"fold-0: --min-precision: 0\.999 is not reached"):
        calibrate_verb.score_cells(table, None, 0.999)


def test_predictions_have_sets_and_unsure_ones_no_label(run, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "precision_threshold", lambda sure, *_: float(np.median(sure)))
    fold, out = str(run / "fold-0"), tmp_path / "p.csv"
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    words = [str(drawn / "test"), str(tmp_path / "broken.jpg"), "--coverage", "0.8", "--min-precision", "0.5", "--out"]
    assert predict.main([fold, *words, str(out)]) == 3
    actual = read_table(out)
    assert {row["status"] for row in actual if "broken" not in row["id"]} == {"ok", "unsure"}
    for row in actual:
        if "broken" in row["id"]:
            assert row["set"] == "" and row["label"] == ""
        elif row["status"] == "ok":
            assert row["label"] == json.loads(row["set"])[0]
        else:
            assert (row["label"], row["probability"]) == ("", "") and len(json.loads(row["set"])) >= 1
    for ending in (".jsonl", ".parquet"):
        assert predict.main([fold, *words, str(out.with_suffix(ending))]) == 3
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    table = parquet.read_table(out.with_suffix(".parquet")).to_pylist()
    assert [line["set"] for line in lines] == [row["set"] for row in table]
    assert [json.dumps(line["set"]) if line["set"] else "" for line in lines] == [row["set"] for row in actual]


def predicted_by_all(model: Path, image: str, folder: Path, *more: str) -> list[tuple[bool, float]]:
    """Whether it is calibrated, and its probability: of an image by predict, with sets, by ensemble, API and demo."""
    members = ["--members"] * ("fold" not in model.name)
    scripts = {
        "plain.jsonl": lambda out: predict.main([str(model), image, *members, *more, *out]),
        "sets.jsonl": lambda out: predict.main([str(model), image, *members, *more, "--coverage", "0.8", *out]),
        "ensemble.jsonl": lambda out: ensemble.main([str(model), "--images", image, "--format", "full", *more, *out]),
    }
    rows = []
    for name, script in scripts.items():
        assert script(["--out", str(folder / name)]) == 0
        row = json.loads((folder / name).read_text())
        rows.append((row["calibrated"], row["probability"]))
    loaded = creature.load(model, device="cpu", members=bool(members))
    found = next(loaded.predict(image, tta="--mirror" in more))
    shown, _, _ = handler(loaded)(image)
    page = [] if more else [(loaded.predictor.calibrated == "calibrated", max((shown or {}).values()))]
    return [*rows, (found.calibrated, found.probability or 0), *page]


def test_a_fold_is_calibrated_alike_by_the_scripts_the_api_and_the_demo(run, drawn, tmp_path):
    image = str(next((drawn / "test").iterdir()))
    rows = predicted_by_all(run / "fold-0", image, tmp_path)
    assert {row[0] for row in rows} == {True} and len(rows) == 5
    assert [row[1] for row in rows] == pytest.approx([rows[0][1]] * 5)
    assert not next(creature.load(run / "fold-0", device="cpu").predict(image, tta=True)).calibrated  # fitted without


@pytest.mark.parametrize("mirror", [[], ["--mirror"]])
def test_an_ensemble_is_calibrated_alike_too_once_it_has_predicted_labelled_images(run_copy, drawn, tmp_path, mirror):
    image = str(next((drawn / "test").iterdir()))
    words = [str(run_copy), image, "--members", "--out", str(tmp_path / "before.csv")]
    assert predict.main(words) == 0 and read_table(tmp_path / "before.csv")[0]["calibrated"] == "false"
    ensemble.main(asked(run_copy, drawn, *mirror))
    rows = predicted_by_all(run_copy, image, tmp_path, *mirror)
    assert {row[0] for row in rows} == {True}
    assert [row[1] for row in rows] == pytest.approx([rows[0][1]] * len(rows))
    ensemble.main([str(run_copy), "--strategy", "softmax"])
    assert predict.main(words) == 0 and read_table(tmp_path / "before.csv")[0]["calibrated"] == "false"


def test_titles_say_whether_probabilities_are_calibrated(run_copy, drawn, capsys):
    words = [str(run_copy / "fold-0"), str(next((drawn / "test").iterdir()))]
    predict.main(words)
    assert "labels and probabilities, calibrated" in " ".join(capsys.readouterr().out.split())
    path = run_copy / "fold-0/result.json"
    result = json.loads(path.read_text())
    del result["temperature"]  # as of an older version, or of too few rows
    path.write_text(json.dumps(result))
    predict.main(words)
    assert "labels and probabilities, not calibrated" in " ".join(capsys.readouterr().out.split())


def test_a_fold_without_enough_held_out_rows_notes_no_temperature(run):
    held = Run(run).folds[0].held_out
    assert calibration.find_temperature(held.logits, held.labels) == Run(run).folds[0].result.temperature
    assert calibration.find_temperature(held.logits[:9], held.labels[:9]) is None


def test_the_terminal_shows_sets(run, drawn, capsys):
    picture = str(next((drawn / "test").iterdir()))
    assert predict.main([str(run / "fold-0"), picture, "--coverage", "0.8", "--top", "2"]) == 0
    shown = capsys.readouterr().out
    assert "may be, 0.8" in shown and shown.count(", ") >= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--members"], "none; first: creature ensemble .* --images DIR --labels FILE.csv, or"),
        (["--members", "--mirror"], "--labels FILE.csv --mirror, or"),
        (["--mirror"], "--mirror: calibration was made without it"),
        (["--format", "submission", "--out", "p.csv"], "not for submissions or shards"),
    ],
)
def test_what_is_not_promised_is_refused(run, drawn, tmp_path, words, message):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/ensemble", ignore_errors=True)
    model = str(tmp_path / "run") if "--members" in words else str(run / "fold-0")
    with pytest.raises(UserError, match=message):
        predict.main([model, str(drawn / "test"), "--coverage", "0.8", *words])


def test_a_model_without_its_held_out_rows_is_refused(run, drawn, tmp_path):
    shutil.copytree(run / "fold-0", tmp_path / "fold-0")
    with pytest.raises(UserError, match="rest on the images that a fold held out"):
        predict.main([str(tmp_path / "fold-0"), str(drawn / "test"), "--coverage", "0.8"])


def test_other_weights_than_those_that_answered_are_refused(run, drawn, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.copy(copy / "fold-1/model.safetensors", copy / "fold-0/model.safetensors")
    with pytest.raises(BrokenError, match=r"is not what its .* was measured with"):
        predict.main([str(copy / "fold-0"), str(drawn / "test"), "--coverage", "0.8"])


def test_each_row_is_judged_by_the_others(run_copy, capsys, monkeypatch):
    on_splits = faults.note_calls(monkeypatch, calibration, "calibrate")
    on_all = faults.note_calls(monkeypatch, calibrate_verb, "fit")
    assert calibrate_verb.main([str(run_copy), "--coverage", "0.8"]) == 0
    assert {len(call.args[1]) for call in on_splits} == {19, 20}
    assert [len(call.args[1]) for call in on_all] == [24, 24, 24]
    shown = capsys.readouterr().out
    assert "in sets of 0.8" in shown and shown.count("(n = 24)") == 3


def test_the_reliability_figure_shows_each_row_by_the_temperature_of_its_member_s_other_rows(run, monkeypatch):
    study = read_runs([str(run)], None)[0]
    expected = []
    for fold in study.folds:
        held, labels = fold.held_out, fold.held_out.labels
        part = np.random.default_rng(0).permutation(len(labels)) % 5
        warm = [fit_temperature(held.logits[part != k], labels[part != k]) for k in range(5)]
        expected.append(softmax(held.logits / np.array(warm)[part][:, None], axis=1))
    assert study.calibrated == pytest.approx(np.concatenate(expected))

    def legend() -> list[str]:
        drawn = {drawn.name: drawn.figure for drawn in figures.run_figures(read_runs([str(run)], None)[0])}
        return [text.get_text() for text in drawn["reliability"].legends[0].get_texts()]

    assert study.calibrated is not None
    before, after = (calibration_error(each, study.held.labels) for each in (study.probabilities, study.calibrated))
    assert legend() == [
        f"as it is: expected calibration error {before:.4f}",
        f"calibrated, each row by the fold's others: expected calibration error {after:.4f}",
    ]
    monkeypatch.setattr(calibration, "FEWEST", 20)  # of the 24, 19 are left
    assert legend() == [
        f"as it is, with too few rows a fold to show it calibrated: expected calibration error {before:.4f}"
    ]


def asked(run: Path, drawn: Path, *more: str) -> list[str]:
    return [str(run), "--images", str(drawn / "test"), "--labels", str(drawn / "test_labels.csv"), *more]


@pytest.fixture
def run_copy(run, tmp_path) -> Path:
    """The trained run, to be changed; without what other tests asked its ensemble."""
    shutil.copytree(run, tmp_path / "run_copy")
    shutil.rmtree(tmp_path / "run_copy/ensemble", ignore_errors=True)
    return tmp_path / "run_copy"


@pytest.mark.parametrize("mirror", [[], ["--mirror"]])
def test_an_ensemble_is_calibrated_on_its_own_answers_to_new_pictures(run_copy, drawn, tmp_path, mirror):
    plain, out = tmp_path / "plain.csv", tmp_path / "sets.csv"
    words = [str(run_copy), str(drawn / "test"), "--members", "--top", "12", *mirror, "--out"]
    assert predict.main([*words, str(plain)]) == 0  # not calibrated yet
    assert ensemble.main(asked(run_copy, drawn, *mirror)) == 0
    assert predict.main([*words, str(out), "--coverage", "0.8"]) == 0
    truth = dict(read_csv(drawn / "test_labels.csv")[1:])
    names = sorted({label for label in truth.values()})
    given = read_table(plain)
    output = [
        {row[f"label_{k}" if k > 1 else "label"]: float(row[f"probability_{k}" if k > 1 else "probability"])
         for k in range(1, 13)}
        for row in given
    ]  # fmt: skip
    names = sorted(output[0])
    logits = np.log(np.array([[row[name] for name in names] for row in output]))
    labels = np.array([names.index(truth[Path(row["id"]).stem]) for row in given])
    expected = calibrate(logits, labels, 0.8)
    for row, p in zip(read_table(out), expected.probabilities(logits), strict=True):
        assert float(row["probability"]) == pytest.approx(p.max(), abs=2e-3)  # files round to six digits
    inside = sum(truth[Path(row["id"]).stem] in json.loads(row["set"]) for row in read_table(out))
    assert inside in (19, 20)  # of 24, the very images that it was fitted on, of which one is the threshold


def test_answers_of_other_members_or_of_another_strategy_are_not_what_is_served(run_copy, drawn):
    words = [str(run_copy), str(drawn / "test"), "--members", "--coverage", "0.8"]
    ensemble.main(asked(run_copy, drawn, "--strategy", "softmax"))
    with pytest.raises(UserError, match="rest on its predictions of labelled images"):
        predict.main(words)
    ensemble.main(asked(run_copy, drawn, "--weights", "2"))
    assert predict.main(words) == 0  # the same for all
    shutil.rmtree(run_copy / "fold-2")
    with pytest.raises(UserError, match="rest on its predictions of labelled images"):
        predict.main(words)


def test_pictures_that_a_member_was_trained_on_calibrate_nothing(run_copy, drawn, tmp_path):
    seen = drawn / "train/fish"
    labels = tmp_path / "labels.csv"
    labels.write_text("image_name,label\n" + "".join(f"{path.stem},fish\n" for path in seen.iterdir()))
    ensemble.main([str(run_copy), "--images", str(seen), "--labels", str(labels)])
    with pytest.raises(UserError, match="rest on its predictions of labelled images"):
        predict.main([str(run_copy), str(drawn / "test"), "--members", "--coverage", "0.8"])


def test_a_handful_of_labels_takes_no_calibration_away(run_copy, drawn, tmp_path):
    ensemble.main(asked(run_copy, drawn))
    (five := tmp_path / "five").mkdir()
    for number in range(5):
        photo(number).save(five / f"{number}.png")
    (labels := tmp_path / "five.csv").write_text("image,label\n" + "".join(f"{n},bird\n" for n in range(5)))
    ensemble.main([str(run_copy), "--images", str(five), "--labels", str(labels)])
    members = find_members([run_copy])
    found = calibrate_verb.rows_of_ensemble(Run(run_copy), members, Blending(np.ones(len(members))))
    assert found is not None and len(found.labels) == len(list((drawn / "test").iterdir()))


def test_the_ensemble_s_row_is_cross_fitted_too(run_copy, drawn, capsys):
    assert calibrate_verb.main([str(run_copy)]) == 0
    assert "for that of an ensemble, first: creature ensemble" in capsys.readouterr().out
    ensemble.main(asked(run_copy, drawn))
    capsys.readouterr()
    assert calibrate_verb.main([str(run_copy), "--coverage", "0.8"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "ensemble of 3, images" in shown and shown.count("(n = 24)") == 4


def test_one_that_has_too_few_rows_leaves_the_others_shown(run_copy, drawn, tmp_path, capsys):
    first = "".join((drawn / "test_labels.csv").read_text().splitlines(keepends=True)[:12])
    (tmp_path / "few.csv").write_text(first)
    ensemble.main([str(run_copy), "--images", str(drawn / "test"), "--labels", str(tmp_path / "few.csv")])
    assert calibrate_verb.main([str(run_copy), "--coverage", "0.8"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("(n = 24)") >= 3
    assert "ensemble of 3, images: 11 held-out images are too few" in " ".join(shown.err.split())


def test_a_published_model_and_ensemble_promise_what_the_run_does(run_copy, drawn, tmp_path):
    """The same labels in every set, without the images or their names."""
    ensemble.main(asked(run_copy, drawn))
    (read_run,) = read_runs([str(run_copy)], None)
    branches = export(read_run, run_copy / "export")
    for folder, model, more in (
        (branches["main"], run_copy / "fold-0", []),
        (branches["main"], run_copy, ["--members"]),
    ):
        for source, name in ((model, "run.csv"), (folder, "published.csv")):
            words = [str(source), str(drawn / "test"), "--coverage", "0.8", *more, "--out", str(tmp_path / name)]
            assert predict.main(words) == 0
        assert (tmp_path / "run.csv").read_bytes() == (tmp_path / "published.csv").read_bytes()
    (branches["main"] / MODEL_CALIBRATION).write_bytes(b"nothing")
    with pytest.raises(BrokenError, match="cannot be read as a calibration"):
        predict.main([str(branches["main"]), str(drawn / "test"), "--coverage", "0.8"])


@pytest.mark.parametrize("script", [predict, calibrate_verb])
def test_set_is_a_recipe_s_word_and_names_coverage(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["runs/all/fold-0", "--set", "0.95", "photo.jpg"])
    assert "--set: sets a recipe's setting, and a prediction has no recipe" in (shown := capsys.readouterr().err)
    assert "--coverage 0.95" in shown


@pytest.mark.parametrize("share", ["0", "1", "95", "x"])
def test_a_share_is_between_0_and_1(share, capsys):
    with pytest.raises(SystemExit):
        predict.main(["model", "photo.jpg", "--coverage", share])
    assert "must be above 0 and below 1" in capsys.readouterr().err


def test_too_few_rows_to_judge_a_calibration_are_counted(run, monkeypatch):
    monkeypatch.setattr(calibration, "FEWEST", 20)
    with pytest.raises(UserError, match=r"fold-0: 24 held-out images are too few to judge each by the others"):
        calibrate_verb.main([str(run)])
