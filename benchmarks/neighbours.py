"""P14: how long OpenMP's threads spin before they sleep: what that costs on idle cores, and beside another program.

python benchmarks/neighbours.py [ROUNDS] [--beside-only] [--spins N ...]

Short trainings of a tiny network, each a process of its own, in turns: as the scripts have it (console.wait_patiently),
with libgomp's default of 300,000 rounds, and sleeping at once. The time is that of the steps, from history.jsonl,
without imports and reading. First with the cores idle, which nothing but you can see to; then beside a program on each
core that computes without end; then two trainings beside each other. The weights must be the same, bit for bit.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sides import ROOT, in_turns, judge

from creature.console import run
from creature.device import usable_cores
from creature.errors import BrokenError
from creature.samples import write_drawings

WAYS = {
    "ours": {},
    "libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "sleeping at once": {"OMP_WAIT_POLICY": "PASSIVE"},
}
SETTINGS = ("folds.train=[0]", "schedule.epochs=2")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # what the environment may say already


def train(drawn: Path, waiting: dict[str, str]) -> tuple[float, str]:
    """Seconds of a training's steps, and the hash of its weights."""
    env = {name: value for name, value in os.environ.items() if name not in WAITING} | waiting
    with tempfile.TemporaryDirectory() as name:
        settings = [f"images.train=[{drawn / 'train'}]", *SETTINGS]
        options = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "train.py", "--recipe", "recipes/quickstart.yaml", "--out", f"{name}/run", *options]
        subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
        fold = Path(name) / "run/fold-0"
        seconds = [json.loads(line)["seconds"] for line in (fold / "history.jsonl").read_text().splitlines()]
        return sum(seconds), hashlib.sha256((fold / "model.safetensors").read_bytes()).hexdigest()


def train_two(drawn: Path, waiting: dict[str, str]) -> tuple[float, str]:
    """Mean seconds of the steps of two trainings that run beside each other, and the hashes of their weights."""
    with ThreadPoolExecutor(2) as pool:
        (first, weights), (second, others) = pool.map(partial(train, drawn), [waiting, waiting])
    return (first + second) / 2, weights if weights == others else f"{weights} {others}"


@contextmanager
def busy_cores() -> Iterator[None]:
    """A program on each core that computes without end."""
    program = f"import os\nwhile os.getppid() == {os.getpid()}: pass"  # or, were this one killed, it would go on
    programs = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(usable_cores())]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=7, metavar="ROUNDS", help="(%(default)s)")
    parser.add_argument("--beside-only", action="store_true", help="leave out the part that needs idle cores")
    parser.add_argument("--spins", nargs="*", default=[], metavar="N", help="compare these GOMP_SPINCOUNTs, too")
    args = parser.parse_args()
    ways = WAYS | {f"{spins} rounds": {"GOMP_SPINCOUNT": spins} for spins in args.spins}
    rounds = max(1, args.rounds // 2)
    with tempfile.TemporaryDirectory() as name:
        many, few = Path(name) / "many", Path(name) / "few"
        write_drawings(many, train=2400, test=12)
        write_drawings(few, train=600, test=12)
        if not args.beside_only:
            compare("two epochs of 1,600 images, idle cores", partial(train, many), ways, args.rounds, 1.02)
        with busy_cores():
            compare("two epochs of 400 images, a program on each core", partial(train, few), ways, rounds, 0.5)
        compare("two trainings of 400 images beside each other", partial(train_two, few), ways, rounds, 0.5)
    return 0


def compare(
    title: str,
    work: Callable[[dict[str, str]], tuple[float, str]],
    ways: dict[str, dict[str, str]],
    rounds: int,
    limit: float,
) -> None:
    """The ways of waiting in turns; raises BrokenError where they give other weights."""
    hashes: set[str] = set()

    def seconds(waiting: dict[str, str]) -> float:
        took, digest = work(waiting)
        hashes.add(digest)
        return took

    sides = {name: partial(seconds, waiting) for name, waiting in ways.items()}
    judge("P14", title, "ours", in_turns(sides, rounds, warm=limit > 1), {"libgomp's default": limit})
    if len(hashes) > 1:
        raise BrokenError(f"{title}: the weights differ with the way of waiting, {', '.join(sorted(hashes))}")


if __name__ == "__main__":
    run(main)
