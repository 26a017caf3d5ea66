"""Resume: after every step, by other processes, from rotated, older and foreign folders, and what it costs."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import theilslopes
from torch import nn

from creature.data import loader
from creature.errors import Interrupted
from creature.metrics.accuracy import Count
from creature.metrics.predictions import Predictions
from creature.recipe import Checkpoint, Optimizer
from creature.run import kept_epoch
from creature.training import checkpoint
from creature.training.learner import Learner
from helpers import faults
from helpers.fold_files import folds_rows
from helpers.learners import ALONE, make_learner
from helpers.runs import losses, start, weights_hash

EVERY = ("checkpoint.every_minutes=0", "schedule.epochs=3", "folds.train=[0,1]")


def test_a_run_that_is_stopped_after_every_step_is_bitwise_equal_and_sees_each_row_once(tiny, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start(tiny, whole, *EVERY)
    seen: list[tuple[int, int]] = []
    starts = 0
    for starts in range(1, 40):
        with pytest.MonkeyPatch.context() as patch:
            faults.stop_after_steps(patch, 1)
            faults.note_rows(patch, seen)
            try:
                start(tiny, cut, *EVERY, resume=starts > 1)
            except Interrupted:
                continue
        break
    assert starts == 2 * 3 * 3 + 1  # folds, epochs, steps; and one that finds all of it done
    for fold in (0, 1):
        for name in ("model.safetensors", "held_out.safetensors"):
            assert (cut / f"fold-{fold}" / name).read_bytes() == (whole / f"fold-{fold}" / name).read_bytes()
        assert losses(cut / f"fold-{fold}") == losses(whole / f"fold-{fold}")
    rows = folds_rows(whole)
    folds = [row[2] for row in rows]
    trained_by = {row: sum(fold != folds[row] for fold in (0, 1)) for row in range(len(rows))}
    assert Counter(seen) == {(epoch, row): trained_by[row] for epoch in range(3) for row in trained_by}


def test_resume_decodes_no_picture_that_a_step_has_seen(tiny, tmp_path, monkeypatch):
    settings = ("folds.train=[0]", "schedule.epochs=2", "checkpoint.every_minutes=0")
    faults.start_until_step(5, tiny, tmp_path / "run", *settings)
    decoded = faults.note_calls(monkeypatch, loader, "Encoded")
    assert start(tiny, tmp_path / "run", *settings, resume=True) == 0
    assert len(decoded) == 16 + 24  # the last step of 48 rows in batches of 16, and the held-out rows


def test_resume_with_other_worker_counts_is_bitwise_equal(tiny, run, tmp_path):
    faults.start_until_step(2, tiny, tmp_path / "run", "folds.train=[0]", "images.workers=2")
    faults.start_until_step(2, tiny, tmp_path / "run", "folds.train=[0]", "images.workers=0", resume=True)
    assert start(tiny, tmp_path / "run", "folds.train=[0]", "images.workers=1", resume=True) == 0
    assert weights_hash(tmp_path / "run/fold-0") == weights_hash(run / "fold-0")


def test_what_the_launcher_starts_again_goes_on(tiny, run, tmp_path, monkeypatch):
    faults.start_until_step(2, tiny, tmp_path / "run", "folds.train=[0]")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert start(tiny, tmp_path / "run", "folds.train=[0]") == 0
    assert weights_hash(tmp_path / "run/fold-0") == weights_hash(run / "fold-0")


def test_resume_points_are_as_rare_as_asked_for_and_their_time_is_told(tiny, tmp_path, monkeypatch):
    saves = faults.note_calls(monkeypatch, checkpoint, "save_state")
    start(tiny, tmp_path / "rare", "folds.train=[0]")
    assert len(saves) == 2  # the epochs' ends
    start(tiny, tmp_path / "often", "folds.train=[0]", "checkpoint.every_minutes=0")
    assert len(saves) == 2 + 2 * 3 + 2
    results = [json.loads((tmp_path / name / "fold-0/result.json").read_text()) for name in ("rare", "often")]
    assert 0 < results[0]["saving_seconds"] < results[1]["saving_seconds"]


# Rotation


SGD = Optimizer(name="sgd", lr=0.1)


def small_learner(batch_sizes: Sequence[int]) -> Learner:
    """A linear layer that is trained for 99 epochs."""
    return make_learner(nn.Linear(2, 2), SGD, lambda logits, _: logits.sum(1), batch_sizes=batch_sizes)


def end_epoch(learner: Learner, correct: int) -> None:
    learner.state.seconds = 1.0
    learner.end_epoch(Count(correct, 4))


def rotate(folder: Path, sequences: int) -> None:
    """Random sequences of steps, epochs, saves, kills, rot and resumes, each on a fold of its own.

    After the first save one resume point verifies, always; the best epoch that it names is there; what was
    not written by us stays.
    """
    random = np.random.default_rng(0)
    foreign = ("state/step-final", "state/step-00000003.bak", "state/notes.txt", "kept/epoch-old", "kept/epoch-1")
    for number in range(sequences):
        fold = folder / str(number)
        for name in foreign:
            (fold / name).mkdir(parents=True)
        learner, saved = small_learner(batch_sizes=(4, 4)), None
        keep = Checkpoint(every_epochs=int(random.integers(0, 3)) or None)
        for _ in range(int(random.integers(5, 25))):
            action = random.choice(["step", "step", "step", "step", "save", "kill", "rot"])
            if action == "step":
                learner.state.end_step(1.0, True, 4, ids=[])
                if learner.state.batch == 2:
                    end_epoch(learner, correct=int(random.integers(0, 4)))
                    held = Predictions(
                        ("a",), ("",), np.zeros(1, int), logits=np.zeros((1, 2), np.float32), class_names=("x", "y")
                    )
                    snapshot = checkpoint.take_snapshot(learner, ALONE)
                    checkpoint.keep_epoch(fold, snapshot, held, settings=keep)
                    checkpoint.save_state(fold, snapshot)
                    checkpoint.prune_epochs(fold, snapshot.state, keep)
                    saved = (learner.state.epoch, learner.state.batch)
            elif action == "save":
                checkpoint.save_state(fold, checkpoint.take_snapshot(learner, ALONE))
                saved = (learner.state.epoch, learner.state.batch)
            elif action == "kill":
                learner = small_learner(batch_sizes=(4, 4))
                assert checkpoint.load_state(fold, learner, ALONE, settings=SGD) == (saved is not None)
                assert (learner.state.epoch, learner.state.batch) == (saved or (0, 0))
            elif saved and len(sound(fold)) > 1:
                (sound(fold)[-1] / "state.json").write_text("{}")
                assert checkpoint.load_state(fold, learner, ALONE, settings=SGD)
                saved = (learner.state.epoch, learner.state.batch)
                assert sound(fold), "the resume point before a rotten one was deleted"
            if saved:
                assert sound(fold)
                state = json.loads((sound(fold)[-1] / "state.json").read_text())
                best = state["best_epoch"]
                assert best < 0 or checkpoint.verifies(kept_epoch(fold, best))
            assert all((fold / name).is_dir() for name in foreign)
            assert len(sound(fold)) <= 2
        shutil.rmtree(fold)


def sound(fold: Path) -> list[Path]:
    actual = sorted(path for path in (fold / "state").glob("step-*") if path.name.removeprefix("step-").isdigit())
    return [path for path in actual if checkpoint.verifies(path)]


def test_rotation_keeps_what_a_resume_needs_and_what_is_not_ours(tmp_path):
    rotate(tmp_path, 40)


@pytest.mark.full
def test_rotation_of_a_thousand_sequences(tmp_path):
    rotate(tmp_path, 1000)


def test_a_resume_from_the_one_before_a_rotten_point_saves_beside_it(tmp_path):
    learner = small_learner(batch_sizes=[4] * 99)
    for batch in (10, 20, 30):
        learner.state.batch = batch
        checkpoint.save_state(tmp_path, checkpoint.take_snapshot(learner, ALONE))
    (tmp_path / "state/step-00000030/state.json").write_text("{}")
    assert checkpoint.load_state(tmp_path, learner, ALONE, settings=SGD)
    assert learner.state.batch == 20
    learner.state.batch = 25
    checkpoint.save_state(tmp_path, checkpoint.take_snapshot(learner, ALONE))
    assert [path.name for path in sound(tmp_path)] == ["step-00000020", "step-00000025"]
    learner = small_learner(batch_sizes=[4] * 99)
    assert checkpoint.load_state(tmp_path, learner, ALONE, settings=SGD)
    assert learner.state.batch == 25


def test_a_place_that_is_saved_is_not_replaced(tmp_path, monkeypatch):
    learner = small_learner(batch_sizes=(4, 4, 4))
    written = faults.note_calls(monkeypatch, checkpoint, "write_folder_atomically")
    for _ in range(3):
        learner.state.end_step(1.0, True, 4, ids=[])
    for _ in range(2):
        checkpoint.save_state(tmp_path, checkpoint.take_snapshot(learner, ALONE))
    end_epoch(learner, correct=1)
    for _ in range(2):
        checkpoint.save_state(tmp_path, checkpoint.take_snapshot(learner, ALONE))
    assert [call.args[0].name for call in written] == ["step-00000003", "step-00000004"]


# Memory


def resident_set(pid: int) -> int:
    """Bytes of a process and its children; shared pages count in each, whatever other programs share them."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    run_copy = 1024 * int(next(line for line in text.splitlines() if line.startswith("Rss:")).split()[1])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return run_copy + sum(resident_set(int(child)) for child in children)


def growth(tiny: Path, out: Path, epochs: int) -> float:
    """MB an epoch over the later four fifths: the median slope of all pairs, for an allocator's jump is no leak."""
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("no /proc/self/smaps_rollup on this system")
    used: list[int] = []
    keep = checkpoint.keep_epoch

    def measured(*arguments, **named):
        keep(*arguments, **named)
        used.append(resident_set(os.getpid()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "keep_epoch", measured)
        start(tiny, out, "folds.train=[0]", f"schedule.epochs={epochs}", "images.workers=2")
    later = np.array(used[epochs // 5 :]) / 1e6
    slope, *_ = theilslopes(later)
    return float(slope)  # pyright: ignore[reportArgumentType]


@pytest.mark.full
def test_memory_does_not_grow_over_fifty_epochs(tiny, tmp_path):
    grown = growth(tiny, tmp_path / "run", 50)
    print(f"{grown:.3f} MB an epoch")
    assert grown <= 1


# Weights or their gradients kept by each epoch would show.
def test_memory_does_not_grow_over_a_few_epochs(tiny, tmp_path):
    assert growth(tiny, tmp_path / "run", 30) <= 1
