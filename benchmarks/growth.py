"""What grows with images, folds, members and resolution: six curves with their slopes, in growth.png.

python benchmarks/growth.py [--most ROWS]

Start-up is the time from the start of main to the first step, and the memory that the process alone holds then (USS);
each is a process of its own that has imported everything, fresh and resumed. Folds and members: a tiny ResNet on drawn
images at 32 px. Resolution: EfficientNet-Lite0 from scratch. Every point is a line of growth.jsonl; lines a + b x are
fitted to them with equal weight to equal relative errors, and the panel says how far the farthest point is from it.
"""

import argparse
import io
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from pictures import write_table
from sides import usable_cores

import ensemble
import predict
import train
from creature.console import run, say
from creature.metrics import accuracy, scores  # noqa: F401, imported before any clock starts
from creature.samples import write_drawings
from creature.training import checkpoint, loop, train_data  # noqa: F401

HERE = Path(__file__).parent
BATCH, PICTURES = 16, 480
ROWS = (1_000, 10_000, 100_000, 1_000_000)
COUNTS = (1, 2, 4, 7, 10)
SIZES = (64, 128, 192, 256, 320)
TINY = {
    "name": "growth",
    "images": {"size": 32, "normalize": "none", "workers": 0},
    "backbone": {"name": "test_resnet", "pretrained": False},
    "folds": {"count": 10},
    "schedule": {"epochs": 3, "warmup_epochs": 1},
    "batch_size": BATCH,
    "device": "cpu",
}
LITE = {"backbone": {"name": "tf_efficientnet_lite0", "pretrained": False}, "folds": {"count": 2, "train": [0]}}


class Point(NamedTuple):
    """One measured cost: y at x, on a curve of a panel."""

    panel: str
    curve: str
    x: int
    y: float


class Panel(NamedTuple):
    """What a panel's axes are, and the unit of its slope: `per` names it, `scale` turns y per x into it."""

    x: str
    y: str
    per: str
    scale: float


PANELS = {
    "start-up": Panel("images", "seconds", "us an image", 1e6),
    "memory": Panel("images", "MiB", "bytes an image", 2**20),
    "training": Panel("folds", "seconds", "s a fold", 1),
    "ensemble": Panel("members", "seconds", "ms a member", 1e3),
    "training step": Panel("pixels", "seconds", "ms for 100 x 100 px", 1e7),
    "prediction": Panel("pixels", "seconds", "s for 100 x 100 px", 1e4),
}


class FirstStep(Exception):
    """Training has reached its first step."""


def write_recipe(path: Path, source: Path, **more: object) -> Path:
    path.write_text(json.dumps(TINY | more | {"images": TINY["images"] | {"train": [str(source)]}}))
    return path


def timed(main: Callable[[Sequence[str]], int], *words: object) -> float:
    began = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        main([str(word) for word in words])
    return time.perf_counter() - began


def start(words: Sequence[str]) -> tuple[float, int]:
    """Seconds of a training up to its first step, and the bytes that this process alone holds then."""

    def reached(*_, **__):
        raise FirstStep

    multiprocessing.set_start_method(None, force=True)  # the default, or its workers would be spawned as it was
    loop.train_step, began = reached, time.perf_counter()
    try:
        timed(train.main, *words)
    except FirstStep:
        return time.perf_counter() - began, psutil.Process().memory_full_info().uss
    raise AssertionError("no step was taken")


def by_images(work: Path, most: int) -> Iterator[Point]:
    for rows in (rows for rows in ROWS if rows <= most):
        write_table(table := work / "rows.parquet", rows)
        recipe = write_recipe(work / "rows.json", table, folds={"train": [0]})
        for name, more in {"fresh": (), "resumed": ("--resume",)}.items():
            words = ("--recipe", str(recipe), "--out", str(work / f"rows-{rows}"), *more)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                seconds, held = alone.submit(start, words).result()
            yield Point("start-up", name, rows, seconds)
            yield Point("memory", name, rows, held / 2**20)


def by_folds(work: Path, recipe: Path) -> Iterator[Point]:
    for number in COUNTS:
        folds = f"folds.train={list(range(number))}"
        words = ("--recipe", recipe, "--out", work / f"folds-{number}", "--set", folds)
        yield Point("training", "train.py", number, timed(train.main, *words))


def by_members(work: Path, pictures: Path) -> Iterator[Point]:
    for number in COUNTS:
        members = [work / f"folds-{COUNTS[-1]}/fold-{fold}" for fold in range(number)]
        words = (*members, "--images", pictures, "--out", work / "answers.csv", "--device", "cpu")
        yield Point("ensemble", f"ensemble.py, {PICTURES} images", number, timed(ensemble.main, *words))


def by_resolution(work: Path, recipe: Path, pictures: Path) -> Iterator[Point]:
    for size in SIZES:
        out = work / f"sizes-{size}"
        timed(train.main, "--recipe", recipe, "--out", out, "--set", f"images.size={size}")
        history = [json.loads(line) for line in (out / "fold-0/history.jsonl").read_text().splitlines()]
        fastest = max(epoch["images_per_second"] for epoch in history)
        yield Point("training step", f"{BATCH} images", size**2, BATCH / fastest)
        words = (out / "fold-0", pictures, "--out", work / "answers.csv", "--device", "cpu")
        yield Point("prediction", f"predict.py, {PICTURES} images", size**2, timed(predict.main, *words))


def measure(work: Path, most: int) -> Iterator[Point]:
    """All points, one after another."""
    write_drawings(work / "drawn", train=240, test=PICTURES, size=160)
    test = work / "drawn/test"
    tiny = write_recipe(work / "tiny.json", work / "drawn/train")
    lite = write_recipe(work / "lite.json", work / "drawn/train", **LITE)
    timed(train.main, "--recipe", tiny, "--out", work / "warm", "--set", "folds.train=[0]")
    timed(ensemble.main, work / "warm", "--images", test, "--out", work / "answers.csv", "--device", "cpu")
    yield from by_folds(work, tiny)
    yield from by_members(work, test)
    yield from by_resolution(work, lite, test)
    yield from by_images(work, most)


def draw(points: Sequence[Point], path: Path) -> None:
    """A panel for each cost: its points, the line through them, its slope, and how far the farthest point is off."""
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    for axes, (title, panel) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        mine = [point for point in points if point.panel == title]
        places = sorted({point.x for point in mine})
        for colour, curve in enumerate(dict.fromkeys(point.curve for point in mine)):
            x, y = np.array([(point.x, point.y) for point in mine if point.curve == curve]).T
            slope, base = np.polyfit(x, y, 1, w=1 / y)
            far, grows = np.abs(y / (base + slope * x) - 1).max(), slope * panel.scale
            rate = f"{grows:.0f}" if grows >= 100 else f"{grows:.3g}"
            label = f"{curve}\n{rate} {panel.per}, points within {far:.0%}"
            line = np.geomspace(x.min(), x.max(), 100)
            axes.plot(line, base + slope * line, color=f"C{colour}", linewidth=1.2, label=label)
            axes.plot(x, y, "o", color=f"C{colour}", markersize=5)
        highest = max(point.y for point in mine)
        axes.set(ylim=(0, 1.5 * highest))  # room for the legend
        if panel.x == "images":
            axes.set(xscale="log")
        else:
            sides = [f"{math.isqrt(place)}²" if panel.x == "pixels" else str(place) for place in places]
            axes.set(xlim=(0, 1.05 * places[-1]))
            axes.set_xticks(places, sides)
        if title == "start-up":
            axes.set(yscale="log", ylim=(min(point.y for point in mine) / 2, 6 * highest))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
        axes.set(xlabel=panel.x, ylabel=panel.y)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Cost against size, {usable_cores()} cores", x=0.01, ha="left")
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=ROWS[-1], help="rows of the largest table (%(default)s)")
    most = parser.parse_args().most
    points = []
    with tempfile.TemporaryDirectory() as name, (HERE / "growth.jsonl").open("w") as log:
        for point in measure(Path(name), most):
            points.append(point)
            log.write(json.dumps(point._asdict()) + "\n")
            say(f"{point.panel} ({point.curve}): {point.y:.4g} {PANELS[point.panel].y} at {point.x}")
    draw(points, HERE / "growth.png")
    say(f"the curves are in {HERE / 'growth.png'}")
    return 0


if __name__ == "__main__":
    run(main)
