"""What a step of ours takes beside forward, backward and step alone, on batches that are ready.

python benchmarks/step.py [ROUNDS]

`train_epoch` with all that it does (seeds, rates, the check for finite numbers, what it tells, progress) against a
bare loop: the same network, uint8 batches, normalization and fused AdamW. One thread, so the time is the processor's,
which other programs on this machine lengthen less. After the same steps both have the same weights, bit for bit.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from sides import Ratio, in_turns, judge, ratio, record  # first, for it puts this checkout first
from torch import nn
from torch.nn.functional import cross_entropy

from creature.console import say
from creature.data.folds import FoldTable
from creature.data.loader import Batch
from creature.recipe import Recipe
from creature.training import loop
from creature.training.distributed import start_accelerator
from creature.training.learner import Learner, build_learner
from creature.training.optimizer import parameter_groups
from creature.training.saver import Saver
from creature.training.signals import Stop
from creature.training.train_data import TrainData

CLASSES = 12
# Network, pixels, rows, steps a round: a small step shows the milliseconds, a large one the share.
CASES = (("tf_efficientnet_lite0", 32, 2, 20), ("test_resnet", 64, 32, 20), ("tf_efficientnet_lite0", 96, 32, 4))

Loop = tuple[nn.Module, Callable[[], None]]  # a model, and some steps of its training


def make_recipe(name: str, size: int, batch_size: int, **settings: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "step",
            "images": {"train": ("ready",), "size": size},
            "folds": {"count": 2, "train": (0,)},
            "backbone": {"name": name, "pretrained": False},
            "schedule": {"name": "constant"},
            "batch_size": batch_size,
            "device": "cpu",
            **settings,
        }
    )


def ready_batches(size: int, rows: int, steps: int, seed: int = 0, pinned: bool = False) -> list[Batch]:
    """Noise, for which a network takes as long as for images; `pinned` for a GPU."""
    random = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(steps):
        pixels = torch.randint(256, (rows, 3, size, size), dtype=torch.uint8, generator=random)
        labels = torch.randint(CLASSES, (rows,), generator=random)
        if pinned:
            pixels, labels = pixels.contiguous(memory_format=torch.channels_last).pin_memory(), labels.pin_memory()
        batches.append(Batch(pixels, labels, torch.arange(rows), ids=[str(row) for row in range(rows)], bad={}))
    return batches


def new_learner(recipe: Recipe, steps: int) -> tuple[Accelerator, Learner]:
    """A learner whose epoch has so many steps."""
    labels = np.arange(2 * CLASSES) % CLASSES
    ids = tuple(map(str, range(len(labels))))
    folds = FoldTable(
        2,
        0,
        tuple(map(str, range(CLASSES))),
        fingerprint="",
        ids=ids,
        labels=labels,
        partitions=(np.repeat((0, 1), CLASSES),),
        hashes=ids,
        bad={},
    )
    nothing: Any = None  # no image is decoded
    data = TrainData(folds, nothing, recipe.batch_size, recipe.schedule)
    with TemporaryDirectory() as name:
        accelerator = start_accelerator(recipe, Path(name))
    learner = build_learner(accelerator, recipe, data, fold=0)
    learner.model, learner.batch_sizes = accelerator.prepare(learner.model), [recipe.batch_size] * steps
    return accelerator, learner


def our_loop(recipe: Recipe, batches: list[Batch]) -> Loop:
    accelerator, learner = new_learner(recipe, len(batches))
    # It has nothing to write for as long as recipe.checkpoint.every_minutes.
    stop, saver = Stop(), Saver(accelerator, learner, Path("unused"), settings=recipe.checkpoint)

    def steps() -> None:
        learner.state.batch = 0
        loop.train_epoch(accelerator, learner, iter(batches), stop=stop, saver=saver, title="epoch")

    return learner.model, steps


def bare_loop(
    recipe: Recipe, batches: list[Batch], wrap: Callable[[nn.Module], nn.Module] = lambda model: model
) -> Loop:
    accelerator, learner = new_learner(recipe, len(batches))
    model = wrap(accelerator.unwrap_model(learner.model))
    groups = parameter_groups(model, recipe.optimizer)
    optimizer = torch.optim.AdamW(groups, lr=recipe.optimizer.lr, fused=True)

    def steps() -> None:
        model.train()
        for batch in batches:
            pixels, labels = (tensor.to(accelerator.device, non_blocking=True) for tensor in batch[:2])
            optimizer.zero_grad()
            with accelerator.autocast():
                logits = model(learner.normalize(pixels))
            cross_entropy(logits.float(), labels).backward()
            optimizer.step()

    return model, steps


def difference(one: nn.Module, other: nn.Module) -> float:
    """The largest of any weight or statistic."""
    both = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((mine - yours).abs().max()) for mine, yours in both)


def processor_time(work: Callable[[], None]) -> Callable[[], float]:
    def timed() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=25, metavar="ROUNDS", help="(%(default)s)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for name, size, rows, steps in CASES:
        recipe, batches = make_recipe(name, size, rows), ready_batches(size, rows, steps)
        (our_model, ours), (bare_model, bare) = our_loop(recipe, batches), bare_loop(recipe, batches)
        ours(), bare()
        far = difference(our_model, bare_model)
        seconds = in_turns({"ours": processor_time(ours), "bare": processor_time(bare)}, rounds)
        title = f"{steps} steps of {name} at {size} px, batch {rows}"
        judge("P3", title, "ours", seconds, {"bare": 1.02} if rows == 32 else {})
        measured, step = ratio(seconds["ours"], seconds["bare"]), 1000 * float(np.median(seconds["bare"])) / steps
        more = Ratio(*(step * (value - 1) for value in measured[:3]), measured.pairs)
        record("P3", f"{title}: ours more than bare", 1.0, more, unit="ms a step", weights_differ_by=far)
        say(f"ours takes {more} ms a step more (at most 1.00); after {steps} steps weights differ by {far:.1e} at most")


if __name__ == "__main__":
    main()
