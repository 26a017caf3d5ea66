"""The loss of each row, against its formula."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from creature.recipe import Loss
from creature.training.losses import class_weights, make_loss

LOGITS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
LABELS = torch.tensor([0, 2, 1, 1, 0])
COUNTS = [200, 40, 10]
NAMES = ("cross_entropy", "focal", "binary_cross_entropy")
EVERY = [(name, balance) for name in NAMES for balance in ("none", "sqrt", "inverse")]


def test_a_loss_is_cross_entropy_of_each_row():
    logits = LOGITS.half()
    actual = make_loss(Loss(), COUNTS)(logits, LABELS)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, -logits.float().log_softmax(1)[range(5), LABELS])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_and_smoothing_are_torch_s(smoothing):
    loss = make_loss(Loss(smoothing=smoothing), COUNTS)
    for targets in (TARGETS, LABELS):
        expected = cross_entropy(LOGITS, targets, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(loss(LOGITS, targets), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balance", ["none", "sqrt", "inverse", "logit_adjust"])
@pytest.mark.parametrize("targets", [TARGETS, LABELS], ids=["soft", "hard"])
def test_focal_loss_without_gamma_is_cross_entropy(smoothing, balance, targets):
    focal = make_loss(Loss(name="focal", gamma=0, smoothing=smoothing, balance=balance), COUNTS)
    plain = make_loss(Loss(smoothing=smoothing, balance=balance), COUNTS)
    torch.testing.assert_close(focal(LOGITS, targets), plain(LOGITS, targets), atol=1e-6, rtol=0)


def test_focal_loss_is_its_formula():
    """Lin et al. 2017: -(1 - p)^gamma log p of the true class."""
    p = LOGITS.softmax(1)[range(5), LABELS]
    torch.testing.assert_close(
        make_loss(Loss(name="focal", gamma=2.0), COUNTS)(LOGITS, LABELS), -((1 - p) ** 2) * p.log()
    )


def test_binary_cross_entropy_asks_of_each_class_by_itself():
    """The sum over the classes of -y log s - (1 - y) log(1 - s), with s the sigmoid; balance weighs the whole row."""
    s = LOGITS.sigmoid()
    expected = -(TARGETS * s.log() + (1 - TARGETS) * (1 - s).log()).sum(1)
    torch.testing.assert_close(make_loss(Loss(name="binary_cross_entropy"), COUNTS)(LOGITS, TARGETS), expected)
    weight = torch.tensor(class_weights("inverse", np.array(COUNTS)), dtype=torch.float32)
    balanced = make_loss(Loss(name="binary_cross_entropy", balance="inverse"), COUNTS)
    torch.testing.assert_close(balanced(LOGITS, TARGETS), expected * (TARGETS @ weight))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("name", "balance"), [*EVERY, ("focal", "logit_adjust")])
def test_gradients_are_those_of_finite_differences(name, balance, gamma):
    loss = make_loss(Loss(name=name, gamma=gamma, smoothing=0.1, balance=balance), COUNTS)
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, TARGETS.double()), (logits,))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_sure_row_has_a_finite_gradient(gamma):
    logits = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    for targets in (torch.tensor([0]), torch.tensor([2])):
        make_loss(Loss(name="focal", gamma=gamma), COUNTS)(logits, targets).sum().backward()
        assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("balance", "ratio"), [("none", 1.0), ("sqrt", 20**0.5), ("inverse", 20.0)])
def test_class_weights_favour_rare_classes_and_keep_the_mean_row(balance, ratio):
    weights = class_weights(balance, np.array(COUNTS))
    assert weights[2] / weights[0] == pytest.approx(ratio)
    assert (weights * COUNTS).sum() == pytest.approx(sum(COUNTS))
    loss, plain = make_loss(Loss(balance=balance), COUNTS), make_loss(Loss(), COUNTS)
    expected = plain(LOGITS, LABELS) * torch.tensor(weights[LABELS], dtype=torch.float32)
    torch.testing.assert_close(loss(LOGITS, LABELS), expected)


def test_logit_adjustment_learns_logits_without_the_prior():
    """With no feature to tell classes apart, the best logits are the prior itself; adjusted, they are flat."""
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
    best = {}
    for balance in ("none", "logit_adjust"):
        loss, logits = make_loss(Loss(balance=balance), COUNTS), torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

        def closure(loss=loss, logits=logits, optimizer=optimizer):
            optimizer.zero_grad()
            value = loss(logits.expand(len(labels), 3), labels).mean()
            value.backward()
            return value

        optimizer.step(closure)
        best[balance] = logits.detach().softmax(0).numpy()
    np.testing.assert_allclose(best["none"], np.array(COUNTS) / sum(COUNTS), atol=1e-3)
    np.testing.assert_allclose(best["logit_adjust"], 1 / 3, atol=1e-3)


@pytest.mark.parametrize("balance", ["sqrt", "inverse", "logit_adjust"])
def test_a_class_without_rows_makes_no_infinity(balance):
    assert torch.isfinite(make_loss(Loss(balance=balance), [10, 0, 5])(LOGITS, LABELS)).all()
