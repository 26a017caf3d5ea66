"""Learners and an accelerator of one process, for what needs no images of files."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from creature.recipe import Optimizer
from creature.training.learner import Learner
from creature.training.losses import RowLoss
from creature.training.optimizer import build_optimizer, parameter_groups

ALONE: Any = SimpleNamespace(
    unwrap_model=lambda model: model, scaler=None, num_processes=1, process_index=0, device=torch.device("cpu")
)


def make_learner(model: nn.Module, settings: Optimizer, row_loss: RowLoss, *, batch_sizes: Sequence[int]) -> Learner:
    """A model of two classes or more that is trained for 99 epochs at a constant rate."""
    return Learner(
        model=model,
        network=model,
        ema=None,
        optimizer=build_optimizer(parameter_groups(model, settings), settings),
        normalize=nn.Identity(),
        mix=None,
        mix_until=99,
        classes=2,
        row_loss=row_loss,
        seed=0,
        fold=0,
        epochs=99,
        batch_sizes=batch_sizes,
        learning_rate=lambda _: settings.lr,
        gradient_accumulation_steps=1,
        clip_norm=None,
        freeze_batch_stats=False,
        save_minutes=10,
    )
