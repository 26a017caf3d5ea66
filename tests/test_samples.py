"""The drawings: the same from the same seed, dealt evenly, and not to be told apart by colour."""

import csv
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from creature.errors import UserError
from creature.samples import SPECIES, draw, write_drawings


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawings") / "drawn"
    assert write_drawings(folder, train=1200, test=360)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def answers(folder: Path) -> dict[str, str]:
    with (folder / "test_labels.csv").open(encoding="utf-8", newline="") as file:
        return {row["image_name"]: row["label"] for row in csv.DictReader(file)}


def test_the_seed_decides_every_byte(tmp_path):
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        write_drawings(tmp_path / name, train=24, test=12, seed=seed, size=32)
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    assert not set(contents(tmp_path / "first").values()) & set(contents(tmp_path / "other").values())


def test_no_picture_is_drawn_twice(drawn):
    pictures = [path.read_bytes() for path in drawn.rglob("*.jpg")]
    assert len(set(pictures)) == len(pictures) == 1560


def test_a_picture_is_the_same_in_a_larger_set(tmp_path):
    write_drawings(tmp_path / "small", train=12, test=12, size=32)
    write_drawings(tmp_path / "large", train=24, test=24, size=32)
    small, large = contents(tmp_path / "small"), contents(tmp_path / "large")
    assert all(large[name] == small[name] for name in small if name.endswith(".jpg"))


@pytest.mark.parametrize("species", SPECIES)
def test_draw_gives_a_square_rgb_picture(species):
    first, again = (draw(species, np.random.default_rng(1), size=48) for _ in range(2))
    assert (first.mode, first.size) == ("RGB", (48, 48))
    assert np.array_equal(np.asarray(first), np.asarray(again))


def test_train_pictures_are_dealt_evenly(drawn, tmp_path):
    assert {folder.name: len(list(folder.glob("*.jpg"))) for folder in (drawn / "train").iterdir()} == dict.fromkeys(
        SPECIES, 100
    )
    assert (drawn / "train" / "snail" / "00001.jpg").is_file()
    write_drawings(tmp_path / "odd", train=15, test=13, size=16)
    counts = [len(list((tmp_path / "odd" / "train" / name).iterdir())) for name in SPECIES]
    assert sum(counts) == 15 and set(counts) == {1, 2}


def test_test_pictures_are_flat_and_their_names_tell_nothing(drawn):
    names = sorted(path.stem for path in (drawn / "test").iterdir())
    assert all(re.fullmatch("[0-9a-f]{12}", name) for name in names)
    labels = answers(drawn)
    assert list(labels) == names
    assert Counter(labels.values()) == dict.fromkeys(SPECIES, 30)
    # Sorted by name, the species come in no order: neighbours agree about as often as chance has it.
    in_order = np.array(list(labels.values()))
    assert np.mean(in_order[1:] == in_order[:-1]) < 0.15


def test_the_same_set_is_left_alone(tmp_path):
    assert write_drawings(tmp_path, train=12, test=12, size=16)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not write_drawings(tmp_path, train=12, test=12, size=16)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


@pytest.mark.parametrize("change", [{"train": 24}, {"test": 13}, {"seed": 1}, {"size": 17}])
def test_another_set_is_never_overwritten(tmp_path, change):
    settings = {"train": 12, "test": 12, "seed": 0, "size": 16}
    write_drawings(tmp_path, **settings)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"delete it or name another folder") as error:
        write_drawings(tmp_path, **settings | change)
    assert str(tmp_path) in str(error.value)
    assert contents(tmp_path) == before


def test_an_unfinished_set_is_refused(tmp_path):
    write_drawings(tmp_path, train=12, test=12, size=16)
    next((tmp_path / "test").iterdir()).unlink()
    with pytest.raises(UserError, match="unfinished"):
        write_drawings(tmp_path, train=12, test=12, size=16)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        write_drawings(tmp_path, train=12, test=12, size=16)
    with pytest.raises(UserError, match="something else"):
        write_drawings(tmp_path / "notes.txt", train=12, test=12, size=16)


@pytest.mark.parametrize("wrong", [{"train": 11}, {"test": 0}, {"seed": -1}, {"size": 8}])
def test_impossible_numbers_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(UserError, match="must be"):
        write_drawings(tmp_path / "drawn", **{"train": 12, "test": 12} | wrong)
    assert not (tmp_path / "drawn").exists()


def test_the_command_says_where_the_pictures_are_and_what_comes_next(tmp_path):
    command = [
        sys.executable,
        "-m",
        "creature",
        "draw",
        str(tmp_path / "drawn"),
        "--train",
        "12",
        "--test",
        "12",
    ]
    first, again = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert "images drawn" in first and "images there already" in again
    assert first.splitlines()[-1] == again.splitlines()[-1]
    assert str(tmp_path / "drawn") in first.splitlines()[-1]
    assert "creature train --recipe quickstart" in first.splitlines()[-1]


def thumbnail_and_histograms(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        pixels, thumbnail = np.asarray(image), np.asarray(image.resize((8, 8), Image.Resampling.BOX))
    histograms = [np.histogram(pixels[..., channel], 16, (0, 256))[0] for channel in range(3)]
    return np.concatenate([thumbnail.ravel(), *histograms])


def test_colours_and_coarse_layout_do_not_tell_the_species(drawn):
    train = sorted((drawn / "train").rglob("*.jpg"))
    labels = answers(drawn)
    seen = np.array([thumbnail_and_histograms(path) for path in train])
    unseen = np.array([thumbnail_and_histograms(drawn / "test" / f"{name}.jpg") for name in labels])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.001, max_iter=500))
    classifier.fit(seen, [path.parent.name for path in train])
    assert classifier.score(unseen, list(labels.values())) <= 0.35
    seen_colour, unseen_colour = (features[:, :192].reshape(-1, 64, 3).mean(1) for features in (seen, unseen))
    classifier.fit(seen_colour, [path.parent.name for path in train])
    assert classifier.score(unseen_colour, list(labels.values())) <= 0.2
