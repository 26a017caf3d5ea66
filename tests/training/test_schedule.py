"""The learning rate over time, against PyTorch's schedulers and closed formulas."""

import math
import random

import pytest
import torch

from creature.recipe import Schedule
from creature.training.schedule import lr_factor

STEPS = [epoch + step / 7 for epoch in range(80) for step in range(7)]


def schedule(**settings) -> Schedule:
    return Schedule.model_validate(settings, strict=False)


@pytest.mark.parametrize(("first", "factor"), [(10, 2), (10, 1), (3, 3), (100, 2)])
def test_warm_restarts_are_torch_s_stepped_per_epoch(first, factor):
    ours = schedule(name="cosine_warm_restarts", epochs=80, restart_epochs=first, restart_factor=factor, update="epoch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=first, T_mult=factor)
    for epoch in range(80):
        rates = {lr_factor(ours, epoch + part) for part in (0, 0.3, 0.999)}
        assert rates == {lr_factor(ours, epoch)}
        assert lr_factor(ours, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(("first", "factor"), [(10, 2), (4, 1)])
def test_warm_restarts_by_the_step_are_torch_s_at_fractions_of_an_epoch(first, factor):
    ours = schedule(name="cosine_warm_restarts", epochs=80, restart_epochs=first, restart_factor=factor)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=first, T_mult=factor)
    for time in STEPS:
        theirs.step(time)  # pyright: ignore[reportArgumentType]  # fractions are what it is for
        assert lr_factor(ours, time) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)


def test_cycles_of_ten_twenty_and_forty_start_at_the_peak_after_the_warm_up():
    ours = schedule(name="cosine_warm_restarts", epochs=72, warmup_epochs=2.0, restart_epochs=10)
    for start in (2, 12, 32):
        assert lr_factor(ours, start) == 1
    for end in (12, 32, 72):
        assert 0 < lr_factor(ours, end - 1e-3) < 1e-6


def test_cosine_falls_from_the_peak_to_zero():
    ours = schedule(name="cosine", epochs=80)
    factors = [lr_factor(ours, time) for time in STEPS]
    assert factors == [pytest.approx((1 + math.cos(math.pi * time / 80)) / 2, abs=1e-12) for time in STEPS]
    assert factors[0] == 1 and factors == sorted(factors, reverse=True)
    assert factors[-1] < 1e-4 and lr_factor(ours, 80) == pytest.approx(0, abs=1e-15)


def test_cosine_by_the_epoch_moves_between_epochs_only():
    by_step, by_epoch = schedule(epochs=10), schedule(epochs=10, update="epoch")
    for epoch in range(10):
        assert {lr_factor(by_epoch, epoch + part) for part in (0, 0.5, 0.99)} == {lr_factor(by_step, epoch)}


@pytest.mark.parametrize("update", ["step", "epoch"])
def test_constant_stays_at_the_peak(update):
    assert {lr_factor(schedule(name="constant", epochs=80, update=update), time) for time in STEPS} == {1.0}


@pytest.mark.parametrize("name", ["cosine", "cosine_warm_restarts", "constant"])
@pytest.mark.parametrize("update", ["step", "epoch"])
@pytest.mark.parametrize("warmup", [0.5, 1.0, 4.0])
def test_the_warm_up_rises_linearly_from_zero_to_the_peak(name, update, warmup):
    ours = schedule(name=name, epochs=20, warmup_epochs=warmup, update=update)
    for part in (0, 0.1, 0.25, 0.5, 0.99):
        assert lr_factor(ours, warmup * part) == pytest.approx(part, abs=1e-12)
    assert lr_factor(ours, warmup) == 1


@pytest.mark.parametrize("warmup", [0.5, 1.0, 3.0])
def test_no_epoch_of_a_warm_up_by_the_epoch_trains_at_zero(warmup):
    ours = schedule(epochs=10, warmup_epochs=warmup, update="epoch")
    for epoch in range(10):
        assert max(lr_factor(ours, epoch + step / 8) for step in range(8)) > 0


@pytest.mark.parametrize("name", ["cosine", "cosine_warm_restarts", "constant"])
@pytest.mark.parametrize("update", ["step", "epoch"])
def test_the_rate_is_a_pure_function_of_the_time_and_within_bounds(name, update):
    ours = schedule(name=name, epochs=80, warmup_epochs=1.5, update=update)
    expected = {time: lr_factor(ours, time) for time in STEPS}
    shuffled = random.Random(0).sample(STEPS, len(STEPS))
    assert {time: lr_factor(ours, time) for time in shuffled} == expected
    assert all(0 <= factor <= 1 for factor in expected.values())


@pytest.mark.parametrize(("steps", "epochs"), [(1, 225), (3, 75), (4, 57), (44, 6), (45, 5), (1000, 5)])
def test_epochs_of_few_steps_are_as_many_as_make_the_least_number_of_steps(steps, epochs):
    ours = schedule(epochs=5, warmup_epochs=0.7, min_steps=225).lengthened(steps)
    assert ours.epochs == epochs and ours.warmup_epochs == pytest.approx(0.7 / 5 * epochs)
    assert (ours == schedule(epochs=5, warmup_epochs=0.7, min_steps=225)) == (epochs == 5)


def test_without_a_least_number_of_steps_the_epochs_stay():
    assert schedule(epochs=5).lengthened(1) == schedule(epochs=5)
