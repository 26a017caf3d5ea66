"""Make a golden run: what this version writes, small, for later versions to load (test_golden.py).

python tests/make_golden.py tests/golden/NAME, from the root of the version that is to be kept. Twelve drawn images,
two folds: fold 0 is finished, fold 1 stopped in its second epoch; expected.json says what this version made of them.
"""

import csv
import json
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, os.getcwd())

import pytest

import ensemble
import train
from creature.samples import write_drawings
from helpers import faults

RECIPE = {
    "name": "golden",
    "images": {"train": ["pictures"], "size": 32, "normalize": "none", "workers": 0},
    "folds": {"count": 2},
    "backbone": {"name": "test_efficientnet", "pretrained": False},
    "optimizer": {"name": "sgd", "lr": 0.0003},
    "schedule": {"epochs": 2},
    "batch_size": 3,
    "checkpoint": {"every_minutes": 0},
    "device": "cpu",
}


def start(out: str, *more: str) -> None:
    train.main(["--recipe", "recipe.yaml", "--out", out, *more])


def main() -> None:
    golden, work = Path(sys.argv[1]), Path(tempfile.mkdtemp())
    write_drawings(work, train=72, test=12, size=32)
    for species in sorted((work / "train").iterdir())[:2]:
        shutil.copytree(species, golden / "pictures" / species.name)
    os.chdir(golden)  # no path of this machine is to stand in what is kept
    Path("recipe.yaml").write_text(json.dumps(RECIPE, indent=1) + "\n")
    whole = str(work / "whole")
    start(whole)
    start("run", "--set", "folds.train=[0]")
    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        faults.interrupt_at_step(patch, 4)
        start("run", "--set", "folds.train=[1]")
    out = work / "predictions.csv"
    ensemble.main([whole, "--images", "pictures", "--format", "full", "--out", str(out)])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    history = Path(whole, "fold-1/history.jsonl").read_text().splitlines()
    expected = {
        "losses": [json.loads(line)["loss"] for line in history],
        "predictions": {next(iter(row.values())): [row["label"], float(row["probability"])] for row in rows},
    }
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    shutil.rmtree("run/fold-0/kept")
    for older in sorted(Path("run/fold-1/state").iterdir())[:-1]:
        shutil.rmtree(older)
    for lock in (*Path("run").rglob("*.lock"), *Path("run").rglob("lock.json")):
        lock.unlink()


if __name__ == "__main__":
    main()
