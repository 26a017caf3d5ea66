"""Blending: each strategy against its formula, ties, weights, and the order of the members."""

import itertools

import numpy as np
import pytest
from scipy.special import softmax

from creature.metrics.blend import STRATEGIES, blend

M, N, K = 4, 50, 6
LOGITS = np.random.default_rng(0).normal(0, 3, (M, N, K)).astype(np.float32)
WEIGHTS = np.array([0.1, 0.7, 3.0, 0.3])


def one_row(*members: list[float]) -> np.ndarray:
    return np.array(members, dtype=np.float32)[:, None, :]


def formula(strategy: str, weights: np.ndarray) -> np.ndarray:
    share = (weights / weights.sum())[:, None, None]
    if strategy == "logits":
        return softmax((LOGITS.astype(np.float64) * share).sum(0), axis=1)
    if strategy == "softmax":
        return (softmax(LOGITS.astype(np.float64), axis=2) * share).sum(0)
    return (np.eye(K)[LOGITS.argmax(2)] * share).sum(0)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("weights", [None, WEIGHTS, np.array([0.0, 1.0, 0.0, 2.0])])
def test_a_blend_is_its_formula(strategy, weights):
    expected = formula(strategy, np.ones(M) if weights is None else weights)
    np.testing.assert_allclose(blend(LOGITS, strategy, weights), expected, atol=1e-8)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_probabilities_sum_to_one_and_none_is_negative(strategy):
    actual = blend(LOGITS, strategy, WEIGHTS)
    assert actual.shape == (N, K) and actual.min() >= 0
    np.testing.assert_allclose(actual.sum(1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_large_number_of_classes_still_sums_to_one(strategy):
    logits = np.random.default_rng(1).normal(size=(2, 2, 5000))
    np.testing.assert_allclose(blend(logits, strategy).sum(1), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_order_of_members_never_changes_a_bit(strategy, weights):
    expected = blend(LOGITS, strategy, weights)
    for order in map(list, itertools.permutations(range(M))):
        actual = blend(LOGITS[order], strategy, None if weights is None else weights[order])
        assert actual.tobytes() == expected.tobytes(), order


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scale", [1e-6, 3, 1e6])
def test_weights_are_relative(strategy, scale):
    np.testing.assert_allclose(blend(LOGITS, strategy, WEIGHTS * scale), blend(LOGITS, strategy, WEIGHTS), rtol=1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_whole_numbers_are_weights(strategy):
    np.testing.assert_array_equal(
        blend(LOGITS, strategy, np.array([1, 2, 3, 4])), blend(LOGITS, strategy, np.array([1.0, 2.0, 3.0, 4.0]))
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_s_answer_does_not_depend_on_the_rows_beside_it(strategy):
    alone = np.concatenate([blend(LOGITS[:, [row]], strategy, WEIGHTS) for row in range(N)])
    np.testing.assert_allclose(alone, blend(LOGITS, strategy, WEIGHTS), rtol=1e-12)


@pytest.mark.parametrize(
    ("members", "winner"),
    [
        (([5, 0, 0], [0, 6, 0]), 1),
        (([6, 0, 0], [0, 5, 0]), 0),
        (([9, 0, 0], [0, 1, 0], [0, 1, 0]), 1),
        # The class that wins the mean has one vote, and leaves the two that tie next to no probability.
        (([5, 0, 0], [5, 0, 0], [0, 6, 0], [0, 6, 0], [0, 0, 3000]), 1),
        (([0, 5, 0], [0, 5, 0], [6, 0, 0], [6, 0, 0], [0, 0, 3000]), 0),
        # A hair's breadth.
        (([1, 0, -40], [0, 1 + 1e-6, -40]), 1),
    ],
)
def test_votes_decide_and_a_tie_goes_to_the_larger_mean_logit(members, winner):
    assert blend(one_row(*members), "vote").argmax(1) == [winner]


def test_weighted_votes_that_tie_but_for_rounding_go_to_the_larger_mean_logit():
    members = one_row([5, 0], [5, 0], [0, 9])
    assert blend(members, "vote", np.array([0.1, 0.2, 0.3])).argmax(1) == [1]
    assert blend(members, "vote", np.array([0.1, 0.2, 0.299])).argmax(1) == [0]


def test_classes_without_a_vote_are_ordered_by_mean_logit():
    actual = blend(one_row([9, -80, 1, -90], [9, -70, 1, -90]), "vote")
    assert np.argsort(-actual[0]).tolist() == [0, 2, 1, 3]
    np.testing.assert_allclose(actual[0], [1, 0, 0, 0], atol=1e-8)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_huge_logits_stay_finite(strategy):
    actual = blend(one_row([3e38, 0.0], [3e38, -3e38]), strategy)
    np.testing.assert_allclose(actual, [[1, 0]], atol=1e-8)
