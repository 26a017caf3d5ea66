"""What stands before the first step: device and checks, the run's images and folds, a fold's model and optimizer."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from torch import nn

from creature.disk import file_hash
from creature.images.batches import Pictures, seed_of
from creature.images.checks import check_images, refuse_bad
from creature.images.evaluation import evaluation_view
from creature.images.folds import FoldFile, assign_folds, folds_hash, read_folds, together
from creature.images.manifest import fingerprint, read_images
from creature.images.sources import Columns
from creature.images.views import make_mix, training_view
from creature.learning.backbone import (
    build_backbone,
    build_optimizer,
    check_backbone,
    mean_and_std,
    parameter_groups,
    timm_config,
)
from creature.learning.checkpoint import finish_fold, kept_epoch, load_state, prune_epochs
from creature.learning.device import device_precision, share_cores
from creature.learning.loop import Learner, make_see
from creature.learning.losses import make_loss
from creature.learning.normalize import Normalize
from creature.learning.predictions import load_predictions
from creature.learning.processes import MEETING, WAIT, check_processes
from creature.learning.runs import environment, fold_state, open_run, share_folds
from creature.learning.schedule import lr_factor
from creature.recipe import Recipe
from creature.terminal import UserError, console, say, warn


@dataclass(frozen=True)
class Data:
    """A run's labelled images with their folds, and how they are seen."""

    folds: FoldFile
    training: Pictures
    evaluation: Pictures


def start(recipe: Recipe, out: Path) -> Accelerator:
    """Check the recipe against timm, the trackers and the device, and start Accelerate; no data is read yet."""
    check_backbone(recipe.backbone)
    known = {str(tracker) for tracker in get_available_trackers()}
    if unknown := set(recipe.tracking) - known:
        raise UserError(
            f"tracking: {', '.join(sorted(unknown))} is not installed; there is: {', '.join(sorted(known)) or 'none'} "
            "(pip install -e '.[tracking]' brings tensorboard)"
        )
    # Without this, processes on a machine that has no GPU would each believe that they are alone.
    cpu = recipe.device == "cpu" or bool(os.environ.get("ACCELERATE_USE_CPU")) or not torch.accelerator.is_available()
    precision, reason = device_precision(recipe.precision, cpu)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=list(recipe.tracking) or None,
        project_dir=out,
        kwargs_handlers=[InitProcessGroupKwargs(init_method=f"{MEETING}://", timeout=WAIT)],
    )
    console.quiet = not accelerator.is_main_process
    datasets.disable_progress_bars()  # one bar at a time, and it is ours
    check_processes(accelerator)
    if reason:
        warn(reason)
    share_cores()
    if recipe.tracking:
        accelerator.init_trackers("creature")
    return accelerator


def prepare_run(accelerator: Accelerator, recipe: Recipe, out: Path, resume: bool) -> Data:
    """The run's folder, images and folds. The main process reads and writes; the others are told.

    Raises UserError where a fold to train exists and `resume` was not asked for.
    """
    begun = [f for f in recipe.train_folds if fold_state(out / f"fold-{f}") != "missing"]
    if begun and not resume:
        raise UserError(
            f"{out / f'fold-{begun[0]}'} exists and is never overwritten; --resume goes on with it, "
            "--out DIR or another name starts a new run"
        )
    weights = file_hash(recipe.backbone.weights) if recipe.backbone.weights and accelerator.is_main_process else None
    if accelerator.is_main_process and (out / "recipe.yaml").exists():
        open_run(out, recipe, weights)  # before the images are read: a changed recipe is refused at once
    images = recipe.images
    columns = Columns(images.image_column, images.label_column, images.labels, recipe.folds.group)
    field = "images.train and images.validation" if images.validation else "images.train"
    dataset = read_images([*images.train, *images.validation], columns, field)
    found: list[Any] = [None]
    if accelerator.is_main_process:
        known = frozenset(read_folds(out / "folds.json").hashes) if (out / "folds.json").exists() else frozenset()
        hashes, bad = check_images(dataset, known, field)
        refuse_bad(dataset, bad, images.max_bad, field)
        good = [row for row in range(len(dataset)) if row not in bad]
        kept = dataset.select(good)
        names = {dataset[row]["id"]: reason for row, reason in bad.items()}
        folds = part(recipe, kept, [hashes[row] for row in good], names)
        open_run(out, recipe, weights)  # not before: what cannot be trained with must not stay as the run's recipe
        found = [(good, share_folds(out, folds))]
        total = f"{len(good)} images of {len(folds.names)} classes"
        say(f"{total}, {recipe.folds.count} fold{'s' * (recipe.folds.count > 1)}, on {accelerator.device}")
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    good, folds = found[0]
    mean, _ = mean_and_std(recipe.backbone.name, images.normalize)
    rows = dataset if len(good) == len(dataset) else dataset.select(good)
    return Data(
        folds,
        Pictures(rows, training_view(images.size, recipe.augment), recipe.seed),
        Pictures(rows, evaluation_view(images.size, images.fit, mean)),
    )


def part(recipe: Recipe, dataset: Any, hashes: list[str], bad: dict[str, str]) -> FoldFile:
    """The folds of the rows: stratified and grouped, or with count 1 the sources of images.validation as fold 0."""
    labels, names = list(dataset["label"]), dataset.features["label"].names
    if missing := [name for k, name in enumerate(names) if k not in set(labels)]:
        raise UserError(f"images.train: no picture of the classes {', '.join(missing[:10])}; remove their folders")
    if recipe.folds.count == 1:
        fold = np.array([-1 if source < len(recipe.images.train) else 0 for source in dataset["source"]])
    else:
        groups = together(list(dataset["group"]), hashes, labels, names)
        fold = assign_folds(np.array(labels), groups, recipe.folds.count, recipe.folds.seed)
    if min((fold != k).sum() for k in range(recipe.folds.count)) < 2:
        raise UserError(f"images.train: {len(fold)} images leave fewer than 2 to train on; add images, or fewer folds")
    ids = tuple(dataset["id"])
    return FoldFile(
        count=recipe.folds.count,
        seed=recipe.folds.seed,
        names=tuple(names),
        fingerprint=fingerprint(ids, labels, hashes, names),
        ids=ids,
        labels=np.array(labels),
        fold=fold,
        hashes=tuple(hashes),
        bad=bad,
    )


def build_learner(accelerator: Accelerator, recipe: Recipe, data: Data, fold: int, folder: Path) -> Learner:
    """A fold's model and optimizer, from the seed or from the newest resume point, prepared by Accelerate."""
    torch.manual_seed(seed_of(recipe.seed, fold, "weights"))
    backbone, classes = recipe.backbone, len(data.folds.names)
    model = build_backbone(backbone, classes, recipe.images.size)
    if backbone.sync_batchnorm and accelerator.distributed_type == DistributedType.MULTI_GPU:
        model = convert_sync_batchnorm(model)
    model = model.to(accelerator.device)
    optimizer = build_optimizer(parameter_groups(model, recipe.optimizer), recipe.optimizer)
    if backbone.compile:
        torch.compiler.reset()  # graphs of the fold before count towards torch's limit, past which it compiles no more
        model.compile(dynamic=False)  # a graph for each batch's size, so that none depends on what came before
    if fold == recipe.train_folds[0]:
        warn_of_parameters(recipe, model)
    position = load_state(folder, model, optimizer, accelerator.scaler)
    if not position.rows and position.batch > position.skipped:  # an older resume point, which did not count them
        position.rows = min(position.batch * recipe.batch_size, int((data.folds.fold != fold).sum()))
    mean, std = mean_and_std(backbone.name, recipe.images.normalize)
    normalize = Normalize(mean, std, backbone.channels_last).to(accelerator.device)
    counts = np.bincount(data.folds.labels[data.folds.fold != fold], minlength=classes)
    return Learner(
        accelerator.prepare(model),
        optimizer,
        normalize,
        make_see(normalize, make_mix(recipe.augment, classes)),
        make_loss(recipe.loss, counts.tolist(), accelerator.device),
        position,
        seed=(recipe.seed, fold),
        rate=lambda epochs: recipe.optimizer.lr * lr_factor(recipe.schedule, epochs),
        parts=recipe.accumulate,
        clip_norm=recipe.optimizer.clip_norm,
        freeze_batch_stats=backbone.freeze_batch_stats,
        save_minutes=recipe.checkpoint.every_minutes,
    )


def warn_of_parameters(recipe: Recipe, model: nn.Module) -> None:
    """Warn where the members of the ensemble together exceed the recipe's parameters_limit."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    members, limit = recipe.folds.count, recipe.parameters_limit
    if limit and members * parameters > limit:
        warn(
            f"parameters_limit: {members} members of {parameters / 1e6:.1f} M parameters are "
            f"{members * parameters / 1e6:.1f} M, over the recipe's {limit / 1e6:.1f} M"
        )


def finish(
    accelerator: Accelerator,
    recipe: Recipe,
    data: Data,
    learner: Learner,
    fold: int,
    folder: Path,
    score: Callable[[np.ndarray, np.ndarray, int], dict[str, Any]],
) -> None:
    """Write what makes a trained fold a model that explains itself: config, and result of the epoch that is selected.

    `score` judges predicted classes (N,) against labels (N,), given the number of classes.
    """
    position, folds = learner.position, data.folds
    last, best = recipe.schedule.epochs - 1, position.best_epoch
    chosen = best if recipe.checkpoint.select == "best" else last
    labels = dict(zip(folds.ids, folds.labels.tolist(), strict=True))

    def scores(epoch: int) -> dict[str, Any]:
        held = load_predictions(kept_epoch(folder, epoch) / "held_out.safetensors")
        return {
            "epoch": epoch + 1,
            **score(held.logits.argmax(1), np.array([labels[i] for i in held.ids]), len(folds.names)),
        }

    model = accelerator.unwrap_model(learner.model)
    images = recipe.images
    result = {
        "fold": fold,
        "selected": recipe.checkpoint.select == "best",
        **scores(chosen),
        "last": scores(last),
        "epochs": recipe.schedule.epochs,
        "images_trained": int((folds.fold != fold).sum()),
        "class_counts": np.bincount(folds.labels, minlength=len(folds.names)).tolist(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(sum(row["seconds"] for row in position.history), 3),
        "saving_seconds": round(position.saving_seconds, 3),
        "recipe": recipe.identity(),
        "folds": folds_hash(folds),
        **environment(accelerator.device, accelerator.num_processes),
    }
    mean, std = mean_and_std(recipe.backbone.name, images.normalize)
    finish_fold(folder, recipe, timm_config(model, folds.names, images.size, images.fit, mean, std), result)
    prune_epochs(folder, position, recipe.checkpoint)
