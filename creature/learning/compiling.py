"""backbone.compile=auto: a trial of torch.compile, whose gain depends on the network, the device and the batch."""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from creature.learning.loop import train_mode
from creature.learning.runs import share_trial, tried
from creature.recipe import Recipe
from creature.terminal import say

# Compiling takes a minute or so, and a tenth of the time was the most that it saved on a CPU.
SHORT = 600.0

Timer = Callable[[Callable[[torch.Tensor], torch.Tensor]], float]


@dataclass(frozen=True)
class Trial:
    """Seconds of forward and backward passes in turns, as the network is and compiled, and of compiling."""

    plain: Sequence[float]
    compiled: Sequence[float]
    compiling: float

    def saves(self, passes: int, graphs: int) -> float:
        """The seconds that it saves so many passes, less those of compiling so many graphs."""
        return passes * (median(self.plain) - median(self.compiled)) - graphs * self.compiling


def compiles(accelerator: Accelerator, recipe: Recipe, model: nn.Module, rows: int, run: Path) -> bool:
    """Whether to compile the training of a fold with so many rows: the recipe's word, or for auto a trial's.

    The first trial is kept in the run, for the folds after it and for a resumed one: a compiled step rounds otherwise.
    """
    if recipe.backbone.compile != "auto":
        return recipe.backbone.compile
    found: list[Any] = [tried(run) if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    if found[0] is None:
        found = [decide(accelerator, recipe, model, rows)]  # all processes at once, as in training
        if accelerator.is_main_process:
            found = [share_trial(run, found[0])]
        if accelerator.num_processes > 1:
            broadcast_object_list(found)
    say(f"backbone.compile: auto is {str(found[0]['compile']).lower()}; {found[0]['reason']}")
    return found[0]["compile"]


def decide(accelerator: Accelerator, recipe: Recipe, model: nn.Module, rows: int) -> dict[str, Any]:
    """Whether compiling pays for a fold of so many rows, and what was measured."""
    sizes = recipe.augment.sizes or (recipe.images.size,)
    batch = min(recipe.batch_size, rows)
    share = max(1, batch // accelerator.num_processes // recipe.accumulate)
    layout = torch.channels_last if recipe.backbone.channels_last else torch.contiguous_format
    images = torch.rand(share, 3, sizes[-1], sizes[-1], device=accelerator.device).to(memory_format=layout)
    passes = recipe.schedule.epochs * recipe.accumulate * -(-rows // recipe.batch_size)
    copy = deepcopy(model)
    train_mode(copy, recipe.backbone.freeze_batch_stats)
    seconds = timer(accelerator, images)
    try:
        seconds(copy.forward)  # warms up
        if (all_of_it := passes * seconds(copy.forward)) < SHORT:
            reason = f"a fold's passes take {all_of_it:.0f} s, and it is tried from {SHORT:.0f} s on"
            return {"compile": False, "reason": reason}
        found = trial(copy, seconds)
    except RuntimeError as error:  # no compiler, what it cannot compile, or too little memory
        return {"compile": False, "reason": f"its trial failed: {str(error).splitlines()[0][:200]}"}
    graphs = len(sizes) * (1 + (rows % recipe.batch_size > 0))
    saved = found.saves(passes, graphs)
    reason = (
        f"a step's passes took {median(found.plain):.3g} s and compiled {median(found.compiled):.3g} s, and compiling "
        f"{found.compiling:.0f} s: in a fold's {passes} passes of {graphs} graph{'s' * (graphs > 1)} it "
        f"{'saves' if saved > 0 else 'loses'} {abs(saved):.0f} s"
    )
    return {"compile": saved > 0, "reason": reason, "plain": found.plain, "compiled": found.compiled}


def timer(accelerator: Accelerator, images: torch.Tensor) -> Timer:
    """Gives the seconds of a call's forward and backward pass; gradients are added up, parameters stay."""

    def seconds(call: Callable[[torch.Tensor], torch.Tensor]) -> float:
        began = time.perf_counter()
        with accelerator.autocast():
            answers = call(images)
        answers.float().logsumexp(1).sum().backward()
        if images.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - began

    return seconds


def trial(model: nn.Module, seconds: Timer, rounds: int = 5) -> Trial:
    """Time a model that is not needed any more, as it is and compiled, in turns."""
    torch.compiler.reset()
    model.compile(dynamic=False)
    first = seconds(model)
    plain, compiled = [], []
    for _ in range(rounds):
        plain.append(seconds(model.forward))  # which is not the compiled call
        compiled.append(seconds(model))
    return Trial(plain, compiled, first - median(compiled))
