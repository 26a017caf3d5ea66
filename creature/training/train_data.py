"""What stands before the first step: device and checks, the run's images and folds, a fold's model and optimizer."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import nn

from creature.console import console, say, warn
from creature.data.augment import Augmentation, cached_transform, exact_transform, make_mix, training_augmentation
from creature.data.dataset import column, fingerprint, read_images
from creature.data.duplicates import near_duplicates
from creature.data.eval_transform import EvalTransform
from creature.data.folds import FoldTable, assign_folds, find_folds_file, folds_hash, group_copies, read_folds
from creature.data.image_cache import CachedImages, describe_cache
from creature.data.loader import FeatureDataset, ImageDataset, derive_seed
from creature.data.normalize import Normalize
from creature.data.scan import refuse_bad, scan_images, sketches_of
from creature.data.sources import Columns
from creature.device import device_precision, keep_memory, share_cores, usable_cores
from creature.errors import UserError
from creature.metrics.predictions import load_predictions
from creature.recipe import Images, Recipe
from creature.run import with_labels
from creature.storage import file_hash
from creature.training import loop
from creature.training.backbone import (
    Body,
    build_backbone,
    build_optimizer,
    check_backbone,
    check_size,
    mean_and_std,
    parameter_groups,
    reach_weights,
    timm_config,
)
from creature.training.checkpoint import TrainingState, finish_fold, has_state, kept_epoch, load_state, prune_epochs
from creature.training.distributed import MEETING, WAIT, check_processes
from creature.training.linear_probe import start_classifier
from creature.training.loop import Learner, make_see
from creature.training.losses import make_loss
from creature.training.run_folder import environment, fold_state, open_run, share_folds, warn_of_places
from creature.training.schedule import lr_factor


@dataclass(frozen=True)
class Data:
    """A run's labelled images with their folds, and how they are seen."""

    folds: FoldTable
    training: ImageDataset | FeatureDataset
    evaluation: ImageDataset | FeatureDataset
    workers: int
    features: torch.Tensor | None = None  # (N, D), of the backbone as it is, where they are needed


def start(recipe: Recipe, out: Path) -> Accelerator:
    """Check the recipe against timm, the trackers and the device, and start Accelerate; no data is read yet."""
    check_backbone(recipe.backbone)
    known = {str(tracker) for tracker in get_available_trackers()}
    if unknown := set(recipe.tracking) - known:
        raise UserError(
            f"tracking: {', '.join(sorted(unknown))} is not installed; there is: {', '.join(sorted(known)) or 'none'} "
            "(pip install 'creature[tracking]' brings tensorboard)"
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
    if (workers := recipe.images.workers) > (cores := usable_cores()):
        told = f"should be at most the cores that may be used, {cores}, got {workers}"
        warn(f"images.workers: {told}; more save no time, images.workers={cores} takes less memory")
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
    contents: dict[str, str | None] = {}
    if accelerator.is_main_process:
        contents = hash_contents(recipe)
        if (out / "recipe.yaml").exists():
            open_run(out, recipe, contents)  # before the images are read: a changed recipe is refused at once
            warn_of_places(out, recipe)
        else:
            reach_weights(recipe.backbone)  # or weights that are not to be had would leave a run behind
            if resume:
                say(f"{out}: nothing is there to go on with; a new run begins")
    images = recipe.images
    columns = Columns(images.image_column, images.label_column, images.labels, recipe.folds.group)
    field = "images.train and images.validation" if images.validation else "images.train"
    dataset = read_images([*images.train, *images.validation], columns, field)
    mean, _ = mean_and_std(recipe.backbone.name, images.normalize)
    transform = EvalTransform(images.size, images.crop_mode, mean)
    found: list[Any] = [None]
    if accelerator.is_main_process:
        saved = read_folds(out) if find_folds_file(out) else None
        known = saved.hashes if saved else None
        scan = scan_images(dataset, known, field, kind=images.cache, transform=transform)
        checked, bad, cache = scan.table, scan.bad, scan.cache
        refuse_bad(dataset, bad, images.max_bad, field)
        good = np.setdiff1d(np.arange(len(dataset)), list(bad))
        kept, checked = (dataset.select(good), checked.take(good)) if bad else (dataset, checked)
        names = {dataset[row]["id"]: reason for row, reason in bad.items()}
        if saved and has_rows(saved, kept, checked["hash"]):
            folds = saved
        else:
            folds = part(recipe, kept, checked, names)
            compare_holdout(images, folds, checked, transform)
        open_run(out, recipe, contents)  # not before: what cannot be trained with must not stay as the run's recipe
        found = [(good, share_folds(out, folds), cache)]
        total = f"{len(good)} images of {len(folds.class_names)} classes"
        repeats = f", drawn {recipe.folds.repeats} times" if recipe.folds.repeats > 1 else ""
        parts = f"{recipe.folds.count} fold{'s' * (recipe.folds.count > 1)}{repeats}"
        say(f"{out}: {total}, {parts}, on {accelerator.device}")
        if images.cache != "off":
            say(f"images.cache: {describe_cache(images.cache, cache)}")
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    good, folds, cache = found[0]
    rows = dataset if len(good) == len(dataset) else dataset.select(good)
    pa.default_memory_pool().release_unused()  # a training has no other use for what Arrow keeps of this one
    train, exact = epoch_augmentations(recipe), exact_transform(transform)
    if cache is None:
        return Data(folds, ImageDataset(rows, *train, seed=recipe.seed), ImageDataset(rows, exact), images.workers)
    copies, views = (CachedImages(cache, folds.hashes.to_pylist(), views) for views in (False, True))
    rows = rows.select_columns(["id", "label"])
    seen = (
        ImageDataset(rows, *train, seed=recipe.seed, cached=copies),
        ImageDataset(rows, cached_transform, cached=views),
    )
    return Data(folds, *seen, images.workers)


def hash_contents(recipe: Recipe) -> dict[str, str | None]:
    """Hashes of what the recipe names and a training's result rests on: the starting weights, the teacher's answers.

    Raises UserError for a teacher without answers.
    """
    weights, teacher = recipe.backbone.weights, recipe.loss.teacher
    answers = sorted(Path(teacher).glob("fold-*/held_out.safetensors")) if teacher else []
    if teacher and not answers:
        raise UserError(f"loss.teacher: {teacher} is no run with a finished fold; train it, or set it to null")
    listed = [f"{path.parent.name} {file_hash(path)}\n" for path in answers]
    return {
        "weights": file_hash(weights) if weights else None,
        "teacher": hashlib.sha256("".join(listed).encode()).hexdigest() if teacher else None,
    }


def epoch_augmentations(recipe: Recipe) -> list[Augmentation]:
    """A training view for each epoch."""
    sizes, epochs = recipe.augment.sizes or (recipe.images.size,), recipe.schedule.epochs
    views = {size: training_augmentation(size, recipe.augment) for size in sizes}
    return [views[sizes[epoch * len(sizes) // epochs]] for epoch in range(epochs)]


def needs_features(recipe: Recipe, out: Path) -> bool:
    """Whether a fold is to be trained on features, or to be started by a probe of them."""
    folders = [out / f"fold-{fold}" for fold in recipe.train_folds]
    unfinished = [folder for folder in folders if fold_state(folder) != "finished"]
    probed = recipe.backbone.head_start == "probe"
    return any(recipe.backbone.frozen or (probed and not has_state(folder)) for folder in unfinished)


def embed(accelerator: Accelerator, recipe: Recipe, data: Data) -> Data:
    """With the features of the backbone as it is, computed once for all folds; a frozen one is trained on them."""
    frozen, name = recipe.backbone.frozen, recipe.backbone.name
    model = build_backbone(recipe.backbone, len(data.folds.class_names), recipe.images.size)
    field = f"backbone.{'frozen' if frozen else 'head_start'}"
    body = Body(model, field, name, recipe.images.size).to(accelerator.device)
    normalize, rows = normalization(accelerator, recipe), np.arange(len(data.folds.labels))
    words = (data.evaluation, rows, recipe.batch_size, recipe.images.workers, "features")
    keep_memory(accelerator.device)
    features = torch.from_numpy(loop.predict(accelerator, body, normalize, *words))
    if not frozen:
        return replace(data, features=features)
    found = FeatureDataset(data.evaluation.dataset.select_columns(["id", "label"]), features)
    return Data(data.folds, found, found, 0, features)


def normalization(accelerator: Accelerator, recipe: Recipe) -> Normalize:
    """What makes pixels the backbone's input, on the device."""
    mean, std = mean_and_std(recipe.backbone.name, recipe.images.normalize)
    return Normalize(mean, std, recipe.backbone.channels_last).to(accelerator.device)


def has_rows(folds: FoldTable, dataset: Any, hashes: Any) -> bool:
    """Whether a fold file is of just these rows, with their classes and contents."""
    return (
        folds.class_names == tuple(dataset.features["label"].names)
        and column(dataset, "id").equals(folds.ids)
        and np.array_equal(column(dataset, "label").to_numpy(), folds.labels)
        and hashes.equals(folds.hashes)
    )


def part(recipe: Recipe, dataset: Any, checked: pa.Table, bad: dict[str, str]) -> FoldTable:
    """The folds of rows that were checked: stratified and grouped, or with count 1 images.validation as fold 0."""
    ids, labels, names = column(dataset, "id"), column(dataset, "label").to_numpy(), dataset.features["label"].names
    hashes = checked["hash"]
    alike = near_duplicates(sketches_of(checked)) if "sketch" in checked.column_names else np.arange(len(ids))
    if recipe.folds.count == 1:
        fold = np.where(column(dataset, "source").to_numpy() < len(recipe.images.train), -1, 0)
        contents = hashes.to_numpy()
        if n := int((seen := (fold == 0) & np.isin(contents, contents[fold < 0])).sum()):
            fold[seen] = -1
            warn(f"images.validation: {n} of its images are in images.train, too, and will not be scored")
        if not (fold == 0).any():
            raise UserError(
                "images.validation: it has no image that can be decoded and is not in images.train, too; name others"
            )
        partitions = (fold,)
        if n := int((fold[alike] != fold).sum()):
            warn(
                f"images.validation: it shares {n} images that look the same with images.train, so its score "
                "flatters; creature inspect lists them"
            )
    else:
        groups = group_copies(column(dataset, "group"), hashes, labels, names, alike)
        words = (labels, groups, recipe.folds.count, recipe.folds.seed)
        partitions = tuple(assign_folds(*words, repeat) for repeat in range(recipe.folds.repeats))
    trained = labels[partitions[0] < 0] if recipe.folds.count == 1 else labels
    if len(missing := np.setdiff1d(np.arange(len(names)), trained)):
        listed = ", ".join(names[k] for k in missing[:10])
        raise UserError(f"images.train: no image of the classes {listed}; add some, or remove their folders")
    counts = np.bincount(labels, minlength=len(names))
    if (few := counts < recipe.folds.count).any():
        rarest = counts.argmin()
        warn(
            f"folds.count: classes with fewer images than its {recipe.folds.count} folds: {few.sum()}, such as "
            f"{names[rarest]} with {counts[rarest]}; correct a label, add images, or set fewer folds"
        )
    folds = FoldTable(
        count=recipe.folds.count,
        seed=recipe.folds.seed,
        class_names=tuple(names),
        fingerprint=fingerprint(ids, labels, hashes, names),
        ids=ids,
        labels=labels,
        partitions=partitions,
        hashes=hashes,
        bad=bad,
    )
    if min((~folds.held_out(fold)).sum() for fold in range(folds.members)) < 2:
        raise UserError(f"images.train: {len(ids)} images leave fewer than 2 to train on; add images, or fewer folds")
    return folds


def compare_holdout(images: Images, folds: FoldTable, checked: pa.Table, transform: EvalTransform) -> None:
    """Warn of images of images.holdout that are the run's own, or look like one of them: they are no fair score."""
    if not images.holdout or "sketch" not in checked.column_names:
        return
    columns = Columns(images.image_column, images.label_column, images.labels)
    holdout = read_images(images.holdout, columns, "images.holdout", folds.class_names)
    held = scan_images(holdout, None, "images.holdout", kind="off", transform=transform).table
    checked = checked.filter(folds.partitions[0] < 0) if folds.count == 1 else checked
    same = np.isin(held["hash"].to_numpy(), checked["hash"].to_numpy())
    head = near_duplicates(np.concatenate([sketches_of(checked), sketches_of(held)]))[len(checked) :]
    if same.any():
        warn(f"images.holdout: {same.sum()} of its {len(held)} images are trained on, too, and will not be scored")
    if n := int((~same & (head < len(checked))).sum()):
        warn(
            f"images.holdout: {n} of its {len(held)} images look the same as one that is trained on, so its score "
            "flatters; creature inspect lists them"
        )


def build_learner(accelerator: Accelerator, recipe: Recipe, data: Data, fold: int, folder: Path) -> Learner:
    """A fold's model and optimizer, from the seed or from the newest resume point, prepared by Accelerate."""
    torch.manual_seed(derive_seed(recipe.seed, fold, "weights"))
    backbone, classes = recipe.backbone, len(data.folds.class_names)
    whole = build_backbone(backbone, classes, recipe.images.size)
    if backbone.sync_batchnorm and accelerator.distributed_type == DistributedType.MULTI_GPU:
        whole = convert_sync_batchnorm(whole)
    for size in recipe.augment.sizes or ():
        check_size(whole, backbone.name, size, "augment.sizes")
    whole = whole.to(accelerator.device)
    average = ModelEmaV3(whole, recipe.optimizer.ema_decay, use_warmup=True) if recipe.optimizer.ema_decay else None
    trained = ~data.folds.held_out(fold)
    rows = int(trained.sum())
    if backbone.compile:
        torch.compiler.reset()  # graphs of the fold before count towards torch's limit, past which it compiles no more
        whole.compile(dynamic=False)  # a graph for each batch's size, so that none depends on what came before
    if fold == recipe.train_folds[0]:
        warn_of_parameters(recipe, whole)
    model = whole.get_classifier() if backbone.frozen else whole  # type: ignore[operator]
    normalize = nn.Identity() if backbone.frozen else normalization(accelerator, recipe)
    optimizer = build_optimizer(parameter_groups(model, recipe.optimizer), recipe.optimizer)
    position = load_state(folder, model, optimizer, accelerator.scaler, average)
    if not position.rows and position.batch > position.skipped:  # an older resume point, which did not count them
        position.rows = min(position.batch * recipe.batch_size, rows)
    if backbone.head_start == "probe" and position == TrainingState():
        start_at_probe(recipe, data, fold, whole, average, position)
    counts = np.bincount(data.folds.labels[trained], minlength=classes)
    keep_memory(accelerator.device)
    return Learner(
        accelerator.prepare(model),
        average,
        average.module if average else whole,
        optimizer,
        normalize,
        make_see(normalize, make_mix(recipe.augment, classes)),
        make_loss(recipe.loss, counts.tolist(), accelerator.device),
        position,
        seed=(recipe.seed, fold),
        rate=lambda epochs: recipe.optimizer.lr * lr_factor(recipe.schedule, epochs),
        parts=recipe.gradient_accumulation_steps,
        clip_norm=recipe.optimizer.clip_norm,
        freeze_batch_stats=backbone.freeze_batch_stats,
        save_minutes=recipe.checkpoint.every_minutes,
    )


def start_at_probe(
    recipe: Recipe, data: Data, fold: int, whole: nn.Module, average: ModelEmaV3 | None, position: TrainingState
) -> None:
    """Solve the classifier on the features of a fold's training rows; the position notes what it then scores."""
    assert data.features is not None
    held, labels = data.folds.held_out(fold), data.folds.labels
    start_classifier(whole, data.features[~held], labels[~held], derive_seed(recipe.seed, fold, "probe") % 2**32)
    if average:
        average.set(whole)
    with torch.inference_mode():
        classifier: Any = whole.get_classifier()  # type: ignore[operator]
        found = classifier(data.features[held].to(classifier.weight.device)).cpu().argmax(1).numpy()
    position.start = {"correct": int((found == labels[held]).sum()), "n": int(held.sum())}


def warn_of_parameters(recipe: Recipe, model: nn.Module) -> None:
    """Warn where the members of the ensemble together exceed the recipe's parameters_limit."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    members, limit = recipe.folds.members, recipe.parameters_limit
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

    def scores(epoch: int) -> dict[str, Any]:
        held = with_labels(load_predictions(kept_epoch(folder, epoch) / "held_out.safetensors"), folds)
        return {
            "epoch": epoch + 1,
            **score(held.predicted, held.labels, len(folds.class_names)),
        }

    model, images = learner.whole, recipe.images
    result = {
        "fold": fold,
        "selected": recipe.checkpoint.select == "best",
        **scores(chosen),
        "last": scores(last),
        "start": position.start,
        "epochs": recipe.schedule.epochs,
        "images_trained": int((~folds.held_out(fold)).sum()),
        "class_counts": np.bincount(folds.labels, minlength=len(folds.class_names)).tolist(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(sum(row["seconds"] for row in position.history), 3),
        "saving_seconds": round(position.saving_seconds, 3),
        "recipe": recipe.identity(),
        "folds": folds_hash(folds),
        **environment(accelerator.device, accelerator.num_processes),
    }
    mean, std = mean_and_std(recipe.backbone.name, images.normalize)
    finish_fold(folder, recipe, timm_config(model, folds.class_names, images.size, images.crop_mode, mean, std), result)
    prune_epochs(folder, position, recipe.checkpoint)
