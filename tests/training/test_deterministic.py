"""deterministic: true, which a GPU needs for equal bits: what it sets, and what it does not leave behind."""

import os
from typing import Any

import pytest
import torch

from creature.device import deterministic_algorithms
from creature.errors import UserError
from helpers import faults
from helpers.runs import start


def settings_of_torch() -> tuple[int, bool, bool, str | None]:
    cudnn = torch.backends.cudnn
    options: Any = torch.utils.deterministic
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    return torch.get_deterministic_debug_mode(), cudnn.benchmark, options.fill_uninitialized_memory, workspace


def test_steps_are_deterministic_and_the_program_around_them_is_as_before(tiny, tmp_path, monkeypatch):
    before, within = settings_of_torch(), set()
    faults.before_steps(monkeypatch, lambda step: within.add(settings_of_torch()))
    start(tiny, tmp_path / "exact", "folds.train=[0]", "deterministic=true")
    assert within == {(2, False, False, ":4096:8")} and settings_of_torch() == before
    start(tiny, tmp_path / "free", "folds.train=[0]")
    exact, free = (tmp_path / name / "fold-0/model.safetensors" for name in ("exact", "free"))
    assert exact.read_bytes() == free.read_bytes()  # a CPU's bits are the same anyway


def test_an_error_leaves_the_settings_and_a_workspace_that_was_chosen_as_they_were(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before = settings_of_torch()
    with pytest.raises(ZeroDivisionError), deterministic_algorithms(True):
        assert settings_of_torch() == (2, False, False, ":16:8")
        raise ZeroDivisionError
    assert settings_of_torch() == before


def test_an_operation_without_a_deterministic_form_is_named(tiny, tmp_path, monkeypatch):
    def put_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(logits))
        return torch.zeros(len(logits)).put_(rows, logits.sum(1))

    def act(step: faults.Step) -> None:
        step.learner.row_loss = put_losses

    faults.before_steps(monkeypatch, act)
    with pytest.raises(UserError, match="deterministic: put_ has no deterministic form on this device; set it to fal"):
        start(tiny, tmp_path / "run", "folds.train=[0]", "deterministic=true")
