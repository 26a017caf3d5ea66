"""Prediction files, with members that tell colours apart and were never trained."""

import argparse
import os
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from creature.console import BROKEN_IMAGES
from creature.data.eval_transform import EvalTransform
from creature.data.normalize import Normalize
from creature.errors import UserError
from creature.inference import options
from creature.inference.inputs import InputPath, list_inputs, read_inputs
from creature.inference.members import Member, predictor
from creature.inference.prediction import Prediction, to_predictions
from creature.inference.prediction_files import (
    order_for_submission,
    warn_of_broken,
    write_full,
    write_predictions,
    write_submission,
    write_zip,
)
from creature.inference.predictor import predict_batches
from creature.metrics.blend import Blending
from helpers.runs import read_csv

NAMES = ("red", "green", "blue")
COLUMNS = ("image_name", "pred_label")
any_bytes = pytest.mark.skipif(sys.platform != "linux", reason="file names must be UTF-8 here")


def paint(path: Path, color: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path, "PNG")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """b.png, a.jpg and sub/c.d.png; all but the name of a.jpg is PNG."""
    paint(tmp_path / "in" / "b.png", "blue")
    paint(tmp_path / "in" / "a.jpg", "red")
    paint(tmp_path / "in" / "sub" / "c.d.png", "lime")
    return tmp_path / "in"


def member(strength: float = 10.0) -> Member:
    """Says which colour is the strongest."""
    linear = nn.Linear(3, 3, bias=False)
    linear.weight.data = strength * torch.eye(3)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).eval()
    normalize = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Member(
        Path("fold-0"), NAMES, model, normalize=normalize, transform=EvalTransform(8, "squash", (0.0, 0.0, 0.0))
    )


def parsed(*argv: str) -> tuple[argparse.Namespace, options.OutputOptions]:
    parser = argparse.ArgumentParser()
    options.add_options(parser, "full")
    args = parser.parse_args(argv)
    return args, options.check_options(args)


def answers(
    members: list[Member], inputs: list[InputPath], top: int, batch_size: int, weights: np.ndarray | None = None
) -> Iterator[Prediction]:
    all_of_them = predictor(members, None if weights is None else Blending(weights))
    return to_predictions(predict_batches(all_of_them, read_inputs(inputs), batch_size), all_of_them, top)


def predicted(paths: list[str], *argv: str) -> int:
    args, output = parsed(*argv)
    inputs, columns = list_inputs(paths), ("", "")
    if output.submission:
        inputs, columns = order_for_submission(inputs, output.template)
    one, top = replace(predictor([member()]), fallback="green"), min(args.top, 3)
    rows = answers([member()], inputs, args.top, args.batch_size)
    return write_predictions(output, columns, rows, predictor=one, top=top)


def ids(inputs: list[InputPath]) -> list[str]:
    return [item.id for item in inputs]


# What is predicted


def test_one_folder_names_its_pictures_by_their_path_below_it(folder):
    inputs = list_inputs([str(folder)])
    assert ids(inputs) == ["a.jpg", "b.png", "sub/c.d.png"]
    assert [Path(item.path) for item in inputs] == [folder / name for name in ids(inputs)]


def test_files_are_named_as_typed_whatever_their_ending(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "photo").write_bytes(b"")
    assert ids(list_inputs(["./b.png", "photo", "sub//c.d.png"])) == ["b.png", "photo", "sub/c.d.png"]
    assert ids(list_inputs([str(folder / "b.png")])) == [str(folder / "b.png")]


def test_files_and_folders_mix_in_any_order(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    paint(folder.parent / "more" / "a.jpg", "red")
    paths = ["in/b.png", "more", "in/sub"]
    assert ids(list_inputs(paths)) == ["in/b.png", "in/sub/c.d.png", "more/a.jpg"]
    assert list_inputs(paths[::-1]) == list_inputs(paths)
    here = str(folder.parent)
    assert ids(list_inputs([f"{here}/more", "in/b.png"])) == [f"{here}/more/a.jpg", "in/b.png"]


def test_a_file_without_a_picture_ending_is_left_out_of_a_folder_and_said(folder, capsys):
    (folder / "notes.txt").write_text("")
    assert len(list_inputs([str(folder)])) == 3
    assert "1 .txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "paths",
    [
        ("in/b.png", "in/b.png"),
        ("in/b.png", "./in/../in/b.png"),
        ("in", "in/"),
        ("in", "in/b.png"),
        ("in", "in/sub"),
        ("in", "{here}/in/b.png"),
        ("{here}/in", "in/b.png"),
        ("{here}/in", "{here}/in/b.png"),
        ("{here}/in/b.png", "in/b.png"),
    ],
)
def test_a_picture_that_is_given_twice_is_refused(folder, monkeypatch, paths):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UserError, match=r"is given twice"):
        list_inputs([path.format(here=folder.parent) for path in paths])


@pytest.mark.parametrize("path", ["nothing", "in/nothing.png", ""])
def test_a_path_that_is_not_there_is_refused(folder, monkeypatch, path):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UserError, match="no such file or folder"):
        list_inputs(["in", path])


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match="no images in"):
        list_inputs([str(tmp_path)])


# Submissions


def test_a_submission_has_one_row_for_each_picture_without_endings_sorted(folder, tmp_path):
    assert predicted([str(folder)], "--out", str(tmp_path / "p.csv"), "--format", "submission") == 0
    assert (tmp_path / "p.csv").read_bytes() == b"image_name,pred_label\na,red\nb,blue\nc.d,green\n"


def test_names_are_sorted_as_a_submission_has_them():
    inputs = [InputPath("a.b.png", "1"), InputPath("a.png", "2"), InputPath("a-b.png", "3"), InputPath("z/A.png", "4")]
    ordered, columns = order_for_submission(inputs, None)
    assert ids(ordered) == ["A", "a", "a-b", "a.b"] and columns == COLUMNS
    assert [item.path for item in ordered] == ["4", "2", "3", "1"]


@pytest.mark.parametrize(("one", "other"), [("a.jpg", "a.png"), ("x/a.png", "y/a.png"), ("a", "x/a.b")])
def test_two_pictures_of_one_name_are_refused(one, other):
    with pytest.raises(UserError, match="would both be a in a submission"):
        order_for_submission([InputPath(one, "1"), InputPath(other, "2")], None)


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_template_gives_columns_and_order(folder, tmp_path, start):
    template = tmp_path / "template.csv"
    template.write_text(f"{start}file,animal\nsub/c.d.png,?\n\nb.png,?\na,?\n", encoding="utf-8")
    assert predicted([str(folder)], "--out", str(tmp_path / "p.csv"), "--template", str(template)) == 0
    assert read_csv(tmp_path / "p.csv") == [
        ["file", "animal"],
        ["sub/c.d.png", "green"],
        ["b.png", "blue"],
        ["a", "red"],
    ]


def order_by(text: str, folder: Path) -> list[InputPath]:
    template = folder.parent / "template.csv"
    template.write_text(text, encoding="utf-8")
    return order_for_submission(list_inputs([str(folder)]), str(template))[0]


def test_a_template_may_name_a_picture_without_its_folder(folder):
    ordered = order_by("image,label\nc.d.png,\nb,\na,\n", folder)
    assert ordered[0] == InputPath("c.d.png", str(folder / "sub" / "c.d.png"))


def test_a_template_that_names_a_missing_picture_is_refused(folder):
    with pytest.raises(UserError, match=r"names nobody\.png, which is not among the images \(2 such\)"):
        order_by("a,b\na,\nnobody.png,\nnone.png,\n", folder)


def test_pictures_that_a_template_lacks_are_said(folder, capsys):
    ordered = order_by("a,b\nb,\n", folder)
    assert ids(ordered) == ["b"]
    assert "2 images are not in" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "image\na\n", "image,label,more\na,,\n", 'image,label\n\x00"\n'])
def test_a_template_without_two_columns_is_refused(folder, text):
    with pytest.raises(UserError, match="--template"):
        order_by(text, folder)


def test_a_template_that_is_not_there_or_no_text_is_refused(folder, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x80")
    for path in ("nothing.csv", "binary", "in"):
        with pytest.raises(UserError, match=r"--template: .* cannot be read"):
            order_for_submission(list_inputs([str(folder)]), str(tmp_path / path))


def test_a_zip_holds_exactly_the_submission_as_prediction_csv(folder, tmp_path):
    out = tmp_path / "mine.csv"
    assert predicted([str(folder)], "--out", str(out), "--format", "submission", "--zip") == 0
    with zipfile.ZipFile(tmp_path / "mine.zip") as packed:
        assert packed.namelist() == ["prediction.csv"]
        assert packed.read("prediction.csv") == out.read_bytes()


def test_a_zip_that_cannot_be_written_is_a_user_error_and_leaves_nothing(tmp_path):
    (tmp_path / "mine.csv").write_text("image_name,pred_label\n")
    (tmp_path / "mine.zip").mkdir()
    with pytest.raises(UserError, match="--out"):
        write_zip(tmp_path / "mine.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.csv", "mine.zip"]


# Full tables


@pytest.mark.parametrize(("top", "more"), [(1, []), (2, ["label_2", "probability_2"])])
def test_a_full_table_has_the_top_labels_with_their_probabilities(folder, tmp_path, top, more):
    assert predicted([str(folder)], "--out", str(tmp_path / "p.csv"), "--top", str(top)) == 0
    header, *rows = read_csv(tmp_path / "p.csv")
    assert header == ["id", "status", "label", "probability", *more, "calibrated"]
    assert [row[:3] for row in rows] == [
        ["a.jpg", "ok", "red"],
        ["b.png", "ok", "blue"],
        ["sub/c.d.png", "ok", "green"],
    ]
    expected = [np.exp(10) / (np.exp(10) + 2), 1 / (np.exp(10) + 2)]
    for row in rows:
        assert [float(p) for p in row[3::2]] == pytest.approx(expected[:top], abs=1e-6)


def test_more_labels_than_classes_are_all_classes(folder):
    rows = list(answers([member()], list_inputs([str(folder)]), 9, 2))
    assert {len(row.labels) for row in rows} == {3} == {len(row.probabilities) for row in rows}
    assert all(row.probabilities == tuple(sorted(row.probabilities, reverse=True)) for row in rows)


def test_every_row_of_a_full_table_has_every_column(tmp_path):
    rows = [Prediction("a", "ok", ("red",), probabilities=(1.0,)), Prediction("b", "empty file", (), probabilities=())]
    write_full(tmp_path / "p.csv", rows, 3)
    assert {len(row) for row in read_csv(tmp_path / "p.csv")} == {9}


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_members_are_blended_and_answers_keep_their_order(folder, batch_size):
    members, weights = [member(10.0), member(-1.0)], np.array([1.0, 9.0])
    rows = list(answers(members, list_inputs([str(folder)]), 1, batch_size, weights))
    assert [(row.id, row.labels) for row in rows] == [
        ("a.jpg", ("red",)),
        ("b.png", ("blue",)),
        ("sub/c.d.png", ("green",)),
    ]
    expected = np.exp(0.1) / (np.exp(0.1) + 2)
    assert [row.probabilities[0] for row in rows] == pytest.approx([expected] * 3)


# Images that cannot be read


def break_one(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"no image")


def test_a_broken_picture_has_the_fallback_class_in_a_submission(folder, tmp_path, capsys):
    break_one(folder)
    assert predicted([str(folder)], "--out", str(tmp_path / "p.csv"), "--format", "submission") == BROKEN_IMAGES == 3
    assert read_csv(tmp_path / "p.csv")[1:] == [["a", "red"], ["b", "green"], ["c.d", "green"]]
    warning = capsys.readouterr().err
    assert "b: not an image" in warning and "most frequent class, green" in warning


def test_a_broken_picture_has_its_status_in_a_full_table(folder, tmp_path, capsys):
    break_one(folder)
    assert predicted([str(folder)], "--out", str(tmp_path / "p.csv"), "--top", "2") == BROKEN_IMAGES
    rows = read_csv(tmp_path / "p.csv")
    assert rows[2][0] == "b.png" and rows[2][1].startswith("not an image") and rows[2][2:] == [""] * 5
    assert [row[1] for row in rows[1::2]] == ["ok", "ok"]
    assert "b.png: not an image" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gone.png", pytest.param(os.fsdecode(b"\xff.png"), marks=any_bytes)])
def test_a_file_that_cannot_be_opened_is_a_broken_picture(folder, tmp_path, name):
    os.symlink(tmp_path / "nowhere", folder / name)
    assert predicted([str(folder)], "--out", str(tmp_path / "p.csv")) == BROKEN_IMAGES
    assert [row[1] for row in read_csv(tmp_path / "p.csv")[1:]].count("No such file or directory") == 1


@any_bytes
def test_a_name_that_is_no_utf_8_is_predicted_and_written_percent_encoded(folder, tmp_path):
    paint(folder / os.fsdecode(b"caf\xe9.png"), "blue")
    assert predicted([str(folder)], "--out", str(tmp_path / "p.csv")) == 0
    assert ["caf%E9.png", "ok", "blue"] in [row[:3] for row in read_csv(tmp_path / "p.csv")]


def test_many_broken_pictures_are_counted_and_twenty_are_named(capsys):
    warn_of_broken([Prediction(f"{i}.png", "empty file", (), probabilities=()) for i in range(23)], "")
    warning = capsys.readouterr().err
    assert "23 images could not be read" in warning and warning.count("empty file") == 20 and "and 3 more" in warning


def test_a_hostile_name_stays_one_line_and_steers_no_terminal(folder, tmp_path, capsys):
    inside = folder / "x\n\x1b[2J\x85\u202e["
    inside.mkdir()
    (inside / "a][red].png").write_bytes(b"")
    out = tmp_path / "p.csv"
    assert predicted([str(folder)], "--out", str(out)) == BROKEN_IMAGES
    assert len(out.read_text().splitlines()) == 1 + 4
    shown = capsys.readouterr().err
    assert not {"\x1b", "\x85", "\u202e"} & set(shown) and "[/a][red]" in shown
    (line,) = [line for line in shown.splitlines() if "[/a]" in line]
    assert line.strip().startswith("x") and line.endswith("empty file")


# Files


def test_nothing_stands_under_the_name_until_it_is_whole_and_rows_are_written_as_they_come(tmp_path):
    out, sizes = tmp_path / "p.csv", []

    def rows() -> Iterator[Prediction]:
        for i in range(5000):
            assert not out.exists()
            sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
            yield Prediction(f"{i:06d}", "ok", ("red",), probabilities=(1.0,))

    for write in (lambda: write_submission(out, COLUMNS, rows(), fallback=""), lambda: write_full(out, rows(), 1)):
        write()
        assert len(read_csv(out)) == 5001 and sizes[-1] > 0 and list(tmp_path.iterdir()) == [out]
        out.unlink()
        sizes.clear()


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt, RuntimeError])
def test_a_failure_midway_leaves_what_was_there(tmp_path, error):
    out = tmp_path / "p.csv"
    out.write_text("before")

    def rows() -> Iterator[Prediction]:
        yield Prediction("a", "ok", ("red",), probabilities=(1.0,))
        raise error("midway")

    for write in (lambda: write_submission(out, COLUMNS, rows(), fallback=""), lambda: write_full(out, rows(), 1)):
        with pytest.raises(error):
            write()
        assert out.read_text() == "before" and list(tmp_path.iterdir()) == [out]


def test_folders_of_the_file_are_made(tmp_path):
    write_submission(tmp_path / "x" / "y" / "p.csv", COLUMNS, [], fallback="")
    assert read_csv(tmp_path / "x" / "y" / "p.csv") == [list(COLUMNS)]


@pytest.mark.parametrize("out", ["file/p.csv", "folder", "x" * 300 + ".csv", "pipe", "."])
def test_a_file_that_cannot_be_written_is_a_user_error_before_any_picture_is_read(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder").mkdir()
    os.mkfifo("pipe")

    def rows() -> Iterator[Prediction]:
        raise AssertionError("a row was asked for")
        yield

    before = sorted(Path().iterdir())
    for write in (
        lambda: write_submission(Path(out), COLUMNS, rows(), fallback=""),
        lambda: write_full(Path(out), rows(), 1),
    ):
        with pytest.raises(UserError, match="--out"):
            write()
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    "argv",
    [
        ["--zip"],
        ["--template", "t.csv"],
        ["--out", "p.csv", "--zip"],
        ["--out", "p.zip", "--format", "submission", "--zip"],
        ["--out", "p.ZIP", "--format", "submission", "--zip"],
        ["--top", "0"],
        ["--batch-size", "0"],
    ],
)
def test_options_that_do_not_go_together_are_refused(argv):
    with pytest.raises(UserError, match=r"--(zip|template|top)"):
        parsed(*argv)


def test_a_template_makes_a_submission():
    _, output = parsed("--out", "p.csv", "--template", "t.csv", "--zip")
    assert output.submission
