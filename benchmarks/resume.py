"""What resume points cost: the share of a training spent on saving, the time to a resumed first step, and to a stop.

python benchmarks/resume.py [PAIRS]

Drawn images, EfficientNet-Lite0 from scratch at 96 px. The first step is timed from the start of the process, fresh
and resumed from the middle of an epoch in turns; the ratio is resumed over fresh. Both find their images in the index
of checked ones; a first start on new images decodes all of them before.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sides import ROOT, Ratio, in_turns, ratio, record  # first, for it puts this checkout first

import train
from creature.console import console
from creature.errors import Interrupted
from creature.samples import write_drawings
from creature.training import loop

RECIPE = {
    "name": "resume",
    "images": {"size": 96, "normalize": "none"},
    "backbone": {"name": "tf_efficientnet_lite0", "pretrained": False},
    "folds": {"train": [0]},
    "schedule": {"epochs": 3},
    "batch_size": 32,
    "device": "cpu",
}


# A start of train.py that ends where its first step would begin.
TO_FIRST_STEP = (
    "import os, train; from creature.training import loop; loop.train_step = lambda *_, **__: os._exit(0); train.main()"
)


def start(recipe: Path, out: Path, *more: str) -> None:
    train.main(["--recipe", str(recipe), "--out", str(out), *more])


def time_to_first_step(recipe: Path, out: Path, *more: str) -> float:
    """From the start of the process, imports included."""
    words = (sys.executable, "-c", TO_FIRST_STEP, "--recipe", str(recipe), "--out", str(out), *more)
    began = time.perf_counter()
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def stop_in_mid_epoch(recipe: Path, out: Path) -> None:
    step, done = loop.train_step, [0]

    def stopping(*given, **request):
        done[0] += 1
        return step(*given, **(request | {"stop": done[0] == 15}))

    loop.train_step = stopping
    try:
        start(recipe, out)
    except Interrupted:
        loop.train_step = step


def time_to_stop(recipe: Path, out: Path) -> float:
    """From SIGTERM in mid-training to the end of the process."""
    words = ("--recipe", str(recipe), "--out", str(out), "--set", "schedule.epochs=100")
    running = subprocess.Popen([sys.executable, "train.py", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert running.stdout
    next(line for line in running.stdout if line.split()[:1] == ["1"])  # the first epoch's line
    began = time.perf_counter()
    running.terminate()
    running.communicate()
    assert running.returncode == 75
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=int, nargs="?", default=15, metavar="PAIRS", help="(%(default)s)")
    pairs = parser.parse_args().pairs
    console.quiet = True
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_drawings(work, train=1200, test=12, size=128)
        recipe = work / "recipe.yaml"
        recipe.write_text(json.dumps(RECIPE | {"images": RECIPE["images"] | {"train": [str(work / "train")]}}))
        began = time.perf_counter()
        start(recipe, work / "whole")
        wall = time.perf_counter() - began
        saving = json.loads((work / "whole/fold-0/result.json").read_text())["saving_seconds"]
        stop_in_mid_epoch(recipe, work / "cut")
        fresh = (work / f"fresh-{number}" for number in itertools.count())
        seconds = in_turns(
            {
                "fresh": lambda: time_to_first_step(recipe, next(fresh)),
                "resumed": lambda: time_to_first_step(recipe, work / "cut", "--resume"),
            },
            pairs,
        )
        stops = [time_to_stop(recipe, work / f"stopped-{number}") for number in range(5)]
    share, found = saving / wall, ratio(seconds["resumed"], seconds["fresh"])
    record("P11", "saving over a training of three epochs", 0.02, Ratio(share, share, share, 1))
    record("R4", "time to the first step, resumed over fresh", 1.05, found)
    print(f"torch {version('torch')}, timm {version('timm')}, {torch.get_num_threads()} threads")
    print(f"saving: {share:.2%} of {wall:.0f} s (goal: at most 2 %)")
    interval = f"[{found.low:.2f}, {found.high:.2f}]"
    print(f"resumed over fresh: {found.median:.2f} {interval}, {pairs} pairs (goal: at most 1.05)")
    print(f"asked to stop: {np.median(stops):.1f} s, {max(stops):.1f} s at most, 5 times (goal: less than 10 s)")


if __name__ == "__main__":
    main()
