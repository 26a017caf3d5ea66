"""Checkpoints that are written while the training goes on."""

import json
import shutil
from contextlib import contextmanager
from threading import Event

import pytest
from accelerate import Accelerator

from creature.errors import BrokenError, Interrupted, UserError
from creature.training import checkpoint
from creature.training.learner import Learner
from helpers import faults
from helpers.runs import start, weights_hash

WAIT = 60  # seconds, after which a test fails


def test_steps_go_on_while_an_epoch_is_written(tiny, run, tmp_path, monkeypatch):
    begun, keep = Event(), checkpoint.keep_epoch

    def slow(folder, snapshot, predictions, *, settings):
        # The first epoch is on disk only after the second has changed the weights twice.
        assert snapshot.last or begun.wait(WAIT), "no step is taken while an epoch is written"
        keep(folder, snapshot, predictions, settings=settings)

    monkeypatch.setattr(checkpoint, "keep_epoch", slow)
    faults.before_steps(monkeypatch, lambda step: begun.set() if step.number == 3 + 3 else None)
    settings = ("folds.train=[0]", "checkpoint.every_epochs=1")
    assert start(tiny, tmp_path / "slow", *settings) == 0
    monkeypatch.undo()
    assert start(tiny, tmp_path / "fast", *settings) == 0
    for name in ("kept/epoch-0001/model.safetensors", "kept/epoch-0001/held_out.safetensors", "model.safetensors"):
        assert (tmp_path / "slow/fold-0" / name).read_bytes() == (tmp_path / "fast/fold-0" / name).read_bytes()


def test_an_epoch_that_cannot_be_written_ends_the_training_at_once(tiny, tmp_path):
    steps, failed, write = [], Event(), checkpoint.write_folder_atomically

    @contextmanager
    def fails(folder):
        try:
            with faults.file_size_limit(20_000), write(folder) as temporary:
                yield temporary
        finally:
            failed.set()

    def note(step):
        assert step.number <= 24 or failed.wait(WAIT)
        steps.append(step.number)

    settings = ("folds.train=[0]", "batch_size=2", "schedule.epochs=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_folder_atomically", fails)
        faults.before_steps(patch, note)
        with pytest.raises(BrokenError, match=r"cannot be written: .* --resume goes on"):
            start(tiny, tmp_path / "run", *settings)
    assert 24 < len(steps) < 2 * 24  # it is noticed while the next epoch's steps go on


def test_a_write_that_fails_once_is_tried_again(tiny, run, tmp_path, monkeypatch):
    tries, keep = [], checkpoint.keep_epoch

    def fails_once(*args, **options):
        tries.append(args)
        if len(tries) == 1:
            raise BrokenError("no room")
        keep(*args, **options)

    monkeypatch.setattr(checkpoint, "keep_epoch", fails_once)
    assert start(tiny, tmp_path / "run", "folds.train=[0]") == 0
    assert len(tries) == 3 and weights_hash(tmp_path / "run/fold-0") == weights_hash(run / "fold-0")


def test_a_point_that_was_written_while_steps_went_on_is_of_its_own_epoch(tiny, tmp_path, monkeypatch):
    settings, out = ("folds.train=[0]", "schedule.epochs=3"), tmp_path / "run"
    assert start(tiny, tmp_path / "whole", *settings) == 0
    ended, end_epoch, save_state = Event(), Learner.end_epoch, checkpoint.save_state

    def end(learner, *scores):
        result = end_epoch(learner, *scores)
        if result.epoch == 2:
            ended.set()
        return result

    def slow(folder, snapshot):
        assert ended.wait(WAIT)  # the first epoch is on disk only after the second has ended
        save_state(folder, snapshot)

    def leave(step):
        if step.number == 7:
            raise UserError("the third epoch is not trained")

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "end_epoch", end)
        patch.setattr(checkpoint, "save_state", slow)
        faults.before_steps(patch, leave)
        with pytest.raises(UserError, match="third epoch"):
            start(tiny, out, *settings)
    first, second = sorted((out / "fold-0/state").iterdir())
    shutil.rmtree(second)
    assert json.loads((first / "state.json").read_text())["epoch"] == 1
    assert start(tiny, out, *settings, resume=True) == 0
    assert weights_hash(out / "fold-0") == weights_hash(tmp_path / "whole/fold-0")


def test_no_process_leaves_at_a_stop_before_all_is_on_disk(tiny, tmp_path, monkeypatch):
    point, met, save_state, saved = tmp_path / "run/fold-0/state/step-00000002", Event(), checkpoint.save_state, []

    def slow(folder, snapshot):
        met.wait(1)  # a process that does not wait for the write is at the meeting point long before
        save_state(folder, snapshot)

    def meet(_):
        if steps:
            met.set()
            saved.append(checkpoint.verifies(point))

    steps = []
    monkeypatch.setattr(checkpoint, "save_state", slow)
    monkeypatch.setattr(Accelerator, "wait_for_everyone", meet)
    faults.before_steps(monkeypatch, steps.append)
    faults.stop_after_steps(monkeypatch, 2)
    with pytest.raises(Interrupted, match="and saved"):
        start(tiny, tmp_path / "run", "folds.train=[0]")
    assert saved and all(saved)


def test_a_stop_leaves_when_all_is_on_disk_or_says_that_it_is_not(tiny, run, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        faults.stop_after_steps(patch, 2)
        faults.fill_disk_at_folder(patch, 1)
        with pytest.raises(BrokenError, match="step-00000002: cannot be written"):
            start(tiny, tmp_path / "full", "folds.train=[0]")
    with pytest.MonkeyPatch.context() as patch:
        faults.stop_after_steps(patch, 2)
        with pytest.raises(Interrupted, match="after step 2 of epoch 1 of fold 0, and saved"):
            start(tiny, tmp_path / "run", "folds.train=[0]")
    assert checkpoint.verifies(tmp_path / "run/fold-0/state/step-00000002")
    assert start(tiny, tmp_path / "run", "folds.train=[0]", resume=True) == 0
    assert weights_hash(tmp_path / "run/fold-0") == weights_hash(run / "fold-0")
