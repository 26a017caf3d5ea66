"""A trained fold becomes a model that explains itself: a timm folder with its recipe, its score and its origin."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from creature.console import say, show_table
from creature.data.folds import FoldTable, folds_hash
from creature.metrics.calibration import find_temperature
from creature.metrics.predictions import load_predictions
from creature.metrics.scores import score
from creature.metrics.uneven_classes import uneven_lines
from creature.recipe import Recipe
from creature.recipe_file import dump_recipe
from creature.results import CorrectRows, EpochScore, FoldResult, hash_files, write_result
from creature.run import Fold, Run, full_repeats, kept_epoch, with_labels
from creature.storage import link_or_copy, write_json, write_text
from creature.training.backbone import mean_and_std, timm_config
from creature.training.checkpoint import prune_epochs
from creature.training.learner import Learner
from creature.training.run_folder import environment
from creature.training.train_data import eval_transform


def finish_fold(accelerator: Accelerator, recipe: Recipe, folds: FoldTable, *, learner: Learner, folder: Path) -> None:
    """Write config and result of the epoch that is used into a trained fold's folder; delete what it needs no more."""
    _, std = mean_and_std(recipe.backbone.name, recipe.images.normalize)
    config = timm_config(
        learner.saved_model, folds.class_names, eval_transform(recipe.images, recipe.backbone.name), std=std
    )
    state, by_score, last = learner.state, recipe.checkpoint.select == "best", learner.epochs - 1
    epoch = state.best_epoch if by_score else last
    write_model_folder(folder, recipe, config=config, epoch=epoch)
    held_out = with_labels(load_predictions(folder / "held_out.safetensors"), folds)
    result = FoldResult(
        **dict(_score_epoch(folder, epoch, folds)),
        **dict(environment(accelerator.device, accelerator.num_processes)),
        temperature=find_temperature(held_out.logits, held_out.labels),
        fold=learner.fold,
        selected=by_score,
        last=_score_epoch(folder, last, folds),
        start=CorrectRows(n=state.start.n, correct=state.start.correct) if state.start else None,
        epochs=learner.epochs,
        images_trained=sum(learner.batch_sizes),
        class_counts=np.bincount(folds.labels, minlength=len(folds.class_names)).tolist(),
        parameters=sum(parameter.numel() for parameter in learner.saved_model.parameters()),
        seconds=round(sum(row.seconds for row in state.history), 3),
        saving_seconds=round(state.saving_seconds, 3),
        recipe=recipe.identity(),
        folds=folds_hash(folds),
        sha256=hash_files(folder, ("model.safetensors", "held_out.safetensors", "config.json")),
    )
    write_result(folder / "result.json", result)  # guard: result-before-cleanup
    shutil.rmtree(folder / "state", ignore_errors=True)  # twice the weights' size, and of no further use
    prune_epochs(folder, state, recipe.checkpoint)


def _score_epoch(folder: Path, epoch: int, folds: FoldTable) -> EpochScore:
    predictions = with_labels(load_predictions(kept_epoch(folder, epoch) / "held_out.safetensors"), folds)
    scores = score(predictions.predicted, predictions.labels, len(folds.class_names))
    return EpochScore(epoch=epoch + 1, **asdict(scores))


def write_model_folder(folder: Path, recipe: Recipe, *, config: dict[str, Any], epoch: int) -> None:
    """Turn a fold's folder into a timm folder of a kept epoch; a result.json says later that all is there."""
    for name in ("model.safetensors", "held_out.safetensors"):
        link_or_copy(kept_epoch(folder, epoch) / name, folder / name)
    write_json(folder / "config.json", config)
    write_text(folder / "recipe.yaml", dump_recipe(recipe))


def show_results(out: Path, recipe: Recipe, results: Sequence[FoldResult]) -> None:
    """Show what the folds score, and what their accuracy hides where classes are uneven."""
    rows = [(r.fold, r.shown_score, r.epoch, f"{r.seconds / 60:.1f}") for r in results]
    title = f"{recipe.name}: {len(results)} of {recipe.folds.members} folds"
    show_table(title, ("fold", "held-out accuracy [95 %]", "epoch", "minutes"), rows)
    run = Run(out)
    # Of one fold after another, for logits may be large.
    tables = (Fold(fold.folder, run).held_out for fold in full_repeats(run.folds)[0])
    predicted, labels = zip(*((table.logits.argmax(1), table.labels) for table in tables), strict=True)
    for line in uneven_lines(np.concatenate(predicted), np.concatenate(labels), run.classes):
        say(line)
