"""The cache: the same images decoded once, found again, never believed when damaged, and never in the way."""

import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from filelock import FileLock
from PIL import Image as Pillow

from creature.data import image_cache as module
from creature.data.augment import cached_transform, exact_transform, training_augmentation
from creature.data.decode import content_hash
from creature.data.eval_transform import EvalTransform
from creature.data.folds import read_folds
from creature.data.image_cache import CachedImages, cache_home, open_cache, should_cache
from creature.data.loader import ImageDataset
from creature.data.scan import check_images
from creature.errors import UserError
from creature.recipe import Augment
from helpers import ROOT, faults
from helpers.runs import losses, start, weights_hash

WANTED = EvalTransform(56, "center", (0.5, 0.5, 0.5))
SIZES = [(200, 150), (90, 300), (40, 30), (64, 64), (65, 200)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_home()


@pytest.mark.parametrize(("user_home", "said"), [("~", "the user has no home folder"), ("/proc/none", "No such file")])
def test_without_a_folder_to_write_to_the_cache_has_a_way_out(monkeypatch, user_home, said):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", user_home))
    with pytest.raises(UserError, match=f"images.cache: .*{said}.*; set XDG_CACHE_HOME .*or images.cache=off"):
        cache_home()


def encoded(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    image = Pillow.fromarray(noise).resize(SIZES[number % len(SIZES)], Pillow.Resampling.BICUBIC)
    image.save(file := io.BytesIO(), "JPEG", quality=95)
    return file.getvalue()


def table(pictures: list[bytes]) -> Dataset:
    columns = {
        "id": [f"id-{row}" for row in range(len(pictures))],
        "image": [{"bytes": data, "path": None} for data in pictures],
        "label": [row % 2 for row in range(len(pictures))],
    }
    return Dataset.from_dict(
        columns, features=Features(id=Value("string"), image=Image(decode=False), label=Value("int64"))
    )


PICTURES = [encoded(number) for number in range(5)]


def opened(pictures: list[bytes] = PICTURES, kind: str = "disk", wanted: EvalTransform = WANTED) -> module.ImageCache:
    hashes = [content_hash(data) for data in pictures]
    return open_cache(kind, table(pictures), hashes, rows=range(len(pictures)), transform=wanted, title="images.train")


def hashes(pictures: list[bytes] = PICTURES) -> list[str]:
    return [content_hash(data) for data in pictures]


def folders(home: Path) -> list[Path]:
    return [path for path in home.iterdir() if path.is_dir()]


@pytest.mark.parametrize("kind", ["disk", "memory"])
@pytest.mark.parametrize("fit", ["squash", "center", "border"])
def test_an_evaluation_view_from_the_cache_is_the_file_s_own_bit_by_bit(kind, fit):
    wanted = EvalTransform(56, fit, (0.2, 0.5, 0.7))
    rows = [(row, 0) for row in range(5)]
    exact = ImageDataset(table(PICTURES), exact_transform(wanted)).__getitems__(rows)
    actual = CachedImages(opened(kind=kind, wanted=wanted), hashes(), views=True)
    again = ImageDataset(table(PICTURES).select_columns(["id", "label"]), cached_transform, cached=actual).__getitems__(
        rows
    )
    assert torch.equal(again.pixels, exact.pixels) and again.ids == exact.ids
    assert torch.equal(again.labels, exact.labels)


def test_crops_from_the_cache_are_those_of_the_file_in_a_lower_resolution():
    copies = CachedImages(opened(), hashes(), views=False)
    view = training_augmentation(56, Augment(crop_scale=(0.5, 1.0)))
    for epoch in range(10):
        items = [(row, epoch) for row in range(5)]
        exact = ImageDataset(table(PICTURES), view, seed=3).__getitems__(items).pixels
        cached = ImageDataset(table(PICTURES), view, seed=3, cached=copies).__getitems__(items).pixels
        assert (exact.float() - cached.float()).abs().mean((1, 2, 3)).max() < 3
        assert torch.equal(exact[2], cached[2])  # smaller than a copy: kept as it is
    sizes = [copies[row].array.shape[:2] for row in range(5)]
    assert sizes == [(64, 85), (213, 64), (30, 40), (64, 64), (197, 64)]
    assert [copies[row].size for row in range(5)] == SIZES


def test_equal_pictures_are_kept_once_and_order_and_ids_do_not_matter(home):
    first = opened()
    assert len(opened([*PICTURES[::-1], *PICTURES[:2]]).places) == 5
    assert len(folders(home)) == 1 and first.path == opened().path


@pytest.mark.parametrize("wanted", [EvalTransform(48, "center", (0.5,) * 3), EvalTransform(56, "squash", (0.5,) * 3)])
def test_another_size_or_view_is_another_cache(home, wanted):
    opened()
    opened(wanted=wanted)
    assert len(folders(home)) == 2


def test_a_cache_that_is_there_is_used_and_nothing_is_decoded(monkeypatch):
    opened()
    monkeypatch.setattr(module, "load_batches", None)
    assert len(opened().places) == 5


@pytest.mark.parametrize("name", ["pixels", "index.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_cache_is_noticed_and_made_again(home, capfd, name, damage):
    before = np.array(opened().pixels)
    file = folders(home)[0] / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    assert np.array_equal(opened().pixels, before)
    assert "this cache is made again" in capfd.readouterr().err


def test_what_a_killed_process_left_is_no_cache(home, monkeypatch):
    with monkeypatch.context() as patch:
        faults.fail_in(patch, module, "write_manifest", KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            opened()
    assert [path.name[0] for path in folders(home)] == ["."]
    opened()
    assert [path.name[0] == "." for path in folders(home)] == [False]


def test_two_that_make_it_at_once_make_it_once(tmp_path, home):
    """Processes, for a lock is a process's: both get the same pixels, and one of them decoded."""
    script = tmp_path / "both.py"
    script.write_text(
        "from creature.data import image_cache as module\nfrom tests.data import test_image_cache\n"
        "import pytest\nfrom helpers import faults\n"
        "made = faults.note_calls(pytest.MonkeyPatch(), module, '_write_pixels')\n"
        "cache = test_image_cache.opened()\n"
        "print(len(made), int(cache.pixels.sum()))\n"
    )
    import subprocess
    import sys

    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    both = [subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    message = sorted(process.communicate()[0].split() for process in both)
    assert [made for made, _ in message] == ["0", "1"] and message[0][1] == message[1][1]


def test_the_caches_used_longest_ago_give_way(home, monkeypatch):
    opened(PICTURES[:2])
    first = folders(home)[0]
    opened(PICTURES[:3])
    os.utime(first)
    (second,) = set(folders(home)) - {first}
    os.utime(second, (0, 0))
    kept = opened(PICTURES[:3])
    os.utime(second, (0, 0))
    size = sum(path.stat().st_size for path in first.iterdir())
    monkeypatch.setattr(module, "DISK_BYTES", size + module.estimate_bytes(WANTED, 5))
    opened()
    assert first.exists() and not second.exists() and len(folders(home)) == 2
    assert kept.pixels.sum() > 0  # whoever uses it goes on


def test_a_cache_that_another_process_is_making_is_left_alone(home, monkeypatch):
    opened(PICTURES[:2])
    (first,) = folders(home)
    part = first.rename(home / f".{first.name}")
    monkeypatch.setattr(module, "DISK_BYTES", 0)
    with FileLock(home / f"{first.name}.lock"):
        opened()
    assert part.exists() and len(folders(home)) == 2
    opened(PICTURES[:3])
    assert not part.exists() and len(folders(home)) == 1


def test_a_disk_without_room_is_an_error_that_says_the_way_out(monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"^images.cache: .* needs 0.0 GiB, and 0.0 are free; make room, set XDG_CACHE"):
        opened()


def test_auto_goes_by_the_data_alone():
    assert should_cache("auto", EvalTransform(224, "squash", (0.0,) * 3), 20_000)
    assert not should_cache("auto", EvalTransform(224, "squash", (0.0,) * 3), 200_000)
    assert should_cache("disk", EvalTransform(224, "squash", (0.0,) * 3), 200_000) and not should_cache(
        "off", WANTED, 1
    )


def test_what_cannot_be_decoded_is_known_by_its_reason(tmp_path):
    broken = PICTURES[0][: len(PICTURES[0]) // 2]
    cache = opened([*PICTURES, broken])
    assert list(cache.index.bad) == [content_hash(broken)] and "truncated" in cache.index.bad[content_hash(broken)]
    assert opened([*PICTURES, broken]).index.bad == cache.index.bad
    assert len(cache.places) == 5


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_it_reaches_workers_that_are_spawned_without_its_pixels(kind):
    records = CachedImages(opened(kind=kind), hashes(), views=True)
    sent = pickle.dumps(records)
    assert len(sent) < 10_000
    assert np.array_equal(pickle.loads(sent)[3].array, records[3].array)


def test_a_check_that_only_hashes_finds_no_image_bad(monkeypatch):
    actual, bad = check_images(table([*PICTURES, b"no image"]), frozenset(), "images.train", hash_only=True)
    assert actual == hashes([*PICTURES, b"no image"]) and bad == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_from_the_cache_sees_what_one_from_files_does_where_pictures_are_small(
    tiny, run, tmp_path, workers, capsys
):
    """The tests' images are no larger than a copy, so nothing is lost, and the runs are equal bit by bit."""
    settings = ("folds.train=[0]", f"images.workers={workers}")
    for number, kind in enumerate(("disk", "disk", "memory")):
        assert start(tiny, tmp_path / f"run-{number}", *settings, f"images.cache={kind}") == 0
        assert weights_hash(tmp_path / f"run-{number}/fold-0") == weights_hash(run / "fold-0")
        assert losses(tmp_path / f"run-{number}/fold-0") == losses(run / "fold-0")
        place = "memory" if kind == "memory" else str(cache_home())
        assert f"images.cache: 0.4 MiB in {place}" in capsys.readouterr().out.replace("\n", "")


def test_a_cache_that_auto_does_not_make_is_told(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "AUTO_BYTES", 2**10)
    assert start(tiny, tmp_path / "run", "folds.train=[0]", "images.cache=auto") == 0
    assert "images.cache: none, for it might take more than 0 GiB" in capsys.readouterr().out


def test_bad_pictures_are_listed_and_left_out_as_without_a_cache(tiny, drawn, tmp_path, capfd):
    shutil.copytree(drawn / "train", tmp_path / "train")
    victim = sorted((tmp_path / "train/fish").iterdir())[0]
    victim.write_bytes(b"no image")
    settings = ("folds.train=[0]", f"images.train=[{tmp_path / 'train'}]", "images.cache=disk")
    assert start(tiny, tmp_path / "run", *settings) == 0
    bad = read_folds(tmp_path / "run").bad
    assert list(bad) == [f"train/fish/{victim.name}"] and "not an image" in bad[f"train/fish/{victim.name}"]
    assert bad[f"train/fish/{victim.name}"] in capfd.readouterr().err
