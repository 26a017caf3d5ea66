"""Kill trainings at chosen moments, or fill their disk, and let them go on: one import, then a fork for each attempt.

python tests/helpers/killing.py RECIPE FOLDER FAULT MOMENTS, where FAULT is kill or full (the disk), and MOMENTS a JSON
list of file-system operations (counted from 0), or of times in seconds; prints a JSON list of what went wrong.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import datasets  # noqa: F401 - imported before the forks, which then cost nothing
import evaluate  # noqa: F401
import sklearn.metrics  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[2]))

import train
from creature import console
from creature.data import augment, dataset, folds, loader, scan, sources  # noqa: F401
from creature.metrics import scores  # noqa: F401
from creature.training import checkpoint, train_data  # noqa: F401

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")
SETTINGS = ("folds.train=[0]", "checkpoint.every_minutes=0")


def words(recipe: str, out: Path, *more: str) -> list[str]:
    return ["--recipe", recipe, "--out", str(out), *(w for s in SETTINGS for w in ("--set", s)), *more]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_at_operation(out: Path, fault: Callable[[], None], number: int) -> list[int]:
    """Meet the fault before a change to the folder: open for writing, rename, unlink, mkdir, rmdir, link, fsync."""
    count = [0]

    def changed() -> None:
        count[0] += 1
        if count[0] == number + 1:
            fault()

    def hook(event: str, args: tuple) -> None:
        writing = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        # rmtree names what it removes by its folder's descriptor.
        inside = fault is die and event in ("os.remove", "os.rmdir") and args[1] != -1
        if ((writing or event in CHANGES) and str(out) in str(args[0])) or inside:
            changed()

    fsync = os.fsync

    def synced(handle: int) -> None:
        changed()
        fsync(handle)

    os.fsync = synced
    sys.addaudithook(hook)
    return count


def attempt(recipe: str, out: Path, fault: Callable[[], None], moment: float | int | None, *more: str) -> int:
    """Train in a fork, and leave what it said and counted beside its folder; its wait status."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    message = sys.stderr = io.StringIO()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    console.console.file, console.errors.file = sys.stdout, message
    code = 1
    try:
        if isinstance(moment, float):
            threading.Timer(moment, fault).start()
        save_state = checkpoint.save_state

        def saved(folder: Path, snapshot: checkpoint.Snapshot) -> None:
            save_state(folder, snapshot)
            out.with_suffix(".saved").touch()

        checkpoint.save_state = saved
        count = fail_at_operation(out, fault, -1 if moment is None or isinstance(moment, float) else moment)
        try:
            console.run(lambda: train.main(words(recipe, out, *more)))
        except SystemExit as left:
            code = int(left.code or 0)
        out.with_suffix(".operations").write_text(str(count[0]))
    except BaseException:
        traceback.print_exc()
    finally:
        out.with_suffix(".said").write_text(message.getvalue())
        os._exit(code)


def sha(out: Path) -> str:
    return hashlib.sha256((out / "fold-0/model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    recipe, base, fault, moments = sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    whole, out, wrong = base / "whole", base / "failed", []
    assert attempt(recipe, whole, die, None) == 0, "the run without a fault failed"
    if moments == "count":
        print(whole.with_suffix(".operations").read_text())
        return
    for moment in moments:
        shutil.rmtree(out, ignore_errors=True)
        out.with_suffix(".saved").unlink(missing_ok=True)
        status = attempt(recipe, out, {"kill": die, "full": fill}[fault], moment)
        message = out.with_suffix(".said").read_text() if fault == "full" else ""
        # What ends the run is one sentence; a lost log does not.
        if fault == "full" and (os.waitstatus_to_exitcode(status) not in (0, 2) or "Traceback" in message):
            wrong.append(f"{moment}: {message}")
        if fault == "full" and (left := [str(path) for path in out.rglob(".*")]):
            wrong.append(f"{moment}: left {left}")
        points = sorted((out / "fold-0/state").glob("step-*[0-9]"))
        saved = points or out.with_suffix(".saved").exists()
        finished = (out / "fold-0/result.json").exists()
        if saved and not finished and not any(checkpoint.verifies(folder) for folder in points):
            wrong.append(f"{moment}: no resume point verifies")
        if attempt(recipe, out, die, None, "--resume") != 0:
            wrong.append(f"{moment}: cannot go on: {out.with_suffix('.said').read_text()}")
        elif sha(out) != sha(whole):
            wrong.append(f"{moment}: other weights")
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
