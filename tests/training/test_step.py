"""What a step asks of its device beside forward, backward and the optimizer's step: few operations, and no waiting."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from creature.data.loader import Batch
from creature.recipe import Recipe
from creature.training import loop
from creature.training.distributed import start_accelerator
from creature.training.learner import Learner, build_learner
from creature.training.optimizer import parameter_groups
from creature.training.saver import Saver
from creature.training.signals import Stop
from creature.training.train_data import prepare_data

STEPS = 10


def recipe_of(drawn: Path, **settings: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "step",
            "images": {"train": (str(drawn / "train"),), "size": 32},
            "folds": {"count": 2, "train": (0,)},
            "backbone": {"name": "resnet18", "pretrained": False},
            "schedule": {"name": "constant"},
            "batch_size": 4,
            **settings,
        }
    )


def our_steps(recipe: Recipe, out: Path) -> tuple[Learner, list[Batch], Callable[[], None]]:
    """A learner, ready batches, and an epoch of steps on them."""
    accelerator = start_accelerator(recipe, out)
    learner = build_learner(accelerator, recipe, prepare_data(accelerator, recipe, out, resume=False), fold=0)
    learner.model, learner.batch_sizes = accelerator.prepare(learner.model), [recipe.batch_size] * STEPS
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (STEPS, 4, 3, 32, 32), dtype=torch.uint8, generator=random)
    labels = torch.randint(12, (STEPS, 4), generator=random)
    rows = torch.arange(4)
    batches = [Batch(*pair, rows, list("abcd"), bad={}) for pair in zip(pixels, labels, strict=True)]

    saver = Saver(accelerator, learner, out, settings=recipe.checkpoint)

    def steps() -> None:
        learner.state.batch = 0
        loop.train_epoch(accelerator, learner, iter(batches), stop=Stop(), saver=saver, title="epoch")

    return learner, batches, steps


def bare_steps(recipe: Recipe, learner: Learner, batches: list[Batch]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(parameter_groups(learner.model, recipe.optimizer), lr=1e-4, fused=True)

    def steps() -> None:
        for batch in batches:
            optimizer.zero_grad()
            cross_entropy(learner.model(learner.normalize(batch.pixels)), batch.labels).backward()
            optimizer.step()

    return steps


def operations(steps: Callable[[], None]) -> list[str]:
    """The names of torch's operations; those that a foreach operation is made of on a CPU count as one."""

    def ancestors(event: FunctionEvent) -> Iterator[str]:
        while event.cpu_parent is not None:
            event = event.cpu_parent
            yield event.name

    steps()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        steps()
    events = [event for event in profiled.events() or () if event.name.startswith("aten::")]
    return [event.name for event in events if not any(name.startswith("aten::_foreach") for name in ancestors(event))]


@pytest.fixture(autouse=True)
def read_as_rarely_as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(loop, "steps_per_read", lambda device: STEPS)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_a_step_asks_for_few_operations_beside_those_of_the_network(name, drawn, tmp_path):
    recipe = recipe_of(drawn, backbone={"name": name, "pretrained": False})
    learner, batches, steps = our_steps(recipe, tmp_path)
    ours, bare = operations(steps), operations(bare_steps(recipe, learner, batches))
    assert len(ours) <= 1.05 * len(bare)
    assert ours.count("aten::item") <= bare.count("aten::item") + 1  # the results of all steps are read at once


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixing_looks_at_no_label(mix, drawn, tmp_path):
    _, _, steps = our_steps(recipe_of(drawn, augment={"mix": mix}), tmp_path)
    assert not {"aten::one_hot", "aten::aminmax"} & set(operations(steps))


def test_mixing_ends_with_the_epoch_that_is_asked_for(drawn, tmp_path):
    settings = {"augment": {"mix": "mixup", "mix_until": 0.5}, "schedule": {"name": "constant", "epochs": 4}}
    learner, _, steps = our_steps(recipe_of(drawn, **settings), tmp_path)
    mixed = []
    for learner.state.epoch in range(4):
        mixed.append("aten::roll" in operations(steps))
    assert mixed == [True, True, False, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mix", ["none", "mixup_or_cutmix"])
def test_no_step_waits_for_the_gpu(mix, drawn, tmp_path, monkeypatch):
    _, _, steps = our_steps(recipe_of(drawn, augment={"mix": mix}), tmp_path)
    steps()
    read = loop.read_steps

    def reading(*args: object) -> list[loop.StepResult]:
        torch.cuda.set_sync_debug_mode("default")
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "read_steps", reading)
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps()
    finally:
        torch.cuda.set_sync_debug_mode("default")
