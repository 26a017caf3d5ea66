"""Train a tiny recipe, stop it, and read what it left."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import train

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


def start(recipe: Path, out: Path, *settings: str, resume: bool = False) -> int:
    overrides = [word for setting in settings for word in ("--set", setting)]
    return train.main(["--recipe", str(recipe), "--out", str(out), *overrides, *["--resume"] * resume])


def losses(fold: Path) -> list[float]:
    return [row["loss"] for row in read_history(fold)]


def weights_hash(fold: Path) -> str:
    return hashlib.sha256((fold / "model.safetensors").read_bytes()).hexdigest()


def read_history(fold: Path) -> list[dict[str, Any]]:
    """A row an epoch."""
    return [json.loads(line) for line in (fold / "history.jsonl").read_text().splitlines()]


def read_csv(path: Path) -> list[list[str]]:
    """The rows, the header among them."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows by column."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
