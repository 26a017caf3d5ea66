"""The look at a data set before any training: what it counts, what it finds, what it suggests."""

import csv
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from creature.data import describe
from creature.data.describe_tables import CopiedImage, ScannedImage, advice
from creature.errors import UserError
from helpers.images import jpeg, photo


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in train and val, a flat test, a bad file, a copy in each split, and one with another label."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(16):
        place = folder / ("train" if number < 12 else "val") / ("cat" if number % 4 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        photo(number).save(place / f"{number}.png")
    (folder / "test").mkdir()
    photo(20).save(folder / "test/20.png")
    ImageOps.mirror(photo(1)).save(folder / "test/mirrored.png")
    jpeg(photo(2), 60).save(folder / "train/dog/wrong.jpg")
    (folder / "val/cat/copy.png").write_bytes((folder / "train/cat/3.png").read_bytes())
    (folder / "val/cat/broken.jpg").write_bytes(b"no image")
    Image.new("L", (40, 500), 200).save(folder / "val/cat/grey.png")
    return folder


def message(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert describe.main(list(words)) == 0
    return capsys.readouterr().out


def cells(out: str, first: str) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in out.splitlines() if line.startswith("│")]
    return [row for row in rows if row[0] == first]


def test_it_counts_splits_classes_sizes_and_kinds(data, capsys):
    out = message(capsys, str(data))
    assert cells(out, "train")[0][1:] == ["13", "0", "2", "dog 4", "cat 9", "2.2 : 1"]
    assert cells(out, "val")[0][1:] == ["7", "1", "2", "dog 1", "cat 6", "6.0 : 1"]
    assert cells(out, "test")[0][1:4] == ["2", "0", "no labels"]
    assert cells(out, "dog")[0][1:] == ["4", "1", "0"] and cells(out, "cat")[0][1:] == ["9", "6", "0"]
    assert cells(out, "shortest side")[0][1:] == ["96 px", "40 px", "96 px"]
    assert cells(out, "PNG L")[0][1:] == ["0", "1", "0"] and cells(out, "JPEG RGB")[0][1:] == ["1", "0", "0"]


def test_it_finds_bad_files_copies_leaks_and_conflicts(data, capsys):
    out = message(capsys, str(data))
    assert cells(out, "val/cat/broken.jpg")[0][1].startswith("not an image")
    assert cells(out, "train/cat/3.png")[0][1:] == ["val/cat/copy.png", "the same file", "in two splits"]
    assert cells(out, "train/cat/1.png")[0][1::2] == ["test/mirrored.png", "in two splits"]
    assert cells(out, "train/cat/2.png")[0][1::2] == ["train/dog/wrong.jpg", "two labels"]
    assert "Copies: 3" in out and "Bad files: 1" in out
    assert "val has copies of images in train (1)" in out and "test may have copies of images in train (1)" in out
    assert "may be copies, with two labels: 1" in out and "cannot be decoded: 1" in out


def test_it_suggests_folds_that_the_rarest_class_allows(data, tmp_path, capsys):
    assert "suggested: folds.count=5 over train and val pooled: dog, the rarest class, has 5" in message(
        capsys, str(data)
    )
    for number, name in enumerate("aaabbbbbb"):
        (tmp_path / name).mkdir(exist_ok=True)
        photo(number).save(tmp_path / name / f"{number}.png")
    assert "suggested: folds.count=3, for a has 3 images" in message(capsys, str(tmp_path))
    (tmp_path / "a/0.png").unlink()
    (tmp_path / "a/1.png").unlink()
    assert "suggested: more images of a, which has one" in message(capsys, str(tmp_path))
    for number in (10, 11, 12, 13):
        (tmp_path / f"a/{number}.jpg").write_bytes(b"no image")
    assert "suggested: more images of a, which has one" in message(capsys, str(tmp_path))
    (tmp_path / "a/2.png").unlink()
    out = message(capsys, str(tmp_path))
    assert "suggested: more images of a, which has none" in out and "only test has" not in out


def test_it_says_how_long_the_recipes_for_a_cpu_train(data, capsys):
    """19 sound images in five folds: 15 are one step. 1,600 in four folds: 1,200 are 19 steps of 64, 38 of 32."""
    out = message(capsys, str(data))
    assert "head.yaml trains each of 5 folds on 15 images: 60 steps, 60 epochs of 1 instead of 10, for sched" in out
    assert "laptop.yaml trains each of 5 folds on 15 images: 225 steps, 225 epochs of 1 instead of 5, for sched" in out
    images = [ScannedImage(str(number), "", "train", f"class {number % 400}") for number in range(1600)]
    said = list(advice(images, []))
    assert said[-2] == "head.yaml trains each of 4 folds on 1200 images: 190 steps, 10 epochs of 19"
    assert said[-1].startswith("laptop.yaml trains each of 4 folds on 1200 images: 228 steps, 6 epochs of 38 instead")
    alone = ScannedImage("alone", "", "train", "rare")
    assert not any("trains each of" in line for line in advice([*images, alone], []))


def test_labels_of_flat_pictures_come_from_a_csv(data, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("image_name,label\n20,dog\nmirrored,cat\n")
    out = message(capsys, str(data), "--labels", str(tmp_path / "labels.csv"))
    assert cells(out, "test")[0][3] == "2" and cells(out, "dog")[0][1:] == ["4", "1", "1"]
    assert "without a label" not in out and "only test has" not in out
    (tmp_path / "labels.csv").write_text("image_name,label\n20,dgo\n")
    out = message(capsys, str(data), "--labels", str(tmp_path / "labels.csv"))
    assert "test has images without a label: 1 of 2" in out and "classes that only test has (1): dgo" in out


def test_several_folders_are_splits_of_their_own(data, capsys):
    out = message(capsys, str(data / "train"), str(data / "val"))
    assert cells(out, "train")[0][1] == "13" and cells(out, "val")[0][1] == "7" and not cells(out, "test")


def test_the_figure_is_a_picture(data, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed; pip install -e '.[report]' brings it")
    assert f"{tmp_path / 'data.png'} shows" in message(capsys, str(data), "--out", str(tmp_path / "data.png")).replace(
        "\n", ""
    )
    with Image.open(tmp_path / "data.png") as image:
        assert image.size[0] > 1000 and len(image.convert("RGB").getcolors(10**6) or []) > 20
    with pytest.raises(UserError, match="--out: cannot write"):
        describe.main([str(data), "--out", str(tmp_path / "data.nothing")])
    before = (data / "test/20.png").read_bytes()
    with pytest.raises(UserError, match=r"--out: .*20\.png is one of the images"):
        describe.main([str(data), "--out", str(data / "test/20.png")])
    assert (data / "test/20.png").read_bytes() == before


def test_the_figure_shows_what_may_be_copies(data, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed; pip install -e '.[report]' brings it")

    def height(name: str) -> int:
        out = message(capsys, str(data), "--out", str(tmp_path / name))
        assert ("and images that may be copies" in out) == (name == "pairs.png")
        with Image.open(tmp_path / name) as image:
            return image.size[1]

    with_pairs = height("pairs.png")
    monkeypatch.setattr(describe, "find_copies", lambda images: ([], 0))
    assert with_pairs > height("none.png") + 200


def test_a_series_of_one_camera_is_suggested_as_a_group():
    images = [ScannedImage(f"fox/cam{k // 8}_{k:03d}.jpg", "", "train", "fox") for k in range(24)]
    within = [CopiedImage(one, other, 0.9) for one, other in pairwise(images) if one.id[:8] == other.id[:8]]
    (line,) = [line for line in advice(images, within) if "folds.group='" in line]
    assert line.startswith(r"suggested: folds.group='([^/]*\D)\d+\.\w+$', for 21 of 21 pairs") and "cam0_" in line
    across = [CopiedImage(images[k], images[23 - k], 0.9) for k in range(8)]
    assert not any("folds.group='" in line for line in advice(images, [*within[:4], *across]))


def test_a_scene_of_one_camera_suggests_what_its_names_tell():
    images = [ScannedImage(f"fox/cam_20260301_12{k // 4:02d}{k % 4}0.jpg", "", "train", "fox") for k in range(24)]
    (line,) = [line for line in advice(images, [], 13) if "folds.group='" in line]
    assert "13 of 24 images share a scene" in line and "the minute, such as 20260301_1200" in line
    assert not any("folds.group='" in line for line in advice(images, [], 11))
    nameless = ScannedImage("fox/copy.jpg", "", "train", "fox")  # which such a pattern would not match
    assert not any("folds.group='" in line for line in advice([*images, nameless], [], 24))
    apart = [image._replace(id=f"fox/{k}a.jpg") for k, image in enumerate(images)]
    assert not any("folds.group='" in line for line in advice(apart, [], 24))


def test_all_copies_are_listed(data, tmp_path, capsys):
    assert f"{tmp_path / 'copies.csv'} lists 3 pairs" in " ".join(
        message(capsys, str(data), "--out", str(tmp_path / "copies.csv")).split()
    )
    with (tmp_path / "copies.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert {(row["and"], row["likeness"] == "same file", row["remark"]) for row in listed} == {
        ("val/cat/copy.png", True, "in two splits"),
        ("test/mirrored.png", False, "in two splits"),
        ("train/dog/wrong.jpg", False, "two labels"),
    }
    with pytest.raises(UserError, match="--out: cannot write"):
        describe.main([str(data), "--out", str(tmp_path / "absent/copies.csv")])


def test_what_is_for_testing_is_not_pooled_with_what_is_trained_on(data, tmp_path, capsys):
    shutil.copytree(data / "train", tmp_path / "d/Training")
    shutil.copytree(data / "val", tmp_path / "d/Testing")
    out = message(capsys, str(tmp_path / "d"))
    assert "over Training pooled" in out and "Testing pooled" not in out


def test_mistakes_get_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        describe.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="holds no images"):
        describe.main([str(tmp_path)])


def test_it_does_not_wait_for_torch():
    code = "import sys, creature.data.describe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_folders_of_one_name_are_two_splits(data, tmp_path, capsys):
    for year in ("2023", "2024"):
        (tmp_path / year / "images/cat").mkdir(parents=True)
        for number in (1, 2, 3 if year == "2023" else 4):
            photo(number).save(tmp_path / year / f"images/cat/{number}.png")
        (tmp_path / year / "images/dog").mkdir()
        photo(10 + int(year)).save(tmp_path / year / "images/dog/1.png")
    out = " ".join(message(capsys, *(str(tmp_path / year / "images") for year in ("2023", "2024"))).split())
    assert "2024/images has copies of images in 2023/images (2)" in out
    out = message(capsys, str(data), str(tmp_path / "2023"))
    assert cells(out, f"{data.name}/train") and cells(out, "2023")


def test_a_csv_of_pictures_in_class_folders_alone_is_refused(data, tmp_path):
    (labels := tmp_path / "labels.csv").write_text("image_name,label\n3,dog\n")
    with pytest.raises(UserError, match=r"names images in class folders alone, such as cat/3\.png.*\(cat\)"):
        describe.main([str(data / "train"), "--labels", str(labels)])


def test_a_csv_that_names_no_picture_is_refused(data, tmp_path):
    (labels := tmp_path / "labels.csv").write_text("image_name,label\nzzz,cat\n")
    with pytest.raises(UserError, match=r"--labels: .*labels\.csv names none of the images; its first is zzz"):
        describe.main([str(data), "--labels", str(labels)])
