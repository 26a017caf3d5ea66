"""Hostile files in training and in prediction: a reason or pixels for each, and no other image in its place."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import predict
from creature.console import BROKEN_IMAGES
from creature.data.files import file_id
from creature.data.folds import read_folds
from creature.errors import UserError
from helpers import ROOT
from helpers.fold_files import folds_rows
from helpers.hostile_images import GOOD, JPEG, write_hostile
from helpers.runs import start

FOLDER = "train/fish/hostile"


@pytest.fixture(scope="module")
def wild(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The drawn images with a folder of hostile ones among them, and what must become of each, by its id."""
    folder = tmp_path_factory.mktemp("wild")
    shutil.copytree(drawn / "train", folder / "train")
    expected = write_hostile(folder / FOLDER)
    assert len(expected) >= 40 and len([reason for reason in expected.values() if reason]) >= 30
    return folder, {file_id(f"{FOLDER}/{name}"): reason for name, reason in expected.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_each_bad_file_is_listed_once_with_its_reason_and_the_rest_is_trained_on(wild, tiny, tmp_path, capsys, workers):
    folder, expected = wild
    bad = {name: reason for name, reason in expected.items() if reason}
    settings = ("folds.train=[0]", f"images.train=[{folder / 'train'}]", f"images.workers={workers}")
    assert start(tiny, tmp_path / "run", *settings, f"images.max_bad={len(bad)}") == 0
    saved = read_folds(tmp_path / "run").bad
    assert saved.keys() == bad.keys()
    for name, reason in bad.items():
        assert re.search(reason, saved[name]), (name, saved[name])
    rows = [row[0] for row in folds_rows(tmp_path / "run")]
    assert len(rows) == len(set(rows)) == 72 + len(expected) - len(bad)
    assert {name for name, reason in expected.items() if reason == GOOD} <= set(rows)
    shown = capsys.readouterr().err
    assert f"{len(bad)} of {72 + len(expected)} images cannot be decoded" in shown
    lines = shown.splitlines()
    named = [name for name in bad if sum(line.strip().startswith(f"{name}: ") for line in lines) == 1]
    assert len(named) == 20 and f"and {len(bad) - 20} more" in shown
    assert not any(sign in shown for sign in "\x07\x1b\u202e")


def test_more_bad_files_than_the_limit_stop_the_run(wild, tiny, tmp_path):
    bad = sum(bool(reason) for reason in wild[1].values())
    with pytest.raises(UserError, match=rf"images.max_bad allows 3; remove or mend .* images.max_bad={bad}"):
        start(tiny, tmp_path / "run", f"images.train=[{wild[0] / 'train'}]")
    assert not (tmp_path / "run/fold-0").exists()


def table(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: row[1:] for row in rows}


def test_a_prediction_has_a_row_for_each_and_a_bad_file_changes_no_other(run, wild, tmp_path):
    folder, expected = wild
    shutil.copytree(folder / FOLDER, tmp_path / "hostile", symlinks=True, ignore=lambda *_: ["pipe.jpg"])
    (tmp_path / "hostile/pipe.jpg").symlink_to("nothing")
    member, out = str(run / "fold-0"), tmp_path / "out.csv"
    assert predict.main([member, str(tmp_path / "hostile"), "--out", str(out)]) == BROKEN_IMAGES
    actual = table(out)
    assert list(actual) == sorted(name.removeprefix(f"{FOLDER}/") for name in expected)
    for name, reason in expected.items():
        status, label, *_ = actual[name.removeprefix(f"{FOLDER}/")]
        assert (status == "ok", label != "") == (reason == GOOD, reason == GOOD), (name, status)
    # The same table with images in the place of the bad ones: what was good says the same, to the last digit.
    for path in sorted((tmp_path / "hostile").rglob("*")):
        name = file_id(str(path.relative_to(tmp_path / "hostile")))
        if expected.get(f"{FOLDER}/{name}"):
            path.unlink()
            path.write_bytes(JPEG)
    assert predict.main([member, str(tmp_path / "hostile"), "--out", str(out)]) == 0
    whole = table(out)
    assert list(whole) == list(actual)
    assert all(whole[name] == cells for name, cells in actual.items() if cells[0] == "ok")


DECODE = """
import json, re, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from creature.data.decode import BadImage, decode, read
def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
def grown(paths):
    before = most()
    for path in paths:
        try:
            decode(read({{"path": str(path)}}))
        except BadImage:
            pass
    return most() - before
print(json.dumps([grown(Path(sys.argv[1]).rglob("*")), grown([sys.argv[2]])]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc on this system")
def test_hostile_files_take_little_memory(wild, tmp_path):
    Image.new("RGB", (4000, 4000)).save(tmp_path / "large.png")
    done = subprocess.run(
        [sys.executable, "-c", DECODE.format(root=str(ROOT)), str(wild[0] / FOLDER), str(tmp_path / "large.png")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    hostile, large = json.loads(done.stdout)
    assert hostile <= 300 and large > 60, "the 64 MB of a large image must show, or nothing was measured"
