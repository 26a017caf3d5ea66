"""A training that another program calls: what it returns, and what it leaves as it was."""

import signal

import datasets
import pytest
import torch

import train
from creature.device import choose_workers
from creature.errors import Interrupted
from creature.recipe_file import load_recipe
from creature.training import start
from creature.training.signals import Stop
from helpers.runs import weights_hash

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def process_state() -> tuple[object, ...]:
    handlers = [signal.getsignal(number) for number in SIGNALS]
    return handlers, torch.get_num_threads(), torch.get_rng_state().tolist(), datasets.are_progress_bars_disabled()


@pytest.fixture
def progress_bars():
    disabled = datasets.are_progress_bars_disabled()
    datasets.enable_progress_bars()
    yield
    if disabled:
        datasets.disable_progress_bars()


def test_a_training_within_a_program_leaves_its_process_as_it_was(tiny, run, tmp_path, monkeypatch, progress_bars):
    monkeypatch.setattr(start, "keep_memory", lambda _: pytest.fail("malloc's settings are the host's"))
    torch.manual_seed(5)
    before = process_state()
    (result,) = train.train(load_recipe(tiny, ["folds.train=[1]"]), tmp_path / "run")
    assert process_state() == before
    assert (result.fold, result.epoch, result.n) == (1, 2, 24)
    assert weights_hash(tmp_path / "run/fold-1") == weights_hash(run / "fold-1")


def test_a_program_may_ask_its_training_to_stop(tiny, tmp_path):
    stop = Stop()
    stop.asked = True
    with pytest.raises(Interrupted, match="--resume goes on"):
        train.train(load_recipe(tiny, ["folds.train=[1]"]), tmp_path / "run", stop=stop)


@pytest.mark.parametrize(
    ("cores", "processes", "device", "workers"),
    [
        (2, 1, "cpu", 1),
        (16, 1, "cpu", 4),
        (1, 1, "cuda", 1),
        (16, 1, "cuda", 15),
        (64, 1, "cuda", 16),
        (16, 4, "cuda", 3),
    ],
)
def test_workers_are_chosen_by_the_cores_of_the_process_and_its_device(monkeypatch, cores, processes, device, workers):
    monkeypatch.setattr("creature.device.usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert choose_workers("auto", torch.device(device)) == workers
    assert choose_workers(0, torch.device(device)) == 0
