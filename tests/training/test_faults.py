"""Faults while training: signals, numbers that are none, memory and disks that are full."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock
from PIL import Image

from creature.data import fork_server
from creature.errors import BrokenError, Interrupted, UserError
from creature.recipe import Optimizer
from creature.training import checkpoint, distributed, loop, run_folder, signals
from creature.training.optimizer import build_optimizer, parameter_groups
from helpers import ROOT, faults
from helpers.processes import LAUNCH, wait_for_epoch
from helpers.runs import losses, read_history, start, weights_hash

LONG = ("folds.train=[0]", "schedule.epochs=30")


@pytest.fixture(scope="module")
def long(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty epochs without an interruption."""
    out = tmp_path_factory.mktemp("long") / "run"
    assert start(tiny, out, *LONG) == 0
    return out


def program(tiny: Path, out: Path, *launcher: str) -> subprocess.Popen[str]:
    """A training of thirty epochs, with a worker."""
    words = [word for setting in (*LONG, "images.workers=1") for word in ("--set", setting)]
    return subprocess.Popen(
        [*(launcher or (sys.executable,)), "train.py", "--recipe", str(tiny), "--out", str(out), *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finish(tiny: Path, out: Path, long: Path) -> None:
    assert start(tiny, out, *LONG, resume=True) == 0
    assert weights_hash(out / "fold-0") == weights_hash(long / "fold-0")
    assert losses(out / "fold-0") == losses(long / "fold-0")


@pytest.mark.parametrize(
    ("name", "send"), [("SIGTERM", os.killpg), ("SIGINT", os.killpg), ("SIGUSR1", os.kill), ("SIGTERM", os.kill)]
)
def test_a_signal_saves_and_ends_with_75_and_resume_is_bitwise_equal(tiny, long, tmp_path, name, send):
    running = program(tiny, tmp_path / "run")
    wait_for_epoch(running)
    send(running.pid, getattr(signal, name))
    shown = running.communicate(timeout=60)[0]
    assert running.returncode == 75, shown
    assert "Traceback" not in shown
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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_within_a_step_saves_that_step(tiny, tmp_path, monkeypatch, name):
    faults.signal_at_step(monkeypatch, 4, signal.Signals[name])
    with pytest.raises(Interrupted, match="after step 2 of epoch 2 of fold 0, and saved"):
        start(tiny, tmp_path / "run", "folds.train=[0]")  # the request is seen by the step after it
    state = json.loads((sorted((tmp_path / "run/fold-0/state").iterdir())[-1] / "state.json").read_text())
    assert (state["epoch"], state["batch"]) == (1, 2)


def test_a_signal_before_anything_is_read_leaves_with_75_too(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "start_accelerator", lambda *_, **__: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(Interrupted, match="--resume goes on"):
        start(tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists() and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_start_that_failed_leaves_no_recipe_behind(tiny, tmp_path):
    with pytest.raises(UserError, match=r"folds[.]group"):
        start(tiny, tmp_path / "run", "folds.group=site(")
    assert start(tiny, tmp_path / "run", "folds.train=[0]") == 0


def test_a_signal_while_predicting_loses_no_step(tiny, run, tmp_path, monkeypatch, capsys):
    faults.at_prediction(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="--resume goes on"):
        start(tiny, tmp_path / "run", "folds.train=[0]")
    monkeypatch.undo()
    state = json.loads((sorted((tmp_path / "run/fold-0/state").iterdir())[-1] / "state.json").read_text())
    assert (state["epoch"], state["batch"]) == (1, 3)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert start(tiny, tmp_path / "run", "folds.train=[0]", resume=True) == 0
    assert "it goes on after step 3 of epoch 2" in capsys.readouterr().out
    assert weights_hash(tmp_path / "run/fold-0") == weights_hash(run / "fold-0")


def test_a_failure_while_predicting_loses_no_step(tiny, run, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        faults.fail_in(patch, loop, "predict", ZeroDivisionError)
        with pytest.raises(ZeroDivisionError):
            start(tiny, tmp_path / "run", "folds.train=[0]")
    with pytest.MonkeyPatch.context() as patch:
        steps = faults.note_calls(patch, loop, "train_step")
        assert start(tiny, tmp_path / "run", "folds.train=[0]", resume=True) == 0
    assert len(steps) == 3  # those of the second epoch
    assert weights_hash(tmp_path / "run/fold-0") == weights_hash(run / "fold-0")


# Numbers


def hold_out(picture: Path, folder: Path) -> None:
    """The image in a file of other content, for what is trained on is not held out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / picture.name).write_bytes(picture.read_bytes() + b"\0")


def test_every_number_of_images_trains_and_one_alone_is_refused(tiny, drawn, tmp_path):
    pictures = [sorted((drawn / "train" / species).iterdir()) for species in ("fish", "bird")]
    for picture in (picture for species in pictures for picture in species):
        hold_out(picture, tmp_path / "validation" / picture.parent.name)
    for n in range(2, 10):  # batches of 4: a last one of 1 joins the one before it
        folder = tmp_path / f"{n}/train"
        for picture in [*pictures[0][: n - n // 2], *pictures[1][: n // 2]]:
            (folder / picture.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, folder / picture.parent.name / picture.name)
        settings = ("folds.count=1", f"images.train=[{folder}]", f"images.validation=[{tmp_path / 'validation'}]")
        assert start(tiny, tmp_path / f"run-{n}", *settings, "batch_size=4", "augment.mix=mixup") == 0
        history = [json.loads(line) for line in (tmp_path / f"run-{n}/fold-0/history.jsonl").read_text().splitlines()]
        assert len(history) == 2 and all(np.isfinite(row["loss"]) for row in history)
    for species in ("fish", "bird"):
        (tmp_path / "two" / species).mkdir(parents=True)
    shutil.copyfile(pictures[0][0], tmp_path / "two/fish/1.jpg")
    shutil.copyfile(pictures[1][0], tmp_path / "two/bird/1.jpg")
    alone = (f"images.train=[{tmp_path / 'two'}]", "folds.count=2")
    with pytest.raises(UserError, match="fewer than 2 to train on; add images"):
        start(tiny, tmp_path / "run-1", *alone)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize(("method", "scaled"), [("adamw", False), ("sgd", False), ("adamw", True)])
def test_a_step_that_is_not_finite_is_skipped_and_changes_nothing(
    tiny, tmp_path, monkeypatch, capsys, what, method, scaled
):
    scalers = faults.scale_losses(monkeypatch, 2.0**10) if scaled else []
    spoil = faults.spoil_loss_at_step if what == "loss" else faults.spoil_gradient_at_step
    spoil(monkeypatch, 2)
    seen = []

    def compared(step: faults.Step, take: faults.TakeStep) -> torch.Tensor:
        learner = step.learner
        before = [value.clone() for value in learner.model.state_dict().values()]
        state = [v.clone() for slots in learner.optimizer.state.values() for v in slots.values()]
        packed = take()
        after = list(learner.model.state_dict().values())
        same = all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        kept = [v for slots in learner.optimizer.state.values() for v in slots.values()]
        same &= all(torch.equal(one, other) for one, other in zip(state, kept, strict=False))
        seen.append((loop.StepResult.unpack([packed])[0].taken, same))
        return packed

    faults.replace_steps(monkeypatch, compared)
    assert start(tiny, tmp_path / "run", "folds.train=[0]", f"optimizer.name={method}") == 0
    mended = scaled and what == "gradient"  # an overflow is the scaler's affair
    assert seen == [(True, False), (mended, True), (True, False), *[(True, False)] * 3]
    history = [json.loads(line) for line in (tmp_path / "run/fold-0/history.jsonl").read_text().splitlines()]
    assert [row["skipped_steps"] for row in history] == [int(not mended), 0]
    assert ("step 2 of epoch 1 is skipped" in capsys.readouterr().err) != mended
    assert [scaler.get_scale() for scaler in scalers] == [2.0**9] * scaled


def test_a_scaled_loss_gives_the_same_weights(tiny, run, tmp_path, monkeypatch):
    faults.scale_losses(monkeypatch, 2.0**10)
    assert start(tiny, tmp_path / "run", "folds.train=[0]") == 0
    assert weights_hash(tmp_path / "run/fold-0") == weights_hash(run / "fold-0")


@pytest.mark.parametrize("method", ["adamw", "sgd"])
def test_a_first_step_that_is_skipped_leaves_the_optimizer_as_new(method):
    settings, actual = Optimizer(name=method, lr=0.1), []
    for skips in (0, 1):
        model = torch.nn.Linear(3, 3)
        for parameter in model.parameters():
            torch.nn.init.ones_(parameter)
        optimizer = build_optimizer(parameter_groups(model, settings), settings)
        for bad in [1.0] * skips + [0.0, 0.0]:
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.3 if not bad else float("nan"))
            optimizer.found_inf = torch.tensor(bad)  # type: ignore[attr-defined]
            optimizer.step()
        state = [value for slots in optimizer.state.values() for value in slots.values()]
        actual.append([*(parameter.detach() for parameter in model.parameters()), *state])
    assert len(actual[0]) > 2 and all(torch.equal(one, other) for one, other in zip(*actual, strict=True))


def test_steps_that_are_read_several_at_once_are_the_same_steps(tiny, tmp_path, monkeypatch):
    """Weights and history, with a skipped step, though the device is asked once in five steps."""
    settings = ("folds.train=[0]", "batch_size=4", "images.workers=1")
    epoch, save_state, reads, saves = loop.train_epoch, checkpoint.save_state, [], []

    def counted(*args, **options):
        with pytest.MonkeyPatch.context() as patch:
            names = ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy")
            calls = [faults.note_calls(patch, torch.Tensor, name) for name in names]
            epoch(*args, **options)
        reads.append(sum(map(len, calls)))

    def saved(folder, snapshot):
        saves.append(snapshot.state.batch)
        save_state(folder, snapshot)

    with pytest.MonkeyPatch.context() as patch:
        faults.spoil_loss_at_step(patch, 3)
        assert start(tiny, tmp_path / "one", *settings) == 0
    monkeypatch.setattr(loop, "steps_per_read", lambda _: 5)
    monkeypatch.setattr(checkpoint, "save_state", saved)
    for name, minutes in (("five", 60), ("often", 0)):
        with pytest.MonkeyPatch.context() as patch:
            faults.spoil_loss_at_step(patch, 3)
            steps = faults.note_calls(patch, loop, "train_step")
            if name == "five":
                patch.setattr(loop, "train_epoch", counted)
            assert start(tiny, tmp_path / name, *settings, f"checkpoint.every_minutes={minutes}") == 0
        assert len(steps) == 2 * 12
    assert reads == [3, 3]  # after 5, 10 and 12 steps of an epoch
    assert saves == [0, 0, *[5, 10, 12, 0] * 2]
    rows = [read_history(tmp_path / name / "fold-0") for name in ("one", "five")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert [row["skipped_steps"] for row in rows[0]] == [row["skipped_steps"] for row in rows[1]] == [1, 0]
    assert len({weights_hash(tmp_path / name / "fold-0") for name in ("one", "five", "often")}) == 1


@pytest.mark.parametrize("every", [1, 4])
def test_however_many_steps_are_read_at_once_a_signal_and_ten_skipped_are_told_alike(
    tiny, tmp_path, monkeypatch, every
):
    monkeypatch.setattr(loop, "steps_per_read", lambda _: every)
    with pytest.MonkeyPatch.context() as patch:
        faults.signal_at_step(patch, 2, signal.SIGTERM)
        with pytest.raises(Interrupted, match="after step 3 of epoch 1 of fold 0, and saved"):
            start(tiny, tmp_path / "run", "folds.train=[0]", "batch_size=4")
    seen = faults.skip_steps(monkeypatch)
    with pytest.raises(UserError) as caught:
        start(tiny, tmp_path / "ten", "folds.train=[0]", "batch_size=4")
    assert f"the last on {', '.join(seen[9])}; try a lower" in str(caught.value)


def test_ten_skipped_steps_in_a_row_end_the_run_and_name_pictures(tiny, tmp_path, monkeypatch):
    faults.skip_steps(monkeypatch)
    with pytest.raises(UserError, match=r"10 steps in a row were skipped.*the last on train/\w+/\d+\.jpg"):
        start(tiny, tmp_path / "run", "folds.train=[0]", "batch_size=4")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_saved(value):
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = value
    with pytest.raises(UserError, match="1 tensors of the model, such as weight, hold values that are no"):
        checkpoint.host_weights(model)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no room"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")],
)
def test_too_little_memory_names_a_way_out(tiny, tmp_path, monkeypatch, error):
    faults.fail_in_loss(monkeypatch, error)
    with pytest.raises(
        UserError,
        match="out of memory with batch_size 16 in 1 micro-batch: --set gradient_accumulation_steps=2 takes less, ",
    ):
        start(tiny, tmp_path / "run", "folds.train=[0]", "gradient_accumulation_steps=1")
    with pytest.raises(UserError, match="out of memory with 2 images at a time: --set backbone"):
        start(tiny, tmp_path / "auto", "folds.train=[0]")


def test_a_batch_that_does_not_fit_is_computed_in_micro_batches(tiny, tmp_path, monkeypatch, capsys):
    settings = ("folds.train=[0]", "augment.mix=mixup", "schedule.epochs=2", "optimizer.ema_decay=0.9")
    start(tiny, tmp_path / "four", *settings, "gradient_accumulation_steps=4")
    assert capsys.readouterr().err.count("4 micro-batches a step, and BatchNorm's statistics are of each") == 1
    with monkeypatch.context() as patch:
        faults.fail_in_loss(patch, torch.OutOfMemoryError("no room"), room=4)
        faults.ask_at_step(patch, 3, stop=True)
        with pytest.raises(Interrupted):
            start(tiny, tmp_path / "auto", *settings)
    assert "16 images at once do not fit into the memory; each step takes 4 micro-batches" in capsys.readouterr().err
    start(tiny, tmp_path / "auto", *settings, resume=True)  # it knows, though memory would do now
    four, auto = (tmp_path / name / "fold-0/model.safetensors" for name in ("four", "auto"))
    assert auto.read_bytes() == four.read_bytes()


def test_how_many_micro_batches_fit_is_found_once_for_all_folds(tiny, tmp_path, monkeypatch, capsys):
    faults.fail_in_loss(monkeypatch, torch.OutOfMemoryError("no room"), room=8)
    start(tiny, tmp_path / "run", "folds.train=[0,1]", "schedule.epochs=1")
    assert capsys.readouterr().err.count("do not fit into the memory") == 1


# Decoders that kill


def test_a_picture_that_kills_its_worker_is_named(tiny, drawn, tmp_path, monkeypatch):
    shutil.copytree(drawn / "train", tmp_path / "train")  # or an index might know that all of them were decoded
    victim = sorted((tmp_path / "train/fish").iterdir())[0]
    Image.open(victim).resize((40, 33)).save(victim)
    settings = ("images.workers=2", f"images.train=[{tmp_path / 'train'}]")
    message = rf"^train/fish/{victim.name}: a process that decodes died; remove or"
    with monkeypatch.context() as patch, pytest.raises(BrokenError, match=message):
        faults.kill_at_check(patch, f"train/fish/{victim.name}")
        start(tiny, tmp_path / "scan", *settings)
    faults.kill_at_size(monkeypatch, (40, 33))
    with pytest.raises(BrokenError, match=message):
        start(tiny, tmp_path / "training", *settings)


# Workers


@pytest.mark.parametrize("method", [fork_server.START_METHOD, "spawn", "fork"])
def test_a_run_starts_its_workers_once_and_their_number_and_start_change_no_bit(
    tiny, run, tmp_path, monkeypatch, method
):
    monkeypatch.setattr(fork_server, "START_METHOD", method)
    short = ("images.workers=2", "folds.train=[0]", "schedule.epochs=1")
    assert start(tiny, tmp_path / "first", *short) == 0  # it checks the images, in processes of their own
    started = faults.note_calls(monkeypatch, BaseProcess, "start")
    assert start(tiny, tmp_path / "short", *short) == 0
    assert len(started) == 2
    assert start(tiny, tmp_path / "whole", "images.workers=2") == 0
    assert len(started) == 4
    assert [weights_hash(tmp_path / f"whole/fold-{k}") for k in range(3)] == [
        weights_hash(run / f"fold-{k}") for k in range(3)
    ]


def test_a_killed_training_leaves_no_process_behind(tiny, tmp_path):
    running = program(tiny, tmp_path / "run")
    wait_for_epoch(running)
    children = psutil.Process(running.pid).children(recursive=True)
    assert len(children) >= 2  # a worker and what started it
    running.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    for process in alive:
        process.kill()
    running.communicate()
    assert not alive


# Disks


def test_a_full_disk_is_one_sentence_and_keeps_the_resume_point_before_it(tiny, run, tmp_path):
    settings = ("folds.train=[0]", "checkpoint.every_minutes=0")
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        faults.fill_disk_at_folder(patch, 3)
        with pytest.raises(BrokenError, match=r"step-00000003: cannot be written: .*free space.* --resume goes on"):
            start(tiny, out, *settings)
    assert [path.name for path in (out / "fold-0/state").iterdir() if not path.name.startswith("step")] == []
    assert all(checkpoint.verifies(path) for path in (out / "fold-0/state").iterdir())
    assert start(tiny, out, *settings, resume=True) == 0
    assert weights_hash(out / "fold-0") == weights_hash(run / "fold-0")


def test_a_log_that_cannot_be_written_ends_no_training(tiny, run, tmp_path, monkeypatch, capsys):
    faults.fail_in(monkeypatch, checkpoint, "write_history", OSError(errno.ENOSPC, "No space left on device"))
    assert start(tiny, tmp_path / "run", "folds.train=[0]") == 0
    assert weights_hash(tmp_path / "run/fold-0") == weights_hash(run / "fold-0")
    assert "history.jsonl: No space left on device" in capsys.readouterr().err


# At every operation


def faults_lose_nothing(tiny: Path, folder: Path, fault: str, moments: list[float]) -> None:
    """No fault of the list leaves a run that cannot go on to the weights of an uninterrupted one."""
    killing = str(ROOT / "tests/helpers/killing.py")
    done = subprocess.run(
        [sys.executable, killing, str(tiny), str(folder / "faults"), fault, json.dumps(moments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and json.loads(done.stdout) == [], done.stdout + done.stderr


def test_a_killed_run_goes_on_to_the_same_weights(tiny, tmp_path):
    faults_lose_nothing(tiny, tmp_path, "kill", [*range(0, 200, 14), *range(200, 232, 4), 0.2, 0.4, 0.6])


@pytest.mark.full
def test_every_kill_of_a_run_goes_on_to_the_same_weights(tiny, tmp_path):
    random = np.random.default_rng(0).uniform(0.05, 1.5, 200).round(3).tolist()
    faults_lose_nothing(tiny, tmp_path, "kill", [*range(240), *random])


def test_a_disk_that_fills_up_is_one_sentence_and_loses_nothing(tiny, tmp_path):
    faults_lose_nothing(tiny, tmp_path, "full", list(range(0, 160, 11)))


@pytest.mark.full
def test_a_disk_that_fills_up_at_any_operation_is_one_sentence_and_loses_nothing(tiny, tmp_path):
    faults_lose_nothing(tiny, tmp_path, "full", list(range(170)))


# Rotten checkpoints, locks


def spoil(folder: Path, random: np.random.Generator) -> str:
    """Flip a bit, truncate or remove; of any file of a published folder."""
    path = folder / random.choice(sorted(path.name for path in folder.iterdir()))
    data, kind = bytearray(path.read_bytes()), random.choice(["flip", "cut", "remove", "empty"])
    if kind == "flip":
        data[random.integers(len(data))] ^= 1 << random.integers(8)
    path.write_bytes(data[: random.integers(len(data))] if kind == "cut" else b"" if kind == "empty" else data)
    if kind == "remove":
        path.unlink()
    return f"{kind} {path.name}"


def rot(tmp_path: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(count):
        with checkpoint.write_folder_atomically(tmp_path / "step") as part:
            (part / "model.safetensors").write_bytes(random.bytes(5000))
            (part / "optimizer.safetensors").write_bytes(random.bytes(300))
            (part / "state.json").write_text(json.dumps({"epoch": 3, "batch": 1}))
        assert checkpoint.verifies(tmp_path / "step")
        what = spoil(tmp_path / "step", random)
        # A flipped bit within the manifest's white space changes nothing that it says.
        if checkpoint.verifies(tmp_path / "step"):
            assert what == "flip manifest.json"


def test_rot_is_detected(tmp_path):
    rot(tmp_path, 40)


@pytest.mark.full
def test_rot_is_always_detected(tmp_path):
    rot(tmp_path, 500)


def test_what_is_no_resume_point_of_ours_is_stepped_over(tiny, run, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        faults.replace_steps(patch, lambda step, take: take(stop=step.number == 5, save=True))
        with pytest.raises(Interrupted):
            start(tiny, tmp_path / "run", "folds.train=[0]")
    newest = sorted((tmp_path / "run/fold-0/state").iterdir())[-1]
    for path in newest.iterdir():
        path.unlink()
    (newest / "manifest.json").write_text("{}")
    (newest.parent / "step-00000101").write_text("a file")
    assert start(tiny, tmp_path / "run", "folds.train=[0]", resume=True) == 0
    assert weights_hash(tmp_path / "run/fold-0") == weights_hash(run / "fold-0")


def test_of_twenty_that_start_at_once_one_wins(tmp_path):
    """Each child tries once all are there, says how it went, and the winner holds on until all have tried."""
    ready, go, output, leave = (os.pipe() for _ in range(4))
    children = []
    for _ in range(20):
        if child := os.fork():
            children.append(child)
            continue
        os.write(ready[1], b".")
        os.read(go[0], 1)
        try:
            with run_folder.lock_fold(tmp_path / "fold-0"):
                os.write(output[1], b"w")
                os.read(leave[0], 1)
        except UserError as error:
            os.write(output[1], b"l" if "is being trained by process" in str(error) else b"?")
        os._exit(0)
    for _ in children:
        os.read(ready[0], 1)
    os.write(go[1], b"." * 20)
    words = b"".join(os.read(output[0], 1) for _ in children)
    os.write(leave[1], b"." * 20)  # or all would hang where more than one had won
    for child in children:
        os.waitpid(child, 0)
    assert sorted(words) == sorted(b"w" + b"l" * 19)
    with run_folder.lock_fold(tmp_path / "fold-0"):
        pass


def test_folds_side_by_side_do_not_stop_each_other_and_resume_trains_what_is_missing(tiny, long, tmp_path):
    out = tmp_path / "run"
    words = ["--recipe", str(tiny), "--out", str(out), "--set", LONG[1], "--set"]
    both = [
        subprocess.Popen(
            [sys.executable, "train.py", *words, f"folds.train=[{k}]"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for k in (0, 1)
    ]  # fmt: skip
    wait_for_epoch(both[0])
    both[0].kill()
    both[0].communicate()
    shown = both[1].communicate(timeout=120)[0]
    assert both[1].returncode == 0 and not (out / "fold-0/result.json").exists(), shown
    before = (out / "fold-1/result.json").stat().st_mtime_ns
    assert start(tiny, out, LONG[1], "folds.train=[0,1]", resume=True) == 0
    assert weights_hash(out / "fold-0") == weights_hash(long / "fold-0")
    assert (out / "fold-1/result.json").stat().st_mtime_ns == before


def test_a_second_signal_ends_at_once_and_a_burst_is_one(monkeypatch, capsys):
    sent = []
    monkeypatch.setattr(os, "kill", lambda *what: sent.append(what))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    stop = signals.Stop()
    stop.at_once = False
    for _ in range(3):
        stop(signal.SIGTERM, None)
    assert stop.asked and not sent and capsys.readouterr().out.count("saving and leaving") == 1
    stop.asked_at -= 1
    stop(signal.SIGTERM, None)
    assert sent == [(os.getpid(), signal.SIGTERM)]
