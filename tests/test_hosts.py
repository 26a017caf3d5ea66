"""Other numbers of processes, and how long they wait for each other."""

from pathlib import Path

import numpy as np
import pytest
from test_processes import launch
from test_resume import stopping_after
from test_train import losses, start

import train

ROOT = Path(__file__).parent.parent
TWO = ("--multi_gpu", "--num_processes", "2")
# A backbone without batch statistics: any number of processes computes the same.
PLAIN = ("folds.train=[0]", "backbone.name=test_vit", "batch_size=15", "checkpoint.every_minutes=0")


def test_one_process_then_two_then_one_see_the_same_batches_and_losses(tiny, tmp_path):
    settings, out = (*PLAIN, "schedule.epochs=3"), tmp_path / "run"
    start(tiny, tmp_path / "whole", *settings)

    with pytest.MonkeyPatch.context() as patch:
        stopping_after(patch, 2)
        with pytest.raises(train.Interrupted):
            start(tiny, out, *settings)
    # The same step is asked of both: a driver that stops after three.
    driver = tmp_path / "driver.py"
    driver.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport train\nfrom creature.learning import loop\n"
        "from creature.terminal import run\nstep, done = loop.train_step, []\n"
        "def stopping(*words):\n    done.append(1)\n"
        "    return step(*words)._replace(stop=len(done) == 3)\n"
        "loop.train_step = stopping\nrun(train.main)\n"
    )
    words = [word for setting in settings for word in ("--set", setting)]
    done = launch(*TWO, str(driver), "--recipe", str(tiny), "--out", str(out), "--resume", *words)
    assert "step 1 of epoch 2 of fold 0" in done.stderr, done.stderr
    assert start(tiny, out, *settings, resume=True) == 0
    np.testing.assert_allclose(losses(out / "fold-0"), losses(tmp_path / "whole/fold-0"), atol=1e-5)


def test_a_step_waits_less_than_anything_else(monkeypatch):
    from types import SimpleNamespace

    from creature.learning import processes

    said = []
    monkeypatch.setattr(processes, "_set_timeout", said.append)
    with pytest.raises(ZeroDivisionError), processes.waiting_less(SimpleNamespace(num_processes=2)):  # type: ignore[arg-type]
        assert said == [processes.WAIT_IN_STEP]
        raise ZeroDivisionError
    assert said == [processes.WAIT_IN_STEP, processes.WAIT]
    assert processes.WAIT_IN_STEP.total_seconds() < 60 < processes.WAIT.total_seconds()
