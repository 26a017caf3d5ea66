"""P13: what a patient waiting of OpenMP's threads costs on idle cores, and saves beside another program.

python benchmarks/neighbours.py [ROUNDS] [--beside-only]

Short trainings of a tiny network, each a process of its own, in turns: with the scripts' OMP_WAIT_POLICY=PASSIVE, and
with libgomp's own default, under which threads spin (GOMP_SPINCOUNT=300000 is that number, and the scripts leave it as
the environment has it). The time is that of the steps, from history.jsonl, without imports and reading. First with the
cores idle, which nothing but you can see to; then beside a program that computes on each of them without end; then two
trainings beside each other, which wait in the same way. The weights must be the same, bit for bit.
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

PATIENT, SPINNING = {"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "300000"}
SETTINGS = ("folds.train=[0]", "schedule.epochs=2")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # what the environment may say already


def train(drawn: Path, waiting: dict[str, str]) -> tuple[float, str]:
    """Seconds of a training's steps, and the hash of its weights."""
    env = {name: value for name, value in os.environ.items() if name not in WAITING} | waiting
    with tempfile.TemporaryDirectory() as name:
        settings = [f"images.train=[{drawn / 'train'}]", *SETTINGS]
        words = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "train.py", "--recipe", "recipes/quickstart.yaml", "--out", f"{name}/run", *words]
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
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(usable_cores())]
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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        many, few = Path(name) / "many", Path(name) / "few"
        write_drawings(many, train=2400, test=12)
        write_drawings(few, train=600, test=12)
        if not args.beside_only:
            compare("two epochs of 1,600 images, idle cores", partial(train, many), args.rounds, limit=1.02)
        rounds = max(1, args.rounds // 2)
        with busy_cores():
            compare("two epochs of 400 images, a program on each core", partial(train, few), rounds, limit=0.5)
        compare("two trainings of 400 images beside each other", partial(train_two, few), rounds, limit=0.5)
    return 0


def compare(title: str, work: Callable[[dict[str, str]], tuple[float, str]], rounds: int, limit: float) -> None:
    """Both ways of waiting in turns; raises BrokenError where they give other weights."""
    hashes: set[str] = set()

    def seconds(waiting: dict[str, str]) -> float:
        took, digest = work(waiting)
        hashes.add(digest)
        return took

    sides = {"patient": lambda: seconds(PATIENT), "spinning": lambda: seconds(SPINNING)}
    judge("P13", title, "patient", in_turns(sides, rounds, warm=limit > 1), {"spinning": limit})
    if len(hashes) > 1:
        raise BrokenError(f"{title}: the weights differ with the way of waiting, {', '.join(sorted(hashes))}")


if __name__ == "__main__":
    run(main)
