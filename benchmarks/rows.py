"""What a row costs before the first step: private memory, and the time of a start, cold and with the run at hand.

python benchmarks/rows.py [ROWS ...] [--folder ROWS] [--search ROWS]

A Parquet file of tiny images, no two alike, in 100 classes; with --folder as files in class folders, too; with --search
the search for candidates of near-duplicates alone, among sketches that are as those of photos.
Each start is a process of its own up to its first step: one that finds nothing, and one that goes on with its run.
Costs are those beyond a start of 1000 rows. Memory is anonymous (RssAnon of Linux) and of the main process: pages of a
memory-mapped file are the system's, which may drop them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from pictures import CLASSES, sketches, tiny, write_table
from sides import ROOT, Ratio, record, say, show_table

BASE = 1000
PARTS = ("read_images", "scan_images", "make_folds", "share_folds")  # of train_data.prepare_data
STARTS = 3  # of the base, whose medians count
RECIPE = {
    "name": "rows",
    "images": {"size": 32, "normalize": "none", "workers": 0},
    "backbone": {"name": "test_efficientnet", "pretrained": False},
    "folds": {"train": [0]},
    "device": "cpu",
}


class FirstStep(Exception):
    """Training has reached its first step."""


def write_folder(path: Path, rows: int) -> None:
    for k in range(CLASSES):
        (path / f"class {k:03d}").mkdir(parents=True)
    for row, data in enumerate(tiny(rows)):
        (path / f"class {row % CLASSES:03d}/{row:08d}.ppm").write_bytes(data)


def measure(recipe: str, out: str, resume: bool) -> dict[str, float]:
    """Seconds of prepare_data, of its parts, and from the learner to its first step, and bytes that the process holds.

    What a start does without the rows (imports, the model) is in no figure. Seconds are of this process's own work, for
    others may share the cores; those of the clock are in `clock`.
    """
    import train
    from creature.metrics import scores  # noqa: F401, imported before the clock starts
    from creature.training import learner, loop, train_data

    figures: dict[str, float] = {}
    ended: dict[str, tuple[float, float]] = {}
    most, done = [0], threading.Event()

    def now() -> tuple[float, float]:
        return time.process_time(), time.perf_counter()

    def watch() -> None:
        while not done.wait(0.1):
            most[0] = max(most[0], private())

    def timed(name: str) -> Any:
        inner = getattr(learner if name == "build_learner" else train_data, name)

        def outer(*args: Any, **options: Any) -> Any:
            began = now()
            try:
                return inner(*args, **options)
            finally:
                ended[name] = now()
                figures[name], figures[f"clock {name}"] = (b - a for a, b in zip(began, ended[name], strict=True))

        return outer

    def reached(*_: Any, **__: Any) -> None:
        raise FirstStep

    for name in (*PARTS, "prepare_data"):
        setattr(train_data, name, timed(name))
    learner.build_learner = timed("build_learner")
    loop.train_step = reached
    before = private()
    threading.Thread(target=watch, daemon=True).start()
    try:
        train.main(["--recipe", recipe, "--out", out, *(["--resume"] if resume else [])])
    except FirstStep as _:  # it keeps the frames, and so all that the step has at hand
        figures["first batch"], waited = (b - a for a, b in zip(ended["build_learner"], now(), strict=True))
        figures["whole"] = figures["prepare_data"] + figures["first batch"]
        figures["clock"] = figures["clock prepare_data"] + waited
        done.set()
        figures["memory"] = private() - before
        figures["peak"] = max(most[0], private()) - before
    return figures


def private() -> int:
    """Bytes that this process holds in memory and no file backs."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def in_a_process(recipe: Path, out: Path, resume: bool) -> dict[str, float]:
    words = [sys.executable, __file__, "--measure", str(recipe), str(out), "resume" if resume else ""]
    homes = {"HF_HOME": f"{out}-cache"}  # of this run alone: no cold start finds another's index
    done = subprocess.run(words, cwd=ROOT, env=os.environ | homes, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def both_starts(work: Path, kind: str, rows: int, times: int) -> dict[str, dict[str, float]]:
    """What a start costs that finds nothing, and one that goes on with that run: medians."""
    source = work / f"{kind}-{rows}{'.parquet' if kind == 'table' else ''}"
    write_table(source, rows) if kind == "table" else write_folder(source, rows)
    recipe = work / f"{kind}-{rows}.yaml"
    recipe.write_text(json.dumps(RECIPE | {"images": RECIPE["images"] | {"train": [str(source)]}}))
    time.sleep(3)  # what is as young as its own times is read again
    out = work / f"{kind}-{rows}-run"
    cold = [in_a_process(recipe, Path(f"{out}-{number}"), resume=False) for number in range(times)]
    warm = [in_a_process(recipe, Path(f"{out}-0"), resume=True) for _ in range(times)]
    return {"cold": medians(cold), "warm": medians(warm)}


def search(rows: int) -> None:
    """Show what the search for candidates takes: seconds of the process, on one core as long as numpy uses one."""
    from creature.data.candidates import find_candidates

    images, most, done = sketches(rows), [0], threading.Event()
    before = private()

    def watch() -> None:
        while not done.wait(0.1):
            most[0] = max(most[0], private() - before)

    threading.Thread(target=watch, daemon=True).start()
    began = time.process_time(), time.perf_counter()
    found = len(find_candidates(images).pairs)
    process, clock = (end - start for start, end in zip(began, (time.process_time(), time.perf_counter()), strict=True))
    done.set()
    say(f"{rows} sketches: {process:.1f} s ({clock:.1f} by the clock), {most[0] / 1e6:.0f} MB, {found} candidates")


def medians(starts: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.median([start[name] for start in starts if name in start])) for name in starts[0]}


def compare(kind: str, rows: int, base: dict[str, dict[str, float]], figures: dict[str, dict[str, float]]) -> None:
    """Show what a row costs beyond those of the base, and keep what the goal names."""

    def a_row(start: str, what: str) -> float:
        return (figures[start].get(what, 0) - base[start].get(what, 0)) / (rows - BASE)

    parts = (*PARTS, "prepare_data", "first batch", "whole", "clock")
    lines = [(f"us: {name}", *(f"{1e6 * a_row(start, name):.2f}" for start in figures)) for name in parts]
    lines += [(f"bytes: {name}", *(f"{a_row(start, name):.1f}" for start in figures)) for name in ("memory", "peak")]
    show_table(f"P8 {kind}, {rows} rows: a row", ("", *figures), lines)
    for start in figures:
        bytes_, us = a_row(start, "memory"), 1e6 * a_row(start, "whole")
        record(
            "P8", f"{kind}, {rows} rows, {start}: private memory", 60, Ratio(bytes_, bytes_, bytes_, 1), "bytes a row"
        )
        if start == "warm":
            record("P8", f"{kind}, {rows} rows, {start}: start", 3, Ratio(us, us, us, 1), "us a row")


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3], resume=bool(sys.argv[4]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=int, nargs="*", default=[])
    parser.add_argument("--search", type=int, nargs="*", default=[])
    args = parser.parse_args()
    if args.search:
        for rows in args.search:
            search(rows)
        return
    with tempfile.TemporaryDirectory() as name:
        for kind, sizes in (("table", args.rows), ("folder", args.folder)):
            if sizes:
                base = both_starts(Path(name), kind, BASE, STARTS)
                say(f"{kind}, {BASE} rows: {base}")
            for rows in sizes:
                compare(kind, rows, base, both_starts(Path(name), kind, rows, 1))


if __name__ == "__main__":
    main()
