"""The report of a study: tables, figures and page, of small runs on drawn creatures."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import ensemble
import train
from creature.errors import BrokenError, UserError
from creature.metrics.significance import PairedComparison, holm
from creature.reporting import comparison_table as comparing
from creature.reporting import gallery as galleries
from creature.reporting import report
from creature.reporting.study import read_runs
from helpers import ROOT
from helpers.fold_files import folds_rows
from helpers.runs import read_csv, read_table

HOSTILE = "<img src=x onerror=alert(1)> $x_{2}$ & \"q'\\"


@pytest.fixture(scope="module")
def study(tiny: Path, drawn: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with one fold of the report's baseline, focal loss, another seed of each, and three folds of `all`."""
    runs = tmp_path_factory.mktemp("study")
    settings = {
        "resnext": ["name=resnext"],
        "resnext_1": ["name=resnext", "seed=1"],
        "focal": ["name=focal", "loss.name=focal"],
        "focal_1": ["name=focal", "loss.name=focal", "seed=1"],
        "vit": ["backbone.name=test_vit", "images.size=48", "checkpoint.select=best"],
        "restarts": ["schedule.name=cosine_warm_restarts", "schedule.restart_epochs=1", "schedule.restart_factor=1"],
    }
    for name, some in settings.items():
        words = [word for setting in (*some, "folds.train=[0]") for word in ("--set", setting)]
        train.main(["--recipe", str(tiny), "--out", str(runs / name), *words])
    train.main(["--recipe", str(tiny), "--out", str(runs / "all"), "--set", "name=all"])
    for name in ("resnext", "focal", "all"):
        ensemble.main([str(runs / name), "--images", str(drawn / "test"), "--labels", str(drawn / "test_labels.csv")])
    return runs


@pytest.fixture(scope="module")
def page(study: Path) -> Path:
    """Its report, beside the reference of the paper recipes."""
    assert report.main([*(str(study / name) for name in NAMES), *BESIDE]) == 0
    return study / "report"


REFERENCE = ROOT / "recipes/paper/reference.json"
BESIDE = ("--reference", str(REFERENCE))
NAMES = ("all", "focal", "focal_1", "resnext", "resnext_1", "restarts", "vit")


def records(page: Path, name: str) -> list[dict[str, str]]:
    return read_table(page / f"{name}.csv")


def held_out(run: Path, fold: int = 0) -> tuple[list[str], np.ndarray]:
    """Ids and whether each is right, by the files alone."""
    tensors = load_file(run / f"fold-{fold}/held_out.safetensors")
    ids = tensors["ids"].tobytes().decode().split("\n")
    labels = {row[0]: row[1] for row in folds_rows(run)}
    return ids, tensors["logits"].argmax(1) == np.array([labels[name] for name in ids])


def test_scores_are_those_of_the_files_with_n_and_interval(study, page):
    rows = {(row["run"], row["split"]): row for row in records(page, "scores")}
    for name in ("resnext", "focal_1", "vit"):
        _, right = held_out(study / name)
        row = rows[name, "held_out"]
        assert (int(row["correct"]), int(row["n"])) == (right.sum(), len(right) == 24 and 24)
        assert float(row["low"]) < right.mean() < float(row["high"])
    pooled = sum(held_out(study / "all", fold)[1].sum() for fold in range(3))
    assert (int(rows["all", "held_out"]["correct"]), rows["all", "held_out"]["n"]) == (pooled, "72")
    result = json.loads((study / "all/ensemble/result.json").read_text())
    (test,) = result["ensemble"].values()
    assert int(rows["all", "test"]["correct"]) == test["unseen"]["correct"]


def test_a_selected_epoch_is_marked_and_the_last_one_stands_beside_it(study, page):
    rows = {(row["run"], row["split"]): row for row in records(page, "scores")}
    assert rows["vit", "held_out"]["status"] == "selected" and rows["resnext", "held_out"]["status"] == "scored"
    last = json.loads((study / "vit/fold-0/result.json").read_text())["last"]
    assert int(rows["vit", "held_out_last_epoch"]["correct"]) == last["correct"]
    assert re.search(r"\| vit .*\(n = 24\) selected \|", (page / "scores.md").read_text())


def test_a_reference_s_numbers_are_shown_and_what_no_run_repeats_is_missing(page):
    rows = {(row["run"], row["split"]): row for row in records(page, "scores")}
    assert rows["five_fold", "held_out"]["status"] == "missing"
    assert rows["focal", "held_out"]["reference_public"] == rows["focal_1", "held_out"]["reference_public"] == "0.9326"
    assert rows["vit", "held_out"]["reference_public"] == ""
    scores, tricks, strategies = ((page / f"{name}.md").read_text() for name in ("scores", "tricks", "strategies"))
    assert "| five\\_fold | missing |" in scores and "| the report: val, public, private |" in scores
    assert "| seen, 0.9522, 0.9514 |" in scores and "val n = 300, public n = 1172, private n = 1172." in scores
    assert "| +0.09, -1.62 |" in tricks and "| the report: public, private |" in tricks
    assert [line.split(" | ")[0] for line in tricks.splitlines()[4:6]] == [
        "| resnext\\_1 (1 of 3 folds)",
        "| all (3 of 3 folds)",
    ]
    assert "0.9480, 0.9445" in strategies and strategies.count("0.9420, 0.9300") == 1


def test_without_a_reference_the_first_run_is_the_baseline_and_nothing_stands_beside(study, tmp_path):
    report.main([str(study / "focal"), str(study / "resnext"), "--out", str(tmp_path)])
    rows = records(tmp_path, "tricks")
    assert {row["baseline"] for row in rows} == {"focal"} and {row["run"] for row in rows} == {"resnext"}
    assert not any("reference" in key for key in records(tmp_path, "scores")[0])
    assert "missing" not in (tmp_path / "scores.md").read_text()


def reference(folder: Path, **changes: object) -> Path:
    """A reference file of one's own."""
    values: dict[str, object] = {"name": "mine", "source": "last year's model", "splits": {"test": {"n": 50}}}
    values |= {"baseline": "focal", "results": [{"recipes": ["focal"], "accuracy": {"test": 0.5}}]}
    (folder / "reference.json").write_text(json.dumps(values | changes))
    return folder / "reference.json"


def test_a_reference_of_one_s_own_is_enough_with_one_result(study, tmp_path):
    words = [str(study / "resnext"), str(study / "focal"), "--reference", str(reference(tmp_path))]
    report.main([*words, "--out", str(tmp_path / "report")])
    scores = (tmp_path / "report/scores.md").read_text()
    assert "| mine: test |" in scores and "| 0.5000 |" in scores and "mine: last year's model; test n = 50." in scores
    assert {row["baseline"] for row in records(tmp_path / "report", "tricks")} == {"focal"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"test": {"n": 0}}}, "splits.test.n: Input should be greater than or equal to 1"),
        ({"baseline": "other"}, "baseline: other is none of the results; name one of focal"),
        ({"results": [{"recipes": ["focal"], "accuracy": {"val": 0.5}}]}, "focal has the split val, which splits does"),
        ({"results": [{"recipes": ["focal"], "accuracy": {"test": 93}}]}, "results.0.accuracy.test: Input should be"),
        ({"results": [{"recipes": ["focal"] * 2, "accuracy": {}}]}, "results: focal is named twice"),
        ({"title": "x"}, "title: Extra inputs are not permitted"),
        (
            {"baseline": "vgg", "results": [{"recipes": ["vgg"], "accuracy": {}}]},
            r"has none of the runs' recipes \(focal\), but vgg; leave it out",
        ),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused_in_a_sentence(study, tmp_path, changes, message):
    path = reference(tmp_path, **changes)
    with pytest.raises(UserError, match=f"^--reference: {re.escape(str(path))}.*{message}"):
        report.main([str(study / "focal"), "--reference", str(path), "--out", str(tmp_path / "report")])


def test_tricks_are_compared_on_the_same_rows(study, page):
    rows = {(row["run"], row["rows"]): row for row in records(page, "tricks") if row["rows"]}
    (ids, base), (others, trick) = held_out(study / "resnext"), held_out(study / "focal")
    assert sorted(ids) == sorted(others)
    trick = trick[[others.index(name) for name in ids]]
    row = rows["focal", "held out"]
    assert (int(row["run_alone_right"]), int(row["baseline_alone_right"]), row["n"]) == (
        (trick & ~base).sum(),
        (base & ~trick).sum(),
        "24",
    )
    assert rows["resnext_1", "test"].get("status") == "not scored"
    assert {row["baseline"] for row in rows.values()} == {"resnext"}


def test_p_values_are_corrected_for_their_number_and_told_in_the_note(study, monkeypatch):
    """Runs that are as good as the baseline, a little better, and much worse, on 100 rows that only one has right."""
    splits = iter([PairedComparison(50, 50, 900), PairedComparison(61, 39, 900), PairedComparison(20, 80, 900)])
    monkeypatch.setattr(comparing, "compare_shared", lambda first, second: next(splits))
    runs = read_runs([str(study / name) for name in ("resnext_1", "focal", "focal_1", "vit")], None)
    runs = [replace(run, recorded={}) for run in runs]
    table = comparing.comparison_table(runs, runs[0])
    actual = [record for record in table.records if record["status"] == "compared"]
    p = [float(str(record["p"])) for record in actual]
    assert p[1] < 0.05 < holm(p)[1] and [record["p_holm"] for record in actual] == holm(p)
    assert "corrected for the 3 comparisons" in table.note
    assert f"Below 0.05 after the correction: {actual[2]['run']} (held out)." in table.note
    assert [row[2].tone for row in table.rows[:3]] == ["", "up", "down sure"]


def test_a_fold_run_is_compared_on_all_rows_that_the_baseline_held_out(study, page):
    """resnext has one fold, all has three: the 24 rows of fold 0 are common."""
    rows = {(row["run"], row["rows"]): row for row in records(page, "tricks") if row["rows"]}
    assert rows["all", "held out"]["n"] == "24" and rows["all", "test"]["n"] == "24"


def test_what_differs_from_the_baseline_is_named(page):
    table = (page / "tricks.md").read_text()
    focal = next(line for line in table.splitlines() if line.startswith("| focal (1"))
    assert 'loss.name: "cross\\_entropy" → "focal"' in focal and "seed" not in focal
    assert "not two recipes" in table


def test_runs_on_other_pictures_are_said_to_differ(study, tiny, tmp_path):
    """A second data set: no image in common, so no p."""
    from creature.samples import write_drawings

    write_drawings(tmp_path / "drawn", train=72, test=12, size=32, seed=9)
    settings = [f"images.train=[{tmp_path / 'drawn/train'}]", "folds.train=[0]", "schedule.epochs=1"]
    words = [word for setting in settings for word in ("--set", setting)]
    train.main(["--recipe", str(tiny), "--out", str(tmp_path / "elsewhere"), *words])
    report.main([str(study / "resnext"), str(tmp_path / "elsewhere"), "--out", str(tmp_path / "report")])
    (row, *_) = [row for row in records(tmp_path / "report", "tricks") if row["run"] == "elsewhere"]
    assert row["status"] == "the rows differ" and row["p"] == ""


def test_strategies_have_the_report_s_four_rows(page):
    rows = [row for row in records(page, "strategies") if row["run"] == "all"]
    assert [row["who"] for row in rows] == ["logits", "softmax", "vote", "fold-0", "fold-1", "fold-2"]
    assert {row["n"] for row in rows} == {"24"} and all(row["p_holm"] for row in rows[1:])


def test_seeds_have_a_mean_and_a_spread(study, page):
    rows = {row["runs"]: row for row in records(page, "seeds") if row["rows"] == "held"}
    scores = [held_out(study / name)[1].mean() for name in ("focal", "focal_1")]
    assert float(rows["focal, focal_1"]["mean"]) == pytest.approx(np.mean(scores))
    assert float(rows["focal, focal_1"]["deviation"]) == pytest.approx(np.std(scores, ddof=1))


def test_seen_pictures_have_no_accuracy(study, drawn, tmp_path):
    run = tmp_path / "all"
    shutil.copytree(study / "all", run)
    labels = tmp_path / "labels.csv"
    names = [path.stem for path in (drawn / "train/fish").iterdir()]
    labels.write_text("image_name,label\n" + "".join(f"{name},fish\n" for name in names))
    ensemble.main([str(run), "--images", str(drawn / "train/fish"), "--labels", str(labels)])
    report.main([str(run)])
    (row,) = [row for row in records(run / "report", "scores") if row["split"] == "test" and row["run"] == "all"]
    assert row["status"] == "seen" and row["accuracy"] == ""


def test_labels_that_come_later_score_saved_predictions(study, drawn, tmp_path, capsys):
    run = tmp_path / "late"
    shutil.copytree(study / "resnext", run)
    shutil.rmtree(run / "ensemble")
    ensemble.main([str(run), "--images", str(drawn / "test"), "--out", str(tmp_path / "p.csv")])
    report.main([str(run)])
    assert "no labels" in {row["status"] for row in records(run / "report", "scores")}
    report.main([str(run), "--labels", str(drawn / "test_labels.csv")])
    (row,) = [row for row in records(run / "report", "scores") if row["split"] == "test"]
    truth = dict(read_csv(drawn / "test_labels.csv"))
    output = read_csv(tmp_path / "p.csv")[1:]
    assert int(row["correct"]) == sum(truth[name] == label for name, label in output)


def test_figures_and_tables_come_out_byte_identical(study, page, tmp_path):
    shutil.copytree(page, tmp_path / "before")
    before = {path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()}
    report.main([*(str(study / name) for name in NAMES), *BESIDE])
    assert {path.name: path.read_bytes() for path in page.iterdir()} == before
    kinds = {name: sum(path.suffix == name for path in page.iterdir()) for name in (".png", ".svg", ".md", ".csv")}
    assert kinds[".png"] == kinds[".svg"] == 3 + 5 * len(NAMES) and kinds[".csv"] == 4 + len(NAMES)


def test_figures_need_no_picture_and_the_gallery_says_so(study, page, tmp_path, capsys):
    run = tmp_path / "moved/resnext"
    shutil.copytree(study / "resnext", run)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(re.sub(r"- .*/train$", "- /nowhere/train", recipe, flags=re.M))
    report.main([str(run)])
    assert "The images are not at hand" in (run / "report/index.html").read_text()
    for name in ("confusion", "recall", "reliability", "coverage"):
        assert (run / f"report/resnext-{name}.svg").read_bytes() == (page / f"resnext-{name}.svg").read_bytes()


def test_an_image_that_comes_back_is_shown_by_the_next_report_of_the_same_program(study, drawn, tmp_path):
    run, train = tmp_path / "resnext", tmp_path / "train"
    shutil.copytree(study / "resnext", run)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(re.sub(r"- .*/train$", f"- {train}", recipe, flags=re.M))
    for species in sorted((drawn / "train").iterdir())[1:]:
        shutil.copytree(species, train / species.name)
    report.main([str(run)])
    assert "more are gone" in (run / "report/index.html").read_text()
    shutil.copytree(drawn / "train", train, dirs_exist_ok=True)
    report.main([str(run)])
    assert "more are gone" not in (run / "report/index.html").read_text()


def test_the_gallery_explains_each_answer_by_a_member_that_never_saw_the_picture(study, monkeypatch):
    asked, real = [], galleries.draw_overlay

    def listening(member, picture, label):
        asked.append((member, label))
        return real(member, picture, label)

    monkeypatch.setattr(galleries, "draw_overlay", listening)
    run = read_runs([str(study / "all")], None)[0]
    explained = galleries.make_gallery(run, explain=True)
    assert len(explained.mistakes) > 10 and len({member.folder for member, _ in asked}) == 3
    assert "orange speaks for" in explained.note
    for mistake, (member, label) in zip(explained.mistakes, asked, strict=True):
        assert mistake.contradicted.image in held_out(study / "all", int(member.folder.name[-1]))[0]
        assert member.class_names[label] == mistake.contradicted.predicted and len(set(mistake.sources)) == 2
    plain = galleries.make_gallery(run)
    thumbnails = [mistake.sources[:1] for mistake in explained.mistakes]
    assert [mistake.sources for mistake in plain.mistakes] == thumbnails and "orange" not in plain.note


def test_a_network_without_maps_keeps_its_gallery_and_says_why(study, tmp_path):
    assert report.main([str(study / "vit"), "--explain", "--out", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report/index.html").read_text()
    assert text.count("data:image/jpeg") > 10 and "fold-0: the logits of this VisionTransformer are no averages" in text


def test_an_unfinished_run_is_named_and_a_report_passed_over(study, page, tmp_path, capsys):
    begun = tmp_path / "begun"
    shutil.copytree(study / "resnext", begun)
    (begun / "fold-0/result.json").unlink()
    report.main([str(begun), str(study / "focal"), str(page), "--out", str(tmp_path / "report")])
    output = " ".join(capsys.readouterr().out.split())
    assert "no finished fold" in output and "holds a report, and no run" in output and "1 of 2 runs" not in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{study}/nothing"], "is no run: it has no recipe.yaml"),
        (["{study}/focal", "--baseline", "resnext"], "--baseline: resnext is none of the runs: focal"),
        (["{study}/focal", "{study}/focal"], "is listed twice"),
        (["{study}/focal", "--reference", "none.json"], "--reference: cannot read none.json: No such file"),
        (["{study}/report"], "no runs to report on"),
        (["{study}/focal", "--out", "{study}/focal/recipe.yaml"], "--out: cannot write to .*recipe.yaml: File exists"),
    ],
)
def test_mistakes_get_one_sentence(study, page, words, message):
    with pytest.raises(UserError, match=message):
        report.main([word.format(study=study) for word in words])


def test_a_damaged_history_is_refused(study, tmp_path):
    shutil.copytree(study / "resnext", tmp_path / "run")
    (tmp_path / "run/fold-0/history.jsonl").write_text("no JSON\n")
    with pytest.raises(BrokenError, match=r"history\.jsonl: cannot be read as a fold's history"):
        report.main([str(tmp_path / "run")])


def test_damaged_answers_are_refused(study, tmp_path):
    shutil.copytree(study / "resnext", tmp_path / "run")
    path = tmp_path / "run/ensemble/images.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BrokenError, match=r"run creature ensemble with --images again"):
        report.main([str(tmp_path / "run")])


# The page in a real browser


def show(browser, path: Path, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach((each) => each.open = true)")


@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_loads_whole_at_any_width(browser, page, width):
    show(browser, page / "index.html", width)
    assert browser.get_log("browser") == []
    images = browser.execute_script("return [...document.images].map((each) => [each.complete, each.naturalWidth])")
    assert len(images) >= 3 + 5 * len(NAMES) and all(done and pixels > 0 for done, pixels in images)
    across = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert across[0] <= across[1] == width, "the page scrolls sideways"
    small = browser.execute_script(
        "return [...document.querySelectorAll('td, p, figcaption, li, summary')]"
        ".filter((each) => each.offsetWidth && parseFloat(getComputedStyle(each).fontSize) < 13).length"
    )
    assert small == 0


def test_the_class_table_sorts_both_ways(browser, page):
    show(browser, page / "index.html", 1400)
    script = """
        const table = document.querySelector("table.sortable");
        const at = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent.trim() === arguments[0]);
        table.tHead.rows[0].cells[at].querySelector("button").click();
        return [...table.tBodies[0].rows].map((row) => row.cells[at].textContent);
    """
    up, down = browser.execute_script(script, "recall"), browser.execute_script(script, "recall")
    values = [float(text) for text in up]
    assert values == sorted(values) and down == [f"{value:.4f}" for value in sorted(values, reverse=True)]
    classes = browser.execute_script(script, "class")
    assert classes == sorted(classes) and len(classes) == 12


def test_hostile_names_are_text(browser, tiny, drawn, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(drawn / "train", data)
    (data / "fish").rename(data / HOSTILE)
    (data / "crab").rename(data / "=1+1 \x1b[31m")
    victim = next((data / HOSTILE).iterdir())
    victim.rename(victim.with_name("<script>document.title='taken'<script>.jpg"))
    words = ["--set", f"images.train=[{data}]", "--set", "folds.train=[0]", "--set", "schedule.epochs=1"]
    run = tmp_path / "<b>run"
    train.main(["--recipe", str(tiny), "--out", str(run), *words])
    assert report.main([str(run)]) == 0
    show(browser, run / "report/index.html", 1400)
    assert browser.get_log("browser") == []
    assert browser.title == "Report on <b>run"
    assert browser.execute_script("return document.querySelectorAll('img[src=x], body b, body script').length") == 1
    assert "<img src=x onerror=alert(1)>" in browser.execute_script("return document.body.innerText")
    for path in (run / "report").iterdir():
        if path.suffix in (".html", ".csv", ".md"):
            assert "\x1b" not in path.read_text()
    with Image.open(run / "report/%3Cb%3Erun-confusion.png") as figure:
        assert figure.size[0] > 500


def test_answers_of_other_weights_are_left_out(study, tmp_path, capsys):
    run = tmp_path / "resnext"
    shutil.copytree(study / "resnext", run)
    for name in ("model.safetensors", "result.json", "held_out.safetensors"):
        shutil.copyfile(study / "focal/fold-0" / name, run / "fold-0" / name)
    (actual,) = read_runs([str(run)], None)
    assert not actual.recorded and "has predictions of other weights, which are left out" in capsys.readouterr().err


def test_runs_that_were_asked_in_different_ways_are_not_compared(study, drawn, tmp_path):
    run = tmp_path / "focal"
    shutil.copytree(study / "focal", run)
    words = ["--images", str(drawn / "test"), "--labels", str(drawn / "test_labels.csv"), "--mirror"]
    ensemble.main([str(run), *words])
    baseline, mirrored = read_runs([str(study / "resnext"), str(run)], None)
    table = comparing.comparison_table([baseline, mirrored], baseline)
    assert [record["status"] for record in table.records if record["run"] == "focal"] == [
        "compared",
        "resnext predicted in another way: one model",
    ]
