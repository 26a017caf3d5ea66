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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from sides import ROOT, in_turns, judge

from creature.console import run, say
from creature.device import usable_cores
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


def train_two(drawn: Path, waiting: dict[str, str]) -> float:
    """Mean seconds of the steps of two trainings that run beside each other."""
    seconds: list[float] = []
    threads = [Thread(target=lambda: seconds.append(train(drawn, waiting)[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(seconds) / 2


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
    hashes: set[str] = set()
    with tempfile.TemporaryDirectory() as name:
        drawn = Path(name)
        write_drawings(drawn)

        def seconds(waiting: dict[str, str]) -> float:
            took, digest = train(drawn, waiting)
            hashes.add(digest)
            return took

        sides = {"patient": lambda: seconds(PATIENT), "spinning": lambda: seconds(SPINNING)}
        if not args.beside_only:
            judge("P13", "two epochs, idle cores", "patient", in_turns(sides, args.rounds), {"spinning": 1.02})
        with busy_cores():
            beside = in_turns(sides, max(1, args.rounds // 2), warm=False)
        judge("P13", "two epochs, a program on each core", "patient", beside, {"spinning": 0.5})
        two = {"patient": lambda: train_two(drawn, PATIENT), "spinning": lambda: train_two(drawn, SPINNING)}
        together = in_turns(two, max(1, args.rounds // 2), warm=False)
        judge("P13", "two trainings beside each other", "patient", together, {"spinning": 0.5})
    say("the weights are the same" if len(hashes) == 1 else f"the weights differ: {hashes}")
    return 0 if len(hashes) == 1 else 1


if __name__ == "__main__":
    run(main)
