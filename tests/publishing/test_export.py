"""What is published: folders that prove themselves, tell nothing of the machine, and a card of measured numbers."""

import json
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

import ensemble
import train
from creature.data.folds import read_folds
from creature.errors import BrokenError, UserError
from creature.inference.load import find_model
from creature.metrics.calibration import FEWEST, fit, load_calibration, save_calibration
from creature.publishing import check, publish
from creature.publishing.card import base_model, measured
from creature.publishing.export import anonymous, as_published, portable, sort_header
from creature.publishing.golden import read_golden
from creature.publishing.terms import Terms, find_terms
from creature.publishing.verify import scan, verify
from creature.recipe_file import load_recipe
from creature.reporting.study import read_runs
from creature.storage import write_manifest
from creature.training.checkpoint import verifies
from helpers.fold_files import folds_rows
from helpers.processes import read_only

TERMS = Terms("apache-2.0", "Drawn by a *program* for tests <b>")


@pytest.fixture(scope="module")
def built(run: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its exported folders beside."""
    folder = tmp_path_factory.mktemp("built") / "tiny"
    shutil.copytree(run, folder)
    ensemble.main([str(folder), "--images", str(drawn / "test"), "--labels", str(drawn / "test_labels.csv")])
    publish.build(folder, "me/drawn", TERMS)
    return folder


@pytest.fixture
def main(built: Path, tmp_path: Path) -> Path:
    """A copy of main to spoil."""
    shutil.copytree(built / "export/main", tmp_path / "main")
    return tmp_path / "main"


def test_every_folder_proves_itself_and_has_a_manifest(built):
    for branch in ("main", "fold-0", "fold-1", "fold-2"):
        folder = built / "export" / branch
        assert all(outcome in ("ok", "not checked: transformers is not installed") for _, outcome in verify(folder))
        assert verifies(folder)
    assert not list((built / "export").rglob("state")) and not list((built / "export").rglob("*optimizer*"))


def test_no_file_of_the_training_data_is_named_anywhere(built, run):
    names = [row[0] for row in folds_rows(run)]
    texts = [
        path for path in (built / "export").rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".md", ".arrow")
    ]
    assert len(names) == 72 and len(texts) > 10
    assert not [(path, name) for path in texts for name in names if name.encode() in path.read_bytes()]


def test_what_was_trained_here_is_not_to_be_downloaded_again(built, tmp_path):
    (begun := tmp_path / "fold-1").mkdir()
    (begun / "history.jsonl").write_text("")
    for folder in (built, built / "fold-0", begun):
        with pytest.raises(UserError, match=r"was trained here and is not published.*creature publish"):
            check.main([str(folder)])


def test_a_download_is_checked_against_manifest_and_golden_answer(built, main, capsys):
    assert check.main([str(built / "export/fold-1")]) == 0
    assert "every file is as its manifest says" in capsys.readouterr().out
    config = (main / "config.json").read_text()
    (main / "config.json").write_text(config.replace("a", "b", 1))
    (main / "README.md").unlink()
    with pytest.raises(UserError, match=r"(?s)README.md: missing.*config.json: of another content|config.*README"):
        check.main([str(main)])
    (main / "config.json").write_text(config)
    (main / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest.json: names no files"):
        check.main([str(main)])
    write_manifest(main)
    assert check.main([str(main)]) == 0
    golden = json.loads((main / "golden.json").read_text())
    golden["logits"][0] += 1
    (main / "golden.json").write_text(json.dumps(golden))
    write_manifest(main)  # an author may change both; what the model answers is still compared
    with pytest.raises(UserError, match=r"not those of golden.json \(up to 1 away\)"):
        check.main([str(main)])
    (main / "manifest.json").write_text('{"../x": {}, "/etc/passwd": {}}')
    with pytest.raises(UserError, match=r"(?s)\.\./x: lies outside.*/etc/passwd: lies outside"):
        check.main([str(main)])
    (main / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest.json: cannot be read"):
        check.main([str(main)])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), ("{}", "picture: Field required"), ("no JSON", "Invalid JSON")],
)
def test_a_damaged_golden_file_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "golden.json").write_text(content)
    with pytest.raises(UserError, match=rf"golden\.json.*{message}.*download it again"):
        read_golden(tmp_path)


def test_the_golden_picture_is_not_square(built):
    with Image.open(built / "export/main/golden.png") as image:
        width, height = image.size
    assert width != height


def spoil_pixels(folder: Path) -> None:
    change(folder, lambda config: config["pretrained_cfg"].update(crop_mode="center"))


def spoil_mean(folder: Path) -> None:
    change(folder, lambda config: config["pretrained_cfg"].update(mean=[0.1, 0.1, 0.1]))


def spoil_labels(folder: Path) -> None:
    change(folder, lambda config: config["label_names"].reverse())


def spoil_classes(folder: Path) -> None:
    change(folder, lambda config: config.update(model_args={"num_classes": 12}))


def change(folder: Path, how) -> None:
    config = json.loads((folder / "config.json").read_text())
    how(config)
    (folder / "config.json").write_text(json.dumps(config))


def spoil_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("weight"))
    save_file(tensors | {name: tensors[name] + 0.01}, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_format(folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")


def spoil_metadata(folder: Path) -> None:
    words = {"format": "pt", "host": "x"}
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata=words)


def spoil_pickle(folder: Path) -> None:
    torch.save({}, folder / "optimizer.pt")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_pixels, "logits differ"),
        (spoil_mean, "logits differ"),
        (spoil_labels, r"timm loads it[^\n]*: its labels are in another order"),
        (spoil_weights, "logits differ"),
        (spoil_format, "lacks the metadata format: pt"),
        (spoil_metadata, "has metadata that no one reads: host"),
        (spoil_pickle, "optimizer.pt may be a pickle"),
    ],
)
def test_a_folder_that_gives_something_else_is_refused(main, spoil, message):
    spoil(main)
    with pytest.raises(UserError, match=f"(?s)must not be published.*{message}"):
        verify(main)


def test_verifying_leaves_transformers_as_the_host_program_set_it(main):
    logging = pytest.importorskip(
        "transformers.utils.logging", reason="transformers is not installed; pip install transformers"
    )
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        verify(main)
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before[0])
        if not before[1]:
            logging.disable_progress_bar()


def test_a_calibration_that_has_not_changed_is_not_uploaded_again(tmp_path):
    """The library writes a header's entries in a random order."""
    random = np.random.default_rng(0)
    fitted = fit(random.normal(size=(FEWEST, 3)).astype(np.float32), random.integers(3, size=FEWEST))
    contents = set()
    for _ in range(20):
        save_calibration(tmp_path / "calibration.safetensors", fitted)
        sort_header(tmp_path / "calibration.safetensors")
        contents.add((tmp_path / "calibration.safetensors").read_bytes())
    assert len(contents) == 1
    assert load_calibration(tmp_path / "calibration.safetensors").temperature == fitted.temperature


def test_what_only_transformers_stumbles_over_is_refused_too(main):
    pytest.importorskip("transformers", reason="transformers is not installed; pip install transformers")
    spoil_classes(main)
    with pytest.raises(UserError, match=r"transformers loads it: .*num_classes"):
        verify(main)


@pytest.mark.parametrize(
    ("text", "actual"),
    [
        ("trained on /home/someone/photos/x.jpg", "a path of this machine: /home/someone/photos/x.jpg"),
        ('"/data/birds/a"', "a path of this machine: /data/birds/a"),
        ("(/mnt/x/y)", "a path"),
        ("C:\\\\Users\\\\someone", "a path"),
        ("see ~/photos", "a path"),
        ("file:///x", "a path"),
        ("hf_" + "a1" * 15, "a token: hf_a..."),
        ("ghp_" + "a1" * 15, "a token"),
        ("AKIA" + "A1" * 8, "a token"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a token"),
    ],
)
@pytest.mark.parametrize("name", ["README.md", "recipe.yaml", "history.jsonl", "sub/x.json"])
def test_places_and_tokens_are_found(tmp_path, text, actual, name):
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_text(f"first line\nsecond: {text}\n")
    (problem,) = scan(tmp_path)
    assert f"{Path(name).name}, line 2: {actual}" in problem
    assert "a1a1" not in problem


@pytest.mark.parametrize(
    "text",
    ["https://huggingface.co/timm/resnet50.a1_in1k", "and/or, 3/4", "</details>", "- train", "`a`/`b`", "images/s",
     "hf-hub:me/creature", "[x](../y/z.md)", "0.9 / 0.95", "hf_hub_download", "n = 5 : 3"],
)  # fmt: skip
def test_addresses_and_fractions_are_no_places(tmp_path, text):
    (tmp_path / "README.md").write_text(f"{text}\n")
    assert list(scan(tmp_path)) == []


@pytest.mark.parametrize(
    ("host", "text", "actual"),
    [
        ("lab-7", "trained on LAB-7", ["LAB-7"]),
        ("gpu01.example.org", "by robin@gpu01.example.org", ["robin@gpu01.example.org"]),
        ("laptop", "by max@laptop", ["max@laptop"]),
        ("laptop", "minutes on a laptop, by max, of probabilities.max()", []),
        ("localhost", "http://localhost:8000", []),
    ],
)
def test_a_host_is_found_where_it_can_be_nothing_else(tmp_path, monkeypatch, host, text, actual):
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    (tmp_path / "README.md").write_text(f"{text}\n")
    assert [re.search(r"of this machine: (.*);", problem)[1] for problem in scan(tmp_path)] == actual  # type: ignore[index]
    assert list(scan(tmp_path, [host])) == list(scan(tmp_path, reviewed=True)) == []


def test_class_names_that_look_like_paths_are_published_and_tokens_never(tmp_path):
    (tmp_path / "config.json").write_text('["/m/01yrx", "/m/068hy"]')
    assert list(scan(tmp_path)) == []
    (tmp_path / "config.json").write_text('["/m/01yrx", "/home/robin/x"]')
    assert len(list(scan(tmp_path))) == 1 and list(scan(tmp_path, reviewed=True)) == []
    (tmp_path / "config.json").write_text("hf_" + "a1" * 15)
    assert len(list(scan(tmp_path, reviewed=True))) == 1


def test_the_recipe_keeps_names_and_no_paths(tiny, tmp_path):
    words = [
        "images.train=[/home/someone/a/train, /home/someone/b/train, 'hub:me/birds:train']",
        "images.holdout=[/mnt/x/holdout]", "images.labels=/mnt/x/labels.csv",
        "images.holdout_labels=/mnt/x/held.csv", "backbone.weights=/mnt/w/r.safetensors",
    ]  # fmt: skip
    recipe = load_recipe(tiny, words)
    images = portable(recipe).images
    assert images.train == ("a/train", "b/train", "hub:me/birds:train") and images.holdout == ("holdout",)
    assert (images.labels, images.holdout_labels) == ("labels.csv", "held.csv")
    assert portable(recipe).backbone.weights == "r.safetensors"
    assert portable(recipe).identity() == recipe.identity()
    for name, shown in (("/home/me/runs/x/fold-1", "local-dir:fold-1"), ("local-dir:~/x", "local-dir:x")):
        assert portable(load_recipe(tiny, [f"backbone.name={name}"])).backbone.name == shown
    assert portable(load_recipe(tiny, ["backbone.name=hf-hub:me/x"])).backbone.name == "hf-hub:me/x"
    student = ["folds.count=1", "images.validation=[/mnt/x/val]", "loss.teacher=/home/someone/runs/all"]
    assert portable(load_recipe(tiny, student)).loss.teacher == "all"


def test_the_fold_file_keeps_contents_and_no_names(run):
    folds = read_folds(run)
    unnamed = anonymous(folds)
    assert unnamed.hashes == folds.hashes and np.array_equal(unnamed.partitions, folds.partitions)
    assert len(set(unnamed.ids.to_pylist()) - set(folds.ids.to_pylist())) == len(folds.ids)


def test_the_card_has_every_number_with_n_and_interval(built, run):
    card = ModelCard.load(built / "export/main/README.md")
    data, results = card.data.to_dict(), [json.loads((run / f"fold-{k}/result.json").read_text()) for k in range(3)]
    assert (data["library_name"], data["pipeline_tag"]) == ("timm", "image-classification")
    assert data["license"] == TERMS.license
    assert "base_model" not in data  # from scratch
    output = {result.metric_name: result.metric_value for result in card.data.eval_results}  # type: ignore[attr-defined]
    right = sum(result["correct"] for result in results)
    (pooled,) = [name for name in output if "out of fold" in name]
    assert output[pooled] == round(right / 72, 4) and "(n = 72)" in pooled and "[" in pooled
    (alone,) = [name for name in output if name.startswith("fold-0 alone, held out")]
    assert output[alone] == round(results[0]["accuracy"], 4) and "(n = 24)" in alone
    scored = json.loads((built / "ensemble/result.json").read_text())["ensemble"]
    (test,) = [name for name in output if name.startswith("ensemble of 3, test")]
    assert output[test] == round(next(iter(scored.values()))["unseen"]["accuracy"], 4) and "(n = 24)" in test


def test_the_card_shows_classes_figures_and_terms_and_no_markup_of_names(built):
    text = (built / "export/main/README.md").read_text()
    assert "Drawn by a \\*program\\* for tests \\<b\\>" in text and "<b>" not in text
    assert all(f"| {name} |" in text for name in read_folds(built).class_names)
    pictures = [line.rpartition("(")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) >= 6 and all((built / "export/main" / name).stat().st_size > 1000 for name in pictures)
    assert 'timm.create_model("hf-hub:me/drawn", pretrained=True)' in text and 'model="me/drawn"' in text
    assert "--members" in text and "model.onnx" not in text and "selected" not in text


def test_a_selected_epoch_is_marked_on_the_card(tiny, tmp_path):
    words = ["--set", "checkpoint.select=best", "--set", "folds.train=[0]"]
    train.main(["--recipe", str(tiny), "--out", str(tmp_path / "run"), *words])
    (read,) = read_runs([str(tmp_path / "run")], None)
    assert [(score.who, score.selected) for score in measured(read)] == [
        ("fold-0 alone", True), ("fold-0 alone, last epoch", False)
    ]  # fmt: skip
    assert list(publish.build(tmp_path / "run", "me/one", TERMS)) == ["main"]
    text = (tmp_path / "run/export/main/README.md").read_text()
    assert " selected" in text and "the epoch was chosen on these images" in text


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (["backbone.name=resnet50.a1_in1k", "backbone.pretrained=true"], "timm/resnet50.a1_in1k"),
        (["backbone.name=resnet50.a1_in1k", "backbone.weights=r.safetensors"], "timm/resnet50.a1_in1k"),
        (["backbone.name=tf_efficientnet_lite0", "backbone.pretrained=true"], "timm/tf_efficientnet_lite0.in1k"),
        (["backbone.name=resnet50.a1_in1k"], None),
    ],
)
def test_the_base_model_is_what_training_began_with(tiny, settings, name):
    assert base_model(load_recipe(tiny, settings).backbone) == name


def test_an_exported_folder_predicts_and_names_its_members(built):
    actual = find_model(str(built / "export/main"), all_members=True)
    assert [folder.name for folder in actual.folders] == ["fold-0", "fold-1", "fold-2"]
    assert find_model(str(built / "export/main"), all_members=False).folders == [built / "export/main"]


def test_a_run_without_a_finished_fold_is_not_published(tiny, tmp_path):
    train.main(["--recipe", str(tiny), "--out", str(tmp_path / "run"), "--set", "folds.train=[0]"])
    (tmp_path / "run/fold-0/result.json").unlink()
    with pytest.raises(UserError, match="no finished fold here; fold-0 stopped after epoch 2"):
        publish.build(tmp_path / "run", "me/model", Terms("mit", "drawn"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "me/x"], "--license and --data: needed for the model card, and never guessed"),
        (["{run}", "me/x", "--license", "mit"], "^--data: needed"),
        (["{run}", "me/x", "--license", "My License", "--data", "x"], "--license: must be a name such as apache-2.0"),
        (["{run}", "me/x", "--license", "mit", "--data", "  "], "--data: say in a sentence"),
        (["{run}/fold-0/kept", "me/x"], "is no run; give a folder that train.py made"),
    ],
)
def test_what_only_a_person_can_say_is_never_guessed(run, tmp_path, words, message):
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(UserError, match=message):
        publish.main([word.format(run=tmp_path / "run") for word in words] + ["--dry-run"])


def test_damaged_terms_are_refused(tmp_path):
    (tmp_path / "sharing.json").write_text('{"license": "mit"}')
    with pytest.raises(
        BrokenError, match=r"sharing.json: data: Field required; delete it, and name --license and --data"
    ):
        find_terms(tmp_path, "mit", "drawn")


def test_answers_are_asked_for_on_a_terminal_and_kept(built, monkeypatch):
    (built / "sharing.json").unlink()
    answers = iter(["mit", "my own photos"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("rich.prompt.Prompt.ask", lambda *_, **__: next(answers))
    assert publish.main([str(built), "me/drawn", "--dry-run"]) == 0
    assert find_terms(built, None, None) == Terms("mit", "my own photos")
    assert "Weights: mit. Images: my own photos" in (built / "export/main/README.md").read_text()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda output: output.update(strategy="mean"),
        lambda output: output["members"][0].update(name="../../secret"),
        lambda output: output["members"][0].update(weight=float("nan")),
        lambda output: [member.update(weight=0) for member in output["members"]],
        lambda output: output.pop("members"),
    ],
)
def test_an_ensemble_that_is_no_ensemble_is_refused(main, spoil):
    output = json.loads((main / "ensemble.json").read_text())
    spoil(output)
    (main / "ensemble.json").write_text(json.dumps(output))
    with pytest.raises(UserError, match=r"--members: .* does not say what its ensemble is"):
        find_model(str(main), all_members=True)


def test_a_holdout_of_the_hub_gets_an_eval_result(tiny, drawn, tmp_path):
    holdout = tmp_path / "held"
    for name, label in (line.split(",") for line in (drawn / "test_labels.csv").read_text().split()[1:]):
        (holdout / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(drawn / f"test/{name}.jpg", holdout / label / f"{name}.jpg")
    words = ["--set", f"images.holdout=[{holdout}]", "--set", "folds.train=[0]", "--set", "schedule.epochs=1"]
    train.main(["--recipe", str(tiny), "--out", str(tmp_path / "run"), *words])
    ensemble.main([str(tmp_path / "run")])
    saved = tmp_path / "run/recipe.yaml"
    saved.write_text(saved.read_text().replace(str(holdout), "hub:me/birds:test"))
    branches = publish.build(tmp_path / "run", "me/one", TERMS)
    (entry,) = YAML(typ="safe").load((branches["main"] / ".eval_results/holdout.yaml").read_text())
    scored = json.loads((tmp_path / "run/ensemble/result.json").read_text())["ensemble"]["images.holdout"]["unseen"]
    assert entry["dataset"] == {"id": "me/birds", "task_id": "test"}
    assert entry["value"] == round(scored["accuracy"], 4) and "(n = 24)" in entry["notes"]
    assert ModelCard.load(branches["main"] / "README.md").data.datasets == ["me/birds"]  # type: ignore[attr-defined]


def test_no_score_is_published_of_another_blend_than_what_is(built, tmp_path, drawn, capsys):
    run_copy = tmp_path / "run_copy"
    shutil.copytree(built, run_copy)
    assert as_published(*read_runs([str(run_copy)], None)).recorded.keys() == {"images"}
    words = ["--images", str(drawn / "test"), "--labels", str(drawn / "test_labels.csv"), "--strategy", "softmax"]
    ensemble.main([str(run_copy), *words])
    assert as_published(*read_runs([str(run_copy)], None)).recorded.keys() == {"images"}
    ensemble.main([str(run_copy)])  # by logits, from now on
    capsys.readouterr()
    assert not as_published(*read_runs([str(run_copy)], None)).recorded
    assert "its score is left out, for it was blended in another way (softmax)" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_run_that_may_not_be_written_to_is_published_from_elsewhere(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export", "sharing.json"))
    terms = ["--license", "mit", "--data", "drawn"]
    done = read_only(copy, "publish", str(copy), "me/tiny", "--dry-run", *terms)
    assert done.returncode == 0, done.stderr
    assert f"{copy}: Permission denied; --license and --data are not kept there" in done.stderr
    (page,) = tmp_path.glob("creature-*/export/main/README.md")
    assert str(page) in done.stdout.replace("\n", "") and not (copy / "export").exists()
