"""What a resume point and an epoch's line say of the training."""

import pytest

from creature.metrics.accuracy import Count
from creature.recipe import Images
from creature.training.training_state import EpochResult, TrainingState, advice_on_waiting


def end_epochs(count: int, waited: float, seconds: float) -> list[EpochResult]:
    state, results = TrainingState(), []
    for _ in range(count):
        state.seconds, state.waited = state.seconds + seconds, state.waited + waited
        state.end_step(1.0, True, size=4, ids=["a"])
        results.append(state.end_epoch(Count(1, 2), learning_rate=0.1, images=4))
    return results


def test_an_epoch_says_which_share_of_it_waited_for_images():
    results = end_epochs(2, waited=3.0, seconds=12.0)
    assert [result.waiting for result in results] == [0.25, 0.25]
    assert all("25%" in str(result) and result.tracked(0)["fold-0/waiting"] == 0.25 for result in results)


@pytest.mark.parametrize(("waited", "seconds", "advised"), [(30.0, 60.0, True), (5.0, 60.0, False), (0.4, 1.0, False)])
@pytest.mark.parametrize(("cache", "way_out"), [("off", "images.cache=disk or more images.workers"), ("disk", "more")])
def test_advice_comes_once_where_waiting_costs_a_tenth(waited, seconds, advised, cache, way_out):
    history = end_epochs(4, waited=waited, seconds=seconds)
    images = Images(train=("x",), cache=cache)
    advice = [advice_on_waiting(history[:count], images) for count in range(1, 5)]
    assert [bool(line) for line in advice] == [False, advised, False, False]
    assert not advised or advice[1].startswith(f"50% of the epoch waited for images; {way_out}")


def test_advice_comes_in_the_epoch_that_begins_to_wait():
    history = [*end_epochs(3, waited=0.0, seconds=60.0), *end_epochs(2, waited=30.0, seconds=60.0)]
    advice = [bool(advice_on_waiting(history[:count], Images(train=("x",)))) for count in range(1, 6)]
    assert advice == [False, False, False, True, False]
    for settings in ({"workers": 0}, {"cache": "device"}):  # the main process itself is what is waited for
        assert not advice_on_waiting(history[:4], Images.model_validate({"train": ("x",), **settings}))
