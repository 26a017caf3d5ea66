"""The index's promise: images are read again as soon as one of their files may have changed, and else not."""

import os
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from creature.data import scan
from creature.data.decode import content_hash
from creature.data.eval_transform import EvalTransform
from creature.data.scan import check_images
from helpers import faults
from helpers.tables import fill, images, parquet, picture, table

pytestmark = pytest.mark.usefixtures("hub_cache")
LATER = -(10**12)  # as a tick: no file is too young


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return fill(tmp_path / "pets", *(f"cat/{row}.png" for row in range(5)))


def known(dataset: Dataset) -> tuple[list[str], dict[int, str]]:
    transform = EvalTransform(32, "squash", (0.0, 0.0, 0.0))
    scanned = scan.scan_images(dataset, None, "test", kind="off", transform=transform)
    return scanned.table["hash"].to_pylist(), scanned.bad


def reads(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the images are read; what is found is always what reading them finds."""
    with monkeypatch.context() as patch:
        read = faults.note_calls(patch, scan, "check_images")
        assert known(dataset) == check_images(dataset, frozenset(), "test")
    return bool(read)


def test_what_is_unchanged_is_read_once(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "TICK", LATER)
    rows = parquet(tmp_path / "t.parquet", table(["cat", "cat"]))
    assert [reads(images(pets, rows), monkeypatch) for _ in range(3)] == [True, False, False]
    assert [reads(images(pets), monkeypatch) for _ in range(2)] == [True, False]
    assert known(images(pets))[0] == [content_hash(picture(row)) for row in range(5)]


def _keep_times(path: Path, data: bytes) -> None:
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES = {
    "a byte, and the old time": lambda a, b: _keep_times(a, a.read_bytes()[:-1] + b"x"),
    "longer": lambda a, b: _keep_times(a, a.read_bytes() + b"x"),
    "touched": lambda a, b: a.touch(),
    "another in its place": lambda a, b: b.rename(a),
    "a copy in its place": lambda a, b: (a.unlink(), shutil.copy2(b, a)),
    "swapped": lambda a, b: (a.rename(a.with_name("x")), b.rename(a), a.with_name("x").rename(b)),
    "one more": lambda a, b: shutil.copy2(a, a.with_name("new.png")),
    "one less": lambda a, b: a.unlink(),
    "another class": lambda a, b: (a.parent.with_name("dog").mkdir(), a.rename(a.parent.with_name("dog") / "0.png")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_any_change_the_pictures_are_read_again(pets, monkeypatch, change):
    monkeypatch.setattr(scan, "TICK", LATER)
    assert [reads(images(pets), monkeypatch) for _ in range(2)] == [True, False]
    CHANGES[change](pets / "cat/0.png", pets / "cat/1.png")
    assert [reads(images(pets), monkeypatch) for _ in range(2)] == [True, False]


def test_a_table_of_other_pictures_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "TICK", LATER)
    path = tmp_path / "t.parquet"
    parquet(path, table(["a", "b"]))
    assert reads(images(path), monkeypatch)
    parquet(path, table(["a", "b"], images=[{"bytes": picture(7), "path": None}] * 2))
    os.utime(path, ns=(0, 10**15))
    assert reads(images(path), monkeypatch)


def test_files_so_young_that_a_change_might_not_show_are_read_again(pets, monkeypatch):
    monkeypatch.setattr(scan, "TICK", 10**15)
    assert [reads(images(pets), monkeypatch) for _ in range(2)] == [True, True]


def test_data_with_a_bad_picture_is_read_again(pets, monkeypatch):
    monkeypatch.setattr(scan, "TICK", LATER)
    (pets / "cat/3.png").write_bytes(b"")
    assert [reads(images(pets), monkeypatch) for _ in range(2)] == [True, True]
    assert known(images(pets))[1] == {3: "empty file"}
