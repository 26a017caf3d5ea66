"""Images and a trained run that several tests share: drawn creatures at 32 px and a tiny backbone from scratch."""

import atexit
import gc
import json
import os
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may need the network
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()  # the user's own is neither filled nor asked
os.environ["COLUMNS"] = "200"  # tables that no narrow terminal wraps

import pyarrow as pa
import pytest

import train
from creature.samples import write_drawings

atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

T = TypeVar("T")
TINY = {
    "name": "tiny",
    "images": {"size": 32, "normalize": "none", "workers": 0},
    "folds": {"count": 3},
    "backbone": {"name": "test_resnet", "pretrained": False},
    "augment": {"crop_scale": [0.6, 1.0]},
    "optimizer": {"lr": 0.003},
    "schedule": {"epochs": 2},
    "batch_size": 16,
    "device": "cpu",
}


def holding(make: Callable[[], T]) -> tuple[T, int]:
    """What is made, and the bytes that Python, NumPy and Arrow hold for it when it is made a second time."""
    make()
    gc.collect()
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    try:
        made = make()
        gc.collect()
        return made, tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/<species>/ (72 images), test/ (24) and test_labels.csv."""
    folder = tmp_path_factory.mktemp("drawn")
    write_drawings(folder, train=72, test=24, size=32)
    return folder


@pytest.fixture(scope="session")
def tiny(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two epochs on the drawn images, three folds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    images = {**TINY["images"], "train": [str(drawn / "train")]}  # type: ignore[dict-item]
    path.write_text(json.dumps({**TINY, "images": images}))
    return path


@pytest.fixture(scope="session")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe's run, trained; tests read it and leave it as it is."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert train.main(["--recipe", str(tiny), "--out", str(out)]) == 0
    return out
