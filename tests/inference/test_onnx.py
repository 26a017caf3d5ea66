"""ONNX: the same answers without torch, nothing of this machine in the file, int8 only where it pays."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import predict
import train
from creature.data.eval_transform import EvalTransform
from creature.errors import UserError
from creature.inference.onnx import open_session
from creature.publishing import onnx_export as exporting
from creature.publishing import quantize as quantizing
from creature.publishing.verify import PATH
from helpers import ROOT
from helpers.runs import read_csv

onnx = pytest.importorskip("onnx", reason="onnx is not installed; pip install -e '.[export]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; pip install -e '.[export]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed; pip install -e '.[export]'")


@pytest.fixture(scope="module")
def fold(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fold with a temperature, for which the tiny run's hold out too few images."""
    fold = shutil.copytree(run / "fold-0", tmp_path_factory.mktemp("calibrated") / "fold-0")
    result = json.loads((fold / "result.json").read_text())
    (fold / "result.json").write_text(json.dumps({**result, "temperature": 0.5}))
    return fold


@pytest.fixture(scope="module")
def exported(fold: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert exporting.main([str(fold), str(out)]) == 0
    return out


@pytest.mark.parametrize("batch_size", ["1", "7"])
def test_the_file_answers_as_the_fold_does(fold, drawn, exported, tmp_path, batch_size):
    words = [str(drawn / "test"), "--top", "12", "--batch-size", batch_size]
    assert predict.main([str(exported), *words, "--out", str(tmp_path / "onnx.csv")]) == 0
    assert predict.main([str(fold), *words, "--out", str(tmp_path / "torch.csv")]) == 0
    for one, other in zip(read_csv(tmp_path / "onnx.csv")[1:], read_csv(tmp_path / "torch.csv")[1:], strict=True):
        assert one[0] == other[0] and one[-1] == other[-1] == "true"
        mine, theirs = (dict(zip(row[2:-1:2], map(float, row[3:-1:2]), strict=True)) for row in (one, other))
        assert mine.keys() == theirs.keys()
        np.testing.assert_allclose([mine[k] for k in theirs], list(theirs.values()), atol=1e-4)


def test_it_needs_neither_torch_nor_timm(drawn, exported):
    picture = sorted((drawn / "test").iterdir())[0]
    code = (
        "import sys\nfor name in ('torch', 'timm', 'torchvision', 'accelerate', 'datasets'): sys.modules[name] = None\n"
        f"import predict; sys.exit(predict.main([{str(exported)!r}, {str(picture)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and picture.stem in done.stdout.replace("\n", ""), done.stderr


def test_the_file_holds_no_place_of_this_machine(exported):
    model = onnx.load(exported)
    notes = [each.value for item in (model, *model.graph.node) for each in item.metadata_props]
    notes += [node.doc_string for node in model.graph.node]
    assert len(model.metadata_props) == 1 and not [note for note in notes if PATH.search(note)]
    assert not any(str(ROOT) in note or sys.prefix in note for note in notes)


@pytest.mark.parametrize("fit", ["center", "border"])
def test_the_evaluation_view_travels_along(tiny, drawn, tmp_path, fit):
    settings = [f"images.crop_mode={fit}", "images.normalize=imagenet", "folds.train=[0]", "schedule.epochs=1"]
    words = [word for setting in settings for word in ("--set", setting)]
    train.main(["--recipe", str(tiny), "--out", str(tmp_path / "run"), *words])
    exporting.main([str(tmp_path / "run/fold-0"), str(tmp_path / "m.onnx")])
    for name, model in (("a", tmp_path / "m.onnx"), ("b", tmp_path / "run/fold-0")):
        predict.main([str(model), str(drawn / "test"), "--out", str(tmp_path / f"{name}.csv")])
    for one, other in zip(read_csv(tmp_path / "a.csv")[1:], read_csv(tmp_path / "b.csv")[1:], strict=True):
        assert abs(float(one[3]) - float(other[3])) <= 1e-4


def test_a_submission_has_the_most_frequent_class_for_a_broken_picture(run, exported, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/broken.jpg").write_bytes(b"no image")
    words = [str(tmp_path / "in"), "--format", "submission"]
    predict.main([str(exported), *words, "--out", str(tmp_path / "a.csv")])
    predict.main([str(run / "fold-0"), *words, "--out", str(tmp_path / "b.csv")])
    assert read_csv(tmp_path / "a.csv") == read_csv(tmp_path / "b.csv") and read_csv(tmp_path / "a.csv")[1][1]


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign"])
def test_other_files_are_refused_in_one_sentence(exported, drawn, tmp_path, damage):
    path = tmp_path / "m.onnx"
    content = exported.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2]}.get(damage, content))
    if damage == "foreign":
        model = onnx.load(path)
        del model.metadata_props[:]
        onnx.save(model, path)
    with pytest.raises(UserError, match=r"m.onnx: no model of creature export"):
        predict.main([str(path), str(drawn / "test")])
    with pytest.raises(UserError, match="no such file"):
        predict.main([str(tmp_path / "none.onnx"), str(drawn / "test")])
    with pytest.raises(UserError, match="one model without features"):
        predict.main([str(exported), str(drawn / "test"), "--embed", "--out", str(tmp_path / "p.parquet")])


def test_logging_that_the_host_program_has_disabled_stays_disabled():
    logging.disable(logging.ERROR)
    try:
        with quantizing.quiet():
            assert logging.root.manager.disable == logging.ERROR
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)
    with quantizing.quiet():
        assert logging.root.manager.disable == logging.WARNING
    assert logging.root.manager.disable == logging.NOTSET


def test_int8_needs_enough_pictures_to_be_judged(exported, drawn):
    with pytest.raises(UserError, match="has 24 images; 64 calibrate and at least 200 others judge"):
        quantizing.quantize(exported, str(drawn / "test"))


@pytest.mark.parametrize(
    ("ratio", "agreement", "lacks"),
    [(1.31, 0.995, ""), (1.29, 1.0, "it is 1.29 times as fast, and"), (2.0, 0.99, "it gives 99.00% of the images the")],
)
def test_int8_is_written_only_where_it_pays(exported, drawn, tmp_path, monkeypatch, capsys, ratio, agreement, lacks):
    written = not lacks
    monkeypatch.setattr(quantizing, "CALIBRATION", 8)
    monkeypatch.setattr(quantizing, "JUDGED", 16)
    measured = quantizing._judge
    seen = {}

    def judge(*words):
        seen["measured"] = measured(*words)
        return quantizing.Judgement(ratio, agreement)

    monkeypatch.setattr(quantizing, "_judge", judge)
    path = tmp_path / "m.onnx"
    path.write_bytes(exported.read_bytes())
    small = quantizing.quantize(path, str(drawn / "test"))
    assert (small is not None) == written == (tmp_path / "m.int8.onnx").exists()
    assert (f"is not written: {lacks}" in " ".join(capsys.readouterr().out.split())) != written
    assert seen["measured"].speed > 0 and 0 <= seen["measured"].agreement <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.int8.onnx", "m.onnx"][not written :]
    if small:
        assert open_session(str(small)).class_names == open_session(str(path)).class_names
        assert open_session(str(small)).transforms == (EvalTransform(32, "squash", (0.0, 0.0, 0.0)),)
