"""The loss of each row, against its formula."""

import pytest
import torch

from creature.learning.losses import make_loss
from creature.recipe import Loss

LOGITS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)).softmax(1)


def test_a_loss_is_cross_entropy_of_each_row():
    logits, labels = LOGITS.half(), torch.tensor([0, 2, 1, 1, 0])
    found = make_loss(Loss())(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, -logits.float().log_softmax(1)[range(5), labels])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_and_smoothing_are_their_formula(smoothing):
    smoothed = TARGETS * (1 - smoothing) + smoothing / 3
    found = make_loss(Loss(smoothing=smoothing))(LOGITS, TARGETS)
    torch.testing.assert_close(found, -(smoothed * LOGITS.log_softmax(1)).sum(1))
    hard, one_hot = torch.tensor([0, 1, 2, 0, 1]), torch.eye(3)[[0, 1, 2, 0, 1]]
    torch.testing.assert_close(
        make_loss(Loss(smoothing=smoothing))(LOGITS, hard), make_loss(Loss(smoothing=smoothing))(LOGITS, one_hot)
    )
