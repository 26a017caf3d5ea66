"""What a run is trained on: its images, their folds, and how training and evaluation transform them. N rows."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from creature.console import say, warn
from creature.data.augment import Augmentation, cached_transform, exact_transform, training_augmentation
from creature.data.class_folders import one_class_error
from creature.data.dataset import read_images, rows_of_run
from creature.data.eval_transform import EvalTransform
from creature.data.folds import FoldTable, find_folds_file, read_folds
from creature.data.image_cache import CachedImages, ImageCache, describe_cache
from creature.data.loader import ImageDataset, RunImages
from creature.data.order import epoch_steps
from creature.data.scan import refuse_bad, scan_images
from creature.data.sources import SourceFormat, short_names
from creature.device import usable_cores
from creature.errors import UserError
from creature.recipe import Augment, Folds, Images, Recipe, Schedule
from creature.run import Run
from creature.storage import file_hash
from creature.training.backbone import mean_and_std, reach_weights
from creature.training.partition import make_folds, rows_as_saved, warn_of_holdout_copies
from creature.training.run_folder import fold_state, open_run, refuse_foreign_folder, share_folds, warn_of_places
from creature.training.source import starting_weights


@dataclass(frozen=True)
class TrainData:
    """A run's labelled images with their folds, as training and evaluation see them."""

    folds: FoldTable
    images: RunImages
    batch_size: int  # of all processes together
    schedule: Schedule  # of each fold, lengthened where its images are few
    buffer_bytes: int = 0  # that the pixels of the largest batch take
    features: torch.Tensor | None = None  # (N, D), of the backbone on its starting weights, where they are needed


def prepare_data(accelerator: Accelerator, recipe: Recipe, out: Path, *, resume: bool) -> TrainData:
    """The run's folder, images and folds. The main process reads and writes; the others are told.

    Raises UserError where a fold to train exists and `resume` was not asked for.
    """
    begun = [folder for fold in recipe.train_folds if fold_state(folder := out / f"fold-{fold}") != "missing"]
    if begun and not resume:
        raise UserError(
            f"{begun[0]} exists and is never overwritten; --resume goes on with it, "
            "--out DIR or another name starts a new run"
        )
    hashes = _check_run(recipe, out, resume) if accelerator.is_main_process else {}
    images = recipe.images
    columns = SourceFormat(images.image_column, images.label_column, images.labels, group=recipe.folds.group)
    sources = [*images.train, *images.validation]
    dataset = read_images(sources, columns, _field(images))
    if len(names := dataset.features["label"].names) == 1:
        raise one_class_error(sources, names[0], _field(images))
    transform = eval_transform(images, recipe.backbone.name)
    shared: list[Any] = [None, None, None]
    if accelerator.is_main_process:
        good, folds, cache = _check_images(recipe, out, dataset, transform=transform, hashes=hashes)
        say(f"{out}: {_describe(recipe.folds, folds)}, on {accelerator.device}")
        if images.cache != "off":
            say(f"images.cache: {describe_cache(images.cache, cache)}")
        shared = [good, folds, cache]
    if accelerator.num_processes > 1:
        broadcast_object_list(shared)
    good, folds, cache = shared
    dataset = rows_of_run(dataset, good, folds.ids)
    pa.default_memory_pool().release_unused()  # a training has no other use for what Arrow keeps of this one
    schedule = fit_schedule(recipe, folds)
    augmentations = epoch_augmentations(recipe.augment, images.size, schedule.epochs)
    if cache is None:
        training = ImageDataset(dataset, *augmentations, seed=recipe.seed)
        held_out = ImageDataset(dataset, exact_transform(transform))
    else:
        dataset, contents = dataset.select_columns(["id", "label"]), folds.hashes.to_pylist()
        copies, views = (CachedImages(cache, contents, views=views) for views in (False, True))
        training = ImageDataset(dataset, *augmentations, seed=recipe.seed, cached=copies)
        held_out = ImageDataset(dataset, cached_transform, cached=views)
    largest = (recipe.batch_size + 1) * 3 * max(images.size, *(recipe.augment.sizes or (0,))) ** 2
    return TrainData(folds, RunImages(training, held_out), recipe.batch_size, schedule, buffer_bytes=largest)


def _field(images: Images) -> str:
    return "images.train and images.validation" if images.validation else "images.train"


def _check_run(recipe: Recipe, out: Path, resume: bool) -> dict[str, str | None]:
    """Refuse a changed recipe, or weights that cannot be fetched, before the images are read; gives hash_contents."""
    hashes = hash_contents(starting_weights(recipe.backbone), recipe.loss.teacher)
    workers, cores = recipe.images.workers, usable_cores()
    if workers != "auto" and workers > cores:
        warn(
            f"images.workers: should be at most the cores that may be used, {cores}, got {workers}; more save no time, "
            f"images.workers={cores} takes less memory"
        )
    if (out / "recipe.yaml").exists():
        open_run(out, recipe, hashes)
        warn_of_places(out, recipe)
        _ = Run(out).folds  # which refuses a copy of a fold
    else:
        refuse_foreign_folder(out, [*recipe.images.train, *recipe.images.validation, *recipe.images.holdout])
        reach_weights(recipe.backbone)  # now, or a run would be left behind
        if resume:
            say(f"{out}: nothing is there to go on with; a new run begins")
    return hashes


def _check_images(
    recipe: Recipe, out: Path, dataset: Any, *, transform: EvalTransform, hashes: dict[str, str | None]
) -> tuple[np.ndarray, FoldTable, ImageCache | None]:
    """Decode what is not known to be sound, and open the run with its folds: those that it has, or new ones.

    Gives the rows of the dataset that can be decoded, their folds and their cache.
    """
    field, images = _field(recipe.images), recipe.images
    saved = read_folds(out) if find_folds_file(out) else None
    known = saved.hashes if saved else None
    scan = scan_images(dataset, known, field, kind=images.cache, transform=transform)
    refuse_bad(dataset, scan.bad, images.max_bad, field=field)
    good = np.setdiff1d(np.arange(len(dataset)), list(scan.bad))
    kept, table = (dataset.select(good), scan.table.take(good)) if scan.bad else (dataset, scan.table)
    roots = short_names([*images.train, *images.validation], field)
    if saved and (order := rows_as_saved(saved, kept, table["hash"], roots=roots)) is not None:
        folds, good = saved, good[order]
    else:
        folds = make_folds(recipe, kept, table, bad={dataset[row]["id"]: reason for row, reason in scan.bad.items()})
        warn_of_holdout_copies(images, folds, kept, checked=table, transform=transform)
    open_run(out, recipe, hashes)  # not before: what cannot be trained with must not stay as the run's recipe
    return good, share_folds(out, folds), scan.cache


def _describe(settings: Folds, folds: FoldTable) -> str:
    drawn = f"{settings.count} fold{'s' * (settings.count > 1)}"
    repeats = f", drawn {settings.repeats} times" if settings.repeats > 1 else ""
    return f"{len(folds.ids)} images of {len(folds.class_names)} classes, {drawn}{repeats}"


def fit_schedule(recipe: Recipe, folds: FoldTable) -> Schedule:
    """The schedule of all members, with as many epochs as the one of fewest images needs; says if these are more."""
    images = min(int((~folds.held_out(fold)).sum()) for fold in range(folds.members))
    steps, asked = epoch_steps(images, recipe.batch_size), recipe.schedule
    schedule = asked.lengthened(steps)
    if schedule != asked:
        say(
            f"schedule.min_steps: {schedule.epochs} epochs a fold instead of {asked.epochs}, for "
            f"{steps * schedule.epochs} steps instead of {steps * asked.epochs}; {images} images make {steps} an epoch"
        )
    return schedule


def hash_contents(weights: str | None, teacher: str | None) -> dict[str, str | None]:
    """Hashes of files that a training's result rests on: the starting weights, the teacher's held-out predictions.

    Raises UserError for a teacher without predictions.
    """
    predictions = sorted(Path(teacher).glob("fold-*/held_out.safetensors")) if teacher else []
    if teacher and not predictions:
        raise UserError(f"loss.teacher: {teacher} is no run with a finished fold; train it, or set it to null")
    listed = [f"{path.parent.name} {file_hash(path)}\n" for path in predictions]
    return {
        "weights": file_hash(weights) if weights else None,
        "teacher": hashlib.sha256("".join(listed).encode()).hexdigest() if teacher else None,
    }


def eval_transform(images: Images, backbone: str) -> EvalTransform:
    """How held-out and new images become pixels."""
    mean, _ = mean_and_std(backbone, images.normalize)
    return EvalTransform(images.size, images.crop_mode, mean)


def epoch_augmentations(augment: Augment, size: int, epochs: int) -> list[Augmentation]:
    """The augmentation of each epoch: its size is `size`, or grows with augment.sizes."""
    sizes = augment.sizes or (size,)
    by_size = {size: training_augmentation(size, augment) for size in sizes}
    return [by_size[sizes[epoch * len(sizes) // epochs]] for epoch in range(epochs)]
