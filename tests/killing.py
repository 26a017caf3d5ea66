"""Kill trainings at chosen moments and let them go on: one import, then a fork for each attempt.

python tests/killing.py RECIPE FOLDER KILLS WANTED, where KILLS is a JSON list of file-system operations (counted from
0), or of times in seconds, at which a run is killed; prints a JSON list of what went wrong.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import datasets  # noqa: F401 - imported before the forks, which then cost nothing
import evaluate  # noqa: F401
import sklearn.metrics  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent.parent))

import train
from creature.images import batches, checks, folds, manifest, sources, views  # noqa: F401
from creature.judging import score  # noqa: F401
from creature.learning import checkpoint, setup  # noqa: F401

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")
SETTINGS = ("folds.train=[0]", "checkpoint.every_minutes=0")


def words(recipe: str, out: Path, *more: str) -> list[str]:
    return ["--recipe", recipe, "--out", str(out), *(w for s in SETTINGS for w in ("--set", s)), *more]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_operation(out: Path, number: int) -> list[int]:
    """Die before the given change to the run's folder: open for writing, rename, unlink, mkdir, rmdir, link, fsync."""
    count = [0]

    def changed() -> None:
        if count[0] == number:
            die()
        count[0] += 1

    def hook(event: str, args: tuple) -> None:
        writing = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writing or event in CHANGES) and str(out) in str(args[0]):
            changed()

    fsync = os.fsync

    def synced(handle: int) -> None:
        changed()
        fsync(handle)

    os.fsync = synced
    sys.addaudithook(hook)
    return count


def attempt(recipe: str, out: Path, kill: float | int | None, *more: str) -> int:
    """Train in a fork; its wait status, or where it was not to be killed the number of operations that it made."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    code = 1
    try:
        if isinstance(kill, float):
            threading.Timer(kill, die).start()
        count = kill_at_operation(out, -1 if kill is None or isinstance(kill, float) else kill)
        code = train.main(words(recipe, out, *more))
        (out / "operations").write_text(str(count[0]))
    finally:
        os._exit(code)


def sha(out: Path) -> str:
    return hashlib.sha256((out / "fold-0/model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    recipe, base, kills = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    shutil.rmtree(base, ignore_errors=True)
    whole, wrong = base / "whole", []
    assert attempt(recipe, whole, None) == 0, "the run without a kill failed"
    if kills == "count":
        print((whole / "operations").read_text())
        return
    for kill in kills:
        out = base / "killed"
        shutil.rmtree(out, ignore_errors=True)
        attempt(recipe, out, kill)
        saved = sorted((out / "fold-0/state").glob("step-*[0-9]"))
        finished = (out / "fold-0/result.json").exists()
        if saved and not finished and not any(checkpoint.verifies(folder) for folder in saved):
            wrong.append(f"{kill}: no resume point verifies")
        if attempt(recipe, out, None, "--resume") != 0:
            wrong.append(f"{kill}: cannot go on")
        elif sha(out) != sha(whole):
            wrong.append(f"{kill}: other weights")
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
