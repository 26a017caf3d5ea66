"""Faults while training: signals, numbers that are none, memory and disks that are full."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from test_processes import LAUNCH
from test_train import losses, start, weights_hash

import train
from creature.learning import checkpoint, loop
from creature.terminal import UserError

ROOT = Path(__file__).parent.parent
LONG = ("folds.train=[0]", "schedule.epochs=60")


@pytest.fixture(scope="module")
def long(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty epochs without an interruption."""
    out = tmp_path_factory.mktemp("long") / "run"
    assert start(tiny, out, *LONG) == 0
    return out


def program(tiny: Path, out: Path, *launcher: str) -> subprocess.Popen[str]:
    words = [word for setting in LONG for word in ("--set", setting)]
    return subprocess.Popen(
        [*(launcher or (sys.executable,)), "train.py", "--recipe", str(tiny), "--out", str(out), *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_epoch(running: subprocess.Popen[str]) -> None:
    """Until the third line of the table."""
    assert running.stdout
    for line in running.stdout:
        if line.split()[:1] == ["3"]:
            return
    pytest.fail("it ended before its third epoch")


def finish(tiny: Path, out: Path, long: Path) -> None:
    assert start(tiny, out, *LONG, resume=True) == 0
    assert weights_hash(out / "fold-0") == weights_hash(long / "fold-0")
    assert losses(out / "fold-0") == losses(long / "fold-0")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_and_ends_with_75_and_resume_is_bitwise_equal(tiny, long, tmp_path, name):
    running = program(tiny, tmp_path / "run")
    wait_for_epoch(running)
    began = time.monotonic()
    os.killpg(running.pid, getattr(signal, name))
    shown = running.communicate(timeout=60)[0]
    assert running.returncode == 75, shown
    assert time.monotonic() - began < 10 and "Traceback" not in shown
    assert f"{name}: saving and leaving" in shown and "--resume goes on" in shown
    state = json.loads((sorted((tmp_path / "run/fold-0/state").iterdir())[-1] / "state.json").read_text())
    assert state["epoch"] >= 3
    finish(tiny, tmp_path / "run", long)


def test_the_death_of_the_launcher_ends_its_child_saved(tiny, long, tmp_path):
    running = program(tiny, tmp_path / "run", *LAUNCH, "--num_processes", "1")
    wait_for_epoch(running)
    running.kill()
    shown = running.communicate(timeout=60)[0]
    FileLock(tmp_path / "run/fold-0/fold.lock").acquire(timeout=10).lock.release()  # held as long as an orphan lives
    assert "SIGTERM: saving and leaving" in shown and "--resume goes on" in shown
    finish(tiny, tmp_path / "run", long)


def test_a_signal_while_predicting_loses_no_step(tiny, run, tmp_path, monkeypatch):
    predict, asked = loop.predict, []

    def asks(*words):
        if len(asked) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        asked.append(1)
        return predict(*words)

    monkeypatch.setattr(loop, "predict", asks)
    with pytest.raises(train.Interrupted, match="--resume goes on"):
        start(tiny, tmp_path / "run", "folds.train=[0]")
    monkeypatch.undo()
    state = json.loads((sorted((tmp_path / "run/fold-0/state").iterdir())[-1] / "state.json").read_text())
    assert (state["epoch"], state["batch"]) == (1, 3)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert start(tiny, tmp_path / "run", "folds.train=[0]", resume=True) == 0
    assert weights_hash(tmp_path / "run/fold-0") == weights_hash(run / "fold-0")


# Numbers


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_changes_nothing(tiny, tmp_path, monkeypatch, capsys, what):
    step, seen = loop.train_step, []

    def spoilt(accelerator, learner, *words):
        before = [value.clone() for value in learner.model.state_dict().values()]
        state = [v.clone() for slots in learner.optimizer.state.values() for v in slots.values()]
        row_loss, bad = learner.row_loss, len(seen) == 1
        if bad and what == "loss":
            object.__setattr__(learner, "row_loss", lambda *both: row_loss(*both) * float("nan"))
        if bad and what == "gradient":
            next(learner.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        done = step(accelerator, learner, *words)
        object.__setattr__(learner, "row_loss", row_loss)
        next(learner.model.parameters())._backward_hooks = None
        after = list(learner.model.state_dict().values())
        same = all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        kept = [v for slots in learner.optimizer.state.values() for v in slots.values()]
        same &= all(torch.equal(one, other) for one, other in zip(state, kept, strict=False))
        seen.append((done.taken, same))
        return done

    monkeypatch.setattr(loop, "train_step", spoilt)
    assert start(tiny, tmp_path / "run", "folds.train=[0]") == 0
    assert seen == [(True, False), (False, True), (True, False), *[(True, False)] * 3]
    history = [json.loads(line) for line in (tmp_path / "run/fold-0/history.jsonl").read_text().splitlines()]
    assert [row["skipped_steps"] for row in history] == [1, 0]
    assert "step 2 of epoch 1 is skipped" in capsys.readouterr().err


def test_ten_skipped_steps_in_a_row_end_the_run_and_name_pictures(tiny, tmp_path, monkeypatch):
    step = loop.train_step
    spoilt = lambda *words: step(*words)._replace(loss=float("nan"), taken=False)  # noqa: E731
    monkeypatch.setattr(loop, "train_step", spoilt)
    with pytest.raises(UserError, match=r"10 steps in a row were skipped.*the last on train/\w+/\d+\.jpg"):
        start(tiny, tmp_path / "run", "folds.train=[0]", "batch_size=4")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, value):
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = value
    with pytest.raises(UserError, match="1 tensors of the model, such as weight, hold values that are no"):
        checkpoint.save_weights(tmp_path / "m.safetensors", model)
    assert not (tmp_path / "m.safetensors").exists()


def test_too_little_memory_names_a_way_out(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(loop, "_backward", full)
    with pytest.raises(UserError, match="out of memory with batch_size 16 in 1 part: --set accumulate=2 computes"):
        start(tiny, tmp_path / "run", "folds.train=[0]")


# Disks


def test_a_full_disk_is_one_sentence_and_keeps_the_resume_point_before_it(tiny, run, tmp_path):
    settings = ("folds.train=[0]", "checkpoint.every_minutes=0")
    out, done = tmp_path / "run", []
    publish = checkpoint.publish

    def fills_up(folder, write):
        done.append(folder)
        if len(done) < 3:
            return publish(folder, write)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            return publish(folder, write)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "publish", fills_up)
        with pytest.raises(UserError, match=r"step-00000003: cannot be written: .*free space.* --resume goes on"):
            start(tiny, out, *settings)
    assert [path.name for path in (out / "fold-0/state").iterdir() if not path.name.startswith("step")] == []
    assert all(checkpoint.verifies(path) for path in (out / "fold-0/state").iterdir())
    assert start(tiny, out, *settings, resume=True) == 0
    assert weights_hash(out / "fold-0") == weights_hash(run / "fold-0")


def test_a_log_that_cannot_be_written_ends_no_training(tiny, run, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_history", full)
    assert start(tiny, tmp_path / "run", "folds.train=[0]") == 0
    assert weights_hash(tmp_path / "run/fold-0") == weights_hash(run / "fold-0")
    assert "history.jsonl: No space left on device" in capsys.readouterr().err
