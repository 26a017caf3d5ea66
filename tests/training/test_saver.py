"""Checkpoints that are written while the training goes on."""

from threading import Event

import pytest

from creature.errors import BrokenError, Interrupted
from creature.training import checkpoint
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


def test_an_epoch_that_cannot_be_written_ends_the_training_at_the_next_one(tiny, run, tmp_path):
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        faults.before_steps(patch, steps.append)
        faults.fill_disk_at_folder(patch, 1)
        with pytest.raises(BrokenError, match=r"epoch-0001: cannot be written: .* --resume goes on"):
            start(tiny, tmp_path / "run", "folds.train=[0]", "checkpoint.every_epochs=1", "schedule.epochs=3")
    assert len(steps) <= 2 * 3
    assert start(tiny, tmp_path / "run", "folds.train=[0]", "schedule.epochs=3", resume=True) == 0


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
