"""A training, opened: Accelerate, the run's images with their folds, and where their batches come from."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from creature.console import say, warn
from creature.data.device_images import DeviceImages
from creature.data.folds import FoldTable
from creature.data.fork_server import fork_server
from creature.data.loader import MakeBatches, RunImages, start_loader
from creature.device import choose_workers, deterministic_algorithms, keep_memory, process_cores
from creature.recipe import Images, Recipe, recipe_warnings
from creature.storage import explain_disk_errors
from creature.training import distributed, features, loop, train_data
from creature.training.backbone import check_backbone
from creature.training.optimizer import check_optimizer
from creature.training.train_data import TrainData


@dataclass
class Training:
    """What all folds of a run are trained with."""

    accelerator: Accelerator
    data: TrainData
    make_batches: MakeBatches
    micro_batches: int = 1  # in which a step of the fold before fitted into the memory


@contextmanager
def open_training(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool,
    own_process: bool,
    make_targets: Callable[[FoldTable], torch.Tensor] | None = None,
) -> Iterator[Training]:
    """The run's folder, images and batches, until the block ends; `make_targets` gives soft targets (N, K) of its rows.

    `own_process`: the process does nothing else, so its threads, memory and progress bars may be set for the training.
    Raises UserError for what cannot be trained, BrokenError within the block for what breaks on the way.
    """
    check_backbone(recipe.backbone)
    check_optimizer(recipe.optimizer.name)
    accelerator = distributed.start_accelerator(recipe, out, own_process=own_process)
    for warning in recipe_warnings(recipe):
        warn(warning)
    with (
        distributed.naming_lost_process(accelerator),
        explain_disk_errors(out),
        loop.restoring_random_state(accelerator.device),
        deterministic_algorithms(recipe.deterministic),
        open_batches(recipe.images, accelerator.device) as start_batches,
    ):
        # guard: restart-resumes
        data = train_data.prepare_data(accelerator, recipe, out, resume=resume or distributed.restarts() > 0)
        if own_process:
            keep_memory(accelerator.device)
        if make_targets:
            data.images.training.targets = make_targets(data.folds)
        make_batches = start_batches(data.images, data.buffer_bytes)
        if features.needs_features(recipe.backbone, [out / f"fold-{fold}" for fold in recipe.train_folds]):
            data, make_batches = features.add_features(
                accelerator, data, make_batches, backbone=recipe.backbone, images=recipe.images
            )
        yield Training(accelerator, data, make_batches)
    accelerator.end_training()


@contextmanager
def open_batches(settings: Images, device: torch.device) -> Iterator[Callable[[RunImages, int], MakeBatches]]:
    """A function of the run's images, and the bytes of its largest batch, that gives their batches within the block.

    They come from a pool of workers or, with images.cache: device, from the device's memory. What starts workers gets
    ready until the call, while images are checked.
    """
    on_device = settings.cache == "device"
    workers = 0 if on_device else choose_workers(settings.workers, device)
    with ExitStack() as context:
        if workers:
            context.enter_context(fork_server("creature.data.loader", "datasets"))

        def start(images: RunImages, buffer_bytes: int) -> MakeBatches:
            if on_device:
                return DeviceImages(images, device).batches
            if settings.workers == "auto":
                say(f"images.workers: auto, {workers} of {process_cores()} cores prepare images")
            return context.enter_context(start_loader(images, workers, buffer_bytes, device=device))

        yield start
