"""The Python API to predict with, used as a stranger would: images of any kind, in any number, from any thread."""

import io
import itertools
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from pyarrow import parquet

import ensemble
import predict
from creature.errors import UserError
from creature.inference.classifier import Classifier, load
from creature.inference.prediction import Prediction
from creature.publishing import onnx_export
from helpers import ROOT
from helpers.runs import read_csv


@pytest.fixture(scope="module")
def model(run: Path) -> Classifier:
    return load(run / "fold-0", device="cpu")


@pytest.fixture(scope="module")
def everyone(run: Path) -> Classifier:
    return load(str(run), device="cpu", members=True)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed; pip install -e '.[export]'")
    out = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert onnx_export.main([str(run / "fold-0"), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def paths(drawn: Path) -> list[Path]:
    return sorted((drawn / "test").iterdir())


def answers(predictions: Iterable[Prediction]) -> list[tuple]:
    return [(row.status, row.labels, row.probabilities) for row in predictions]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    image.save(out := io.BytesIO(), kind, **options)
    return out.getvalue()


# What images may be


def test_paths_are_predicted_as_by_predict_py(model, run, drawn, paths, tmp_path):
    out = tmp_path / "p.csv"
    assert predict.main([str(run / "fold-0"), str(drawn / "test"), "--top", "2", "--out", str(out)]) == 0
    predictions = list(model.predict(paths, top=2))
    assert [prediction.id for prediction in predictions] == [path.as_posix() for path in paths]
    for prediction, row in zip(predictions, read_csv(out)[1:], strict=True):
        cells = [cell for label, p in prediction.top(2) for cell in (label, f"{p:.6f}")]
        assert [Path(prediction.id).name, prediction.status, *cells, json.dumps(prediction.calibrated)] == row
        assert (prediction.label, prediction.probability) == prediction.top(1)[0] and not prediction.broken


def test_a_path_a_folder_bytes_and_pil_images_of_one_file_give_the_same(model, drawn, paths):
    expected = answers(model.predict([str(path) for path in paths]))
    contents = [path.read_bytes() for path in paths]
    assert answers(model.predict(drawn / "test")) == expected
    assert answers(model.predict(contents)) == expected
    assert answers(model.predict(map(bytearray, contents))) == expected
    assert answers(model.predict([memoryview(content) for content in contents])) == expected
    assert answers(model.predict([Image.open(path) for path in paths])) == expected
    assert answers(model.predict([np.asarray(Image.open(path).convert("RGB")) for path in paths])) == expected
    alone = answers(model.predict(paths[:1]))
    for one in (paths[0], str(paths[0]), contents[0], Image.open(paths[0])):
        assert answers(model.predict(one)) == alone


def test_an_object_with_a_path_is_a_path(model, paths):
    with os.scandir(paths[0].parent) as entries:
        entry = next(entry for entry in entries if entry.name == paths[0].name)
    assert answers(model.predict(entry)) == answers(model.predict([entry])) == answers(model.predict(paths[0]))


@pytest.mark.parametrize(
    "image",
    [
        Image.radial_gradient("L").resize((40, 30)),
        Image.merge("RGBA", [Image.linear_gradient("L").resize((40, 30))] * 4),
        Image.merge("LA", [Image.linear_gradient("L").resize((40, 30))] * 2),
        Image.radial_gradient("L").resize((40, 30)).convert("RGB").quantize(16),
        Image.radial_gradient("L").resize((40, 30)).convert("1"),
    ],
    ids=lambda image: image.mode,
)
def test_an_image_of_any_mode_is_predicted_as_its_file_is(model, tmp_path, image):
    image.save(path := tmp_path / "image.png")
    assert answers(model.predict(image)) == answers(model.predict(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(model, paths, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turned = encoded(Image.open(paths[0]), "PNG", exif=exif)
    opened = Image.open(io.BytesIO(turned))
    upright = ImageOps.exif_transpose(opened)
    assert answers(model.predict(opened)) == answers(model.predict(turned)) == answers(model.predict([upright]))


def test_a_palette_with_transparency_is_predicted_where_warnings_are_errors(model, paths):
    palette = Image.open(paths[0]).quantize(16)
    content = encoded(palette, "PNG", transparency=bytes([0, 128] * 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answers(model.predict(Image.open(io.BytesIO(content)))) == answers(model.predict(content))


def test_arrays_are_images_or_stacks_of_them_and_others_have_a_status(model, paths):
    grey = np.asarray(Image.open(paths[0]).convert("L"))
    assert answers(model.predict(grey)) == answers(model.predict(np.stack([grey] * 3, axis=2)))
    assert answers(model.predict(grey[::-1])) == answers(model.predict(grey[::-1].copy()))
    assert answers(model.predict(np.stack([np.stack([grey] * 3, axis=2)] * 2))) == answers(model.predict([grey, grey]))
    odd = [grey / 255.0, grey.astype(int), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((0, 8, 3), np.uint8)]
    for prediction in model.predict(odd):
        assert prediction.broken and prediction.status.startswith("an array"), prediction


def test_mixed_images_keep_their_order_and_have_ids(model, drawn, paths):
    fish = sorted((drawn / "train/fish").iterdir())
    given = [paths[0], Image.open(paths[1]), drawn / "train/fish", paths[2].read_bytes(), str(paths[3])]
    rows = list(model.predict(given, batch_size=1))
    ids = [str(paths[0]), "image-1", *map(str, fish), f"image-{2 + len(fish)}", str(paths[3])]
    assert [row.id for row in rows] == ids
    assert answers(rows) == answers(model.predict([*paths[:2], *fish, *paths[2:4]], batch_size=1))


def test_what_cannot_be_read_is_a_prediction_with_the_reason_and_changes_no_other(model, paths, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (cut := tmp_path / "cut.png").write_bytes(encoded(Image.open(paths[0]), "PNG")[:-300])
    closed = Image.open(paths[0])
    closed.close()
    broken = {
        tmp_path / "text.jpg": "not an image",
        tmp_path / "nothing.jpg": "No such file",
        "nul\0.jpg": "null",
        b"": "empty file",
        b"GIF89a": "corrupt image|not an image",
        cut.read_bytes(): "truncated",
    }
    unhashable = [
        (Image.open(io.BytesIO(cut.read_bytes())), "corrupt image|truncated"),
        (closed, "corrupt"),
        (None, "got NoneType"),
        (7, "got int"),
    ]
    cases = [*broken.items(), *unhashable]
    given = [image for case, _ in cases for image in (paths[0], case)]
    rows = list(model.predict(given, batch_size=2))
    assert answers(rows[::2]) == answers(model.predict([paths[0], b""]))[:1] * len(cases)
    for row, (_, reason) in zip(rows[1::2], cases, strict=True):
        assert row.broken and any(word in row.status for word in reason.split("|")), row
        assert (row.label, row.probability, row.labels, row.top(3)) == (None, None, (), [])


# How they come


def test_a_generator_is_asked_for_what_is_needed_and_no_more(model, paths):
    taken: list[Path] = []

    def endless() -> Iterator[Path]:
        for path in itertools.cycle(paths):
            taken.append(path)
            yield path

    predictions = model.predict(endless(), batch_size=4)
    assert not taken
    first = list(itertools.islice(predictions, 4))
    assert len(taken) <= 8  # a batch is decoded while the one before it is computed
    more = list(itertools.islice(predictions, 60))
    assert len(taken) <= 72 and [row.id for row in first + more] == [str(path) for path in taken[:64]]
    predictions.close()
    before = threading.active_count()
    list(model.predict(paths))
    assert threading.active_count() == before


def test_an_error_of_the_program_s_generator_reaches_the_program(model, paths):
    def failing() -> Iterator[Path]:
        yield from paths[:5]
        raise OSError("the camera is gone")

    predictions = model.predict(failing(), batch_size=2)
    with pytest.raises(OSError, match="the camera is gone"):
        list(predictions)


def test_no_images_are_no_predictions(model):
    assert list(model.predict([])) == []
    assert model.logits([]).shape == (1, 0, 12) and model.features([]).shape[0] == 0


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_batch_size_changes_no_label_and_no_probability_to_speak_of(model, paths, batch_size):
    expected, rows = list(model.predict(paths)), list(model.predict(paths, batch_size=batch_size))
    assert [row.labels for row in rows] == [row.labels for row in expected]
    ours, theirs = [[row.probabilities for row in table] for table in (rows, expected)]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("top", [1, 3, 12, 99])
def test_top_says_how_many_labels_there_are_the_most_probable_first(model, paths, top):
    for row in model.predict(paths[:3], top=top):
        assert len(row.labels) == len(row.probabilities) == min(top, 12) and row.label == row.labels[0]
        assert list(row.probabilities) == sorted(row.probabilities, reverse=True)
        assert top < 12 or (sum(row.probabilities) == pytest.approx(1) and set(row.labels) == set(model.class_names))


@pytest.mark.parametrize("wrong", [{"top": 0}, {"batch_size": 0}, {"batch_size": -1}])
def test_a_number_that_makes_no_sense_is_refused_at_the_call(model, paths, wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} must be 1 or more, got {next(iter(wrong.values()))}"):
        model.predict(paths, **wrong)


# What is computed


def test_logits_are_those_of_the_probabilities_and_nan_where_an_image_is_broken(model, everyone, paths):
    for classifier, members in ((model, 1), (everyone, 3)):
        logits = classifier.logits([*paths[:2], b"broken", paths[2]], batch_size=3)
        assert logits.shape == (members, 4, 12) and logits.dtype == np.float32
        assert np.isnan(logits[:, 2]).all() and np.isfinite(logits[:, [0, 1, 3]]).all()
        powers = np.exp(logits[:, [0, 1, 3]].astype(np.float64).mean(0))
        for row, p in zip(classifier.predict(paths[:3]), powers / powers.sum(1, keepdims=True), strict=True):
            assert row.label == classifier.class_names[p.argmax()] and row.probability == pytest.approx(p.max())


def test_test_time_augmentation_is_the_mean_with_the_mirror_image(model, run, drawn, paths, tmp_path):
    images = [Image.open(path).convert("RGB") for path in paths]
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    both = model.logits(images, tta=True)
    np.testing.assert_allclose(both, (model.logits(images) + model.logits(mirrored)) / 2, atol=1e-4)
    out = tmp_path / "p.csv"
    assert predict.main([str(run / "fold-0"), str(drawn / "test"), "--mirror", "--out", str(out)]) == 0
    rows = [[row.label, f"{row.probability:.6f}"] for row in model.predict(images, tta=True)]
    assert rows == [row[2:4] for row in read_csv(out)[1:]]


def test_features_are_those_of_embed_and_nan_where_an_image_is_broken(model, run, drawn, paths, tmp_path):
    out = tmp_path / "p.parquet"
    assert predict.main([str(run / "fold-0"), str(drawn / "test"), "--embed", "--out", str(out)]) == 0
    expected = np.array([row["embedding"] for row in parquet.read_table(out).to_pylist()], dtype=np.float32)
    np.testing.assert_array_equal(model.features(paths), expected)
    features = model.features([b"broken", paths[0]])
    assert np.isnan(features[0]).all() and np.isfinite(features[1]).all() and features.shape[1] == expected.shape[1]


def test_an_ensemble_predicts_as_ensemble_py_does_and_has_no_features(everyone, run, drawn, paths, tmp_path):
    out = tmp_path / "p.csv"
    assert ensemble.main([str(run), "--images", str(drawn / "test"), "--format", "full", "--out", str(out)]) == 0
    rows = [[row.label, f"{row.probability:.6f}"] for row in everyone.predict(paths)]
    assert rows == [row[2:4] for row in read_csv(out)[1:]] and everyone.members == ("fold-0", "fold-1", "fold-2")
    with pytest.raises(UserError, match=r"is an ensemble of 3, without features; load one trained fold"):
        everyone.features(paths)


def test_an_onnx_file_predicts_as_its_fold_does_and_has_no_features(model, exported, paths):
    classifier = load(exported)
    assert classifier.class_names == model.class_names and len(classifier.members) == 1
    given = [paths[0], paths[1].read_bytes(), Image.open(paths[2]), b"broken"]
    rows, expected = list(classifier.predict(given)), list(model.predict(given))
    assert [row.labels for row in rows] == [row.labels for row in expected] and rows[3].broken
    for row, other in zip(rows, expected, strict=True):
        assert row.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    with pytest.raises(UserError, match="is an ONNX file, without features"):
        classifier.features(paths)
    with pytest.raises(UserError, match="is one model, without members"):
        load(exported, members=True)


# From several threads


def test_many_threads_at_once_get_what_one_gets(model, everyone, paths):
    for classifier in (model, everyone):
        expected = answers(classifier.predict(paths, batch_size=4))
        features = model.features(paths)
        with ThreadPoolExecutor(8) as pool:
            tables = [pool.submit(lambda: answers(classifier.predict(paths, batch_size=4))) for _ in range(8)]  # noqa: B023
            others = [pool.submit(model.features, paths) for _ in range(2)]
        assert all(table.result() == expected for table in tables)
        assert all(np.array_equal(other.result(), features) for other in others)


def test_one_image_object_given_many_times_is_read_once_at_a_time(model):
    """Pillow reads a file when its pixels are asked for, which two threads must not do at once."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    large = encoded(Image.effect_noise((1500, 1000), 50), "JPEG", exif=exif)
    expected = answers(model.predict([large] * 16))
    for _ in range(5):
        image = Image.open(io.BytesIO(large))
        assert answers(model.predict([image] * 16, batch_size=16)) == expected


# What is loaded


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", {}, r"has 3 folds; name one, such as .*fold-0, or all of them with --members \(in Python members=True\)"),
        ("nothing", {}, "nothing: no such folder"),
        ("nothing.onnx", {}, r"nothing\.onnx: no such file|needs ONNX Runtime"),
        ("fold-0", {"device": "warp"}, "device: 'warp' cannot be used here"),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence(run, name, options, message):
    with pytest.raises(UserError, match=message):
        load(run / name, **options)


def test_what_a_classifier_is_is_shown(model, everyone):
    assert repr(model).endswith("fold-0: 12 classes>") and "3 members: 12 classes" in repr(everyone)
    assert len(model.class_names) == 12 and model.members == ("fold-0",)


def test_nothing_is_printed_and_no_training_code_is_loaded(run, paths):
    code = (
        "import sys, json, creature\n"
        f"rows = list(creature.load({str(run / 'fold-0')!r}, device='cpu').predict({str(paths[0])!r}))\n"
        "late = [name for name in sys.modules if name.startswith(('creature.training', 'creature.ensembling'))]\n"
        "late += [name for name in ('datasets', 'accelerate') if name in sys.modules]\n"
        "print(json.dumps([rows[0].status, late]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert json.loads(done.stdout) == ["ok", []] and done.stderr == ""
