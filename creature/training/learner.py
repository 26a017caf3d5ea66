"""A fold's learner: the model with all that its steps read and change. N rows, B batch, K classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from creature.console import warn
from creature.data.augment import Mix, make_mix
from creature.data.order import derive_seed, epoch_batches
from creature.metrics.accuracy import Count
from creature.recipe import Recipe
from creature.training.backbone import as_linear, build_backbone, check_size, find_classifier, make_normalize
from creature.training.linear_probe import score_classifier, solve_classifier
from creature.training.losses import RowLoss, make_loss
from creature.training.optimizer import build_optimizer, parameter_groups
from creature.training.partial import freeze_the_rest
from creature.training.schedule import lr_factor
from creature.training.train_data import TrainData
from creature.training.training_state import EpochResult, TrainingState


@dataclass
class Learner:
    """A fold's model and what its steps need; `state` says where its training stands."""

    model: nn.Module  # what learns: the network, or the classifier of a frozen one; prepared by Accelerate
    network: nn.Module  # body and classifier, with the weights that learn
    ema: ModelEmaV3 | None  # moving average of the network's weights and statistics
    optimizer: torch.optim.Optimizer
    normalize: nn.Module  # of pixels; what a frozen backbone made of them needs none
    mix: Mix | None
    mix_until: float  # epochs
    classes: int
    row_loss: RowLoss
    seed: int
    fold: int
    epochs: int
    batch_sizes: Sequence[int]  # rows of each global batch of an epoch
    learning_rate: Callable[[float], float]  # after so many epochs
    gradient_accumulation_steps: int | None  # None: as many as the state says, where one batch did not fit
    clip_norm: float | None
    freeze_batch_stats: bool
    save_minutes: float
    state: TrainingState = field(default_factory=TrainingState)
    tried_pixels: int = 0  # of the largest batch whose shares several processes computed, each by itself

    @property
    def eval_model(self) -> nn.Module:
        """What predicts held-out rows."""
        return self.ema.module if self.ema else self.model

    @property
    def saved_model(self) -> nn.Module:
        """What an epoch's checkpoint holds."""
        return self.ema.module if self.ema else self.network

    @property
    def micro_batches(self) -> int:
        """In how many parts a process computes its share of a batch."""
        return self.gradient_accumulation_steps or self.state.micro_batches

    def split_batch(self, rows: int) -> bool:
        """Compute a share of so many rows in twice as many micro-batches from now on; False where that may not be."""
        if self.gradient_accumulation_steps or self.state.micro_batches >= most_micro_batches(rows):
            return False
        self.state.micro_batches *= 2
        return True

    def end_epoch(self, score: Count, selected_by: float | None = None) -> EpochResult:
        """The figures of the epoch that ends, with its score on held-out rows; the state moves to the next one.

        The best epoch is chosen by `selected_by`, or by the accuracy.
        """
        rate = self.learning_rate(self.state.epoch + 1 - 1 / len(self.batch_sizes))  # of the epoch's last step
        return self.state.end_epoch(score, selected_by, learning_rate=rate, images=sum(self.batch_sizes))

    @cached_property
    def statistics(self) -> list[torch.Tensor]:
        """The model's buffers, BatchNorm's statistics, as one flat tensor a type, of which they are parts from now on.

        Thus a step that is not taken gives them back in a few operations, however many they are.
        """
        buffers = list(self.model.buffers())
        flat = []
        for kind in dict.fromkeys(buffer.dtype for buffer in buffers):
            alike = [buffer for buffer in buffers if buffer.dtype == kind]
            flat.append(torch.cat([buffer.flatten() for buffer in alike]))
            for buffer, values in zip(alike, flat[-1].split([buffer.numel() for buffer in alike]), strict=True):
                buffer.data = values.view_as(buffer)
        return flat


def most_micro_batches(rows: int) -> int:
    """Into how many a share of so many rows may be split: BatchNorm has no statistics of a single image."""
    return max(1, rows // 2)


def build_learner(accelerator: Accelerator, recipe: Recipe, data: TrainData, *, fold: int) -> Learner:
    """A fold's learner before its first step, drawn from the seed; Accelerate has yet to prepare its model.

    Raises UserError for weights and sizes that the backbone cannot take.
    """
    torch.manual_seed(derive_seed(recipe.seed, fold, "weights"))  # guard: weights-seed
    backbone, optimizer, steps = recipe.backbone, recipe.optimizer, recipe.gradient_accumulation_steps
    classes = len(data.folds.class_names)  # guard: all-classes
    network = build_backbone(backbone, classes, recipe.images.size)
    if backbone.sync_batchnorm and accelerator.distributed_type == DistributedType.MULTI_GPU:
        network = convert_sync_batchnorm(network)
    for size in recipe.augment.sizes or ():
        check_size(network, backbone.name, size, field="augment.sizes")
    network = network.to(accelerator.device)
    freeze_the_rest(network, backbone.train)
    ema = ModelEmaV3(network, optimizer.ema_decay, use_warmup=True) if optimizer.ema_decay else None
    if backbone.compile:
        torch.compiler.reset()  # graphs of the fold before count towards torch's limit, past which it compiles no more
        network.compile(dynamic=False)  # a graph for each batch's size, so that none depends on what came before
    model = as_linear(find_classifier(network)) if backbone.frozen else network
    normalize = nn.Identity() if backbone.frozen else make_normalize(backbone, recipe.images.normalize)
    normalize = normalize.to(accelerator.device)
    rows = np.flatnonzero(~data.folds.held_out(fold))
    if fold == recipe.train_folds[0]:
        _warn_of_parameters(network, recipe.folds.members, recipe.parameters_limit)
        _warn_of_statistics(model, backbone.freeze_batch_stats, steps)
    counts = np.bincount(data.folds.labels[rows], minlength=classes)
    return Learner(
        model=model,
        network=network,
        ema=ema,
        optimizer=build_optimizer(parameter_groups(model, optimizer), optimizer),
        normalize=normalize,
        mix=make_mix(recipe.augment, classes),
        mix_until=recipe.augment.mix_until * data.schedule.epochs,
        classes=classes,
        row_loss=make_loss(recipe.loss, counts.tolist(), accelerator.device),
        seed=recipe.seed,
        fold=fold,
        epochs=data.schedule.epochs,
        batch_sizes=[len(batch) for batch in epoch_batches(rows, recipe.batch_size)],
        learning_rate=lambda epochs: optimizer.lr * lr_factor(data.schedule, epochs),
        gradient_accumulation_steps=None if steps == "auto" else steps,
        clip_norm=optimizer.clip_norm,
        freeze_batch_stats=backbone.freeze_batch_stats,
        save_minutes=recipe.checkpoint.every_minutes,
    )


def start_at_probe(learner: Learner, data: TrainData) -> None:
    """Solve the classifier on the features of the fold's training rows; the state notes what it then scores."""
    classifier = as_linear(find_classifier(learner.network))
    assert data.features is not None and isinstance(classifier, nn.Linear)
    held_out, labels = data.folds.held_out(learner.fold), data.folds.labels
    seed = derive_seed(learner.seed, learner.fold, "probe") % 2**32
    solve_classifier(classifier, data.features[~held_out], labels[~held_out], seed=seed)
    if learner.ema:
        learner.ema.set(learner.network)
    learner.state.start = score_classifier(classifier, data.features[held_out], labels[held_out])


def _warn_of_statistics(model: nn.Module, frozen: bool, steps: int | Literal["auto"]) -> None:
    """Warn where BatchNorm sees less than a batch because the recipe asks for micro-batches."""
    if steps != "auto" and steps > 1 and not frozen and any(isinstance(m, _BatchNorm) for m in model.modules()):
        warn(
            f"gradient_accumulation_steps: {steps} micro-batches a step, and BatchNorm's statistics are of each; "
            "backbone.freeze_batch_stats=true keeps those of the pretraining"
        )


def _warn_of_parameters(model: nn.Module, members: int, limit: float | None) -> None:
    """Warn where the members of the ensemble together exceed the recipe's parameters_limit."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if limit and members * parameters > limit:
        warn(
            f"parameters_limit: {members} members of {parameters / 1e6:.1f} M parameters are "
            f"{members * parameters / 1e6:.1f} M, over the recipe's {limit / 1e6:.1f} M"
        )
