"""Two sides of a comparison in turns, in one process: the ratio of their times, its interval, and a line that stays.

Ratios only, for absolute times belong to one machine and one minute. A ratio below 1 means that ours takes less.
"""

import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks are of this checkout, whatever is installed

from creature.console import say, show_table
from creature.device import usable_cores

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results.jsonl"
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "datasets", "pillow", "numpy")

Side = Callable[[], float | None]  # does the work once; gives seconds where it times itself


class Ratio(NamedTuple):
    """The median of paired ratios with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The median of ours over theirs, pair by pair."""
    ratios = np.array(ours) / np.array(theirs)
    drawn = np.median(np.random.default_rng(0).choice(ratios, (10_000, len(ratios))), axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))


def in_turns(sides: Mapping[str, Side], rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each side in each round, after one that warms up if asked; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(0 if warm else 1, rounds + 1):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            began = time.perf_counter()
            own = sides[name]()
            took = time.perf_counter() - began if own is None else own
            if number:
                seconds[name].append(took)
    return seconds


def drain(make: Callable[[], Iterable[Any]]) -> None:
    """Take all that an iterable gives."""
    for _ in make():
        pass


def record(goal: str, case: str, limit: float | None, found: Ratio, unit: str = "time", **more: Any) -> None:
    """Append a result to results.jsonl; it is met unless the whole interval misses the limit (at most) of the goal.

    Without a limit no goal names this peer.
    """
    line = {
        "goal": goal,
        "case": case,
        "unit": unit,
        "limit": limit,
        "ratio": round(found.median, 4),
        "interval": [round(found.low, 4), round(found.high, 4)],
        "pairs": found.pairs,
        "met": limit is None or found.low <= limit,
        "threads": torch.get_num_threads(),
        "cores": usable_cores(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "date": str(date.today()),
        **more,
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def judge(
    goal: str, title: str, ours: str, seconds: Mapping[str, Sequence[float]], limits: Mapping[str, float], **more: Any
) -> None:
    """Compare `ours` with every other side, show the table and record a line for each; `limits` are the goal's."""
    rows = []
    for name, theirs in seconds.items():
        if name == ours:
            continue
        found = ratio(seconds[ours], theirs)
        limit = limits.get(name)
        record(goal, f"{title}: {ours} over {name}", limit, found, **more)
        said = "" if limit is None else f"{limit:.2f} {'met' if found.low <= limit else 'missed'}"
        rows.append((name, f"{np.median(theirs):.4f}", str(found), said))
    show_table(
        f"{goal} {title}: {ours} takes {np.median(seconds[ours]):.4f} s ({len(seconds[ours])} rounds)",
        ("beside", "seconds", "time of ours over it [95 %]", "at most"),
        rows,
    )
    threads = f"{torch.get_num_threads()} threads of {usable_cores()} cores"
    say(f"{threads}; {', '.join(f'{name} {_version(name)}' for name in PACKAGES)}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
