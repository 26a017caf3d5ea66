"""backbone.compile=auto: a trial of torch.compile, whose gain depends on the network, the device and the batch."""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from creature.console import say
from creature.recipe import Recipe
from creature.training.backbone import reason_of
from creature.device import keep_memory
from creature.training.loop import train_mode
from creature.training.run_folder import share_trial, trial_of

# Compiling takes a minute or so, and a few percent of the time were the most that it saved on a CPU.
SHORT = 600.0

Timer = Callable[[Callable[[torch.Tensor], torch.Tensor]], float]


@dataclass(frozen=True)
class Trial:
    """Seconds of forward and backward passes in turns, as the network is and compiled, and of compiling."""

    plain: Sequence[float]
    compiled: Sequence[float]
    compiling: float

    def saves(self, passes: float, graphs: int) -> float:
        """Seconds that so many passes are shorter by, by the worst pair, less those of compiling so many graphs."""
        gain = min(plain - compiled for plain, compiled in zip(self.plain, self.compiled, strict=True))
        return passes * gain - graphs * self.compiling


def compiles(accelerator: Accelerator, recipe: Recipe, model: nn.Module, rows: int, run: Path) -> bool:
    """Whether to compile the training of a fold with so many rows: the recipe's word, or for auto a trial's.

    What a trial found is kept in the run, for the folds after it and for a resumed one: a compiled step rounds
    otherwise. One that failed is not: the next start may have a compiler, or more memory.
    """
    if recipe.backbone.compile != "auto":
        return recipe.backbone.compile
    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [trial_of(run) or share_trial(run, decide(accelerator, recipe, model, rows))]
        except RuntimeError as error:  # no compiler, a network that it cannot compile, or too little memory
            why = reason_of(getattr(error, "inner_exception", error))  # torch's own first line names its backend
            found = [{"compile": False, "reason": f"the trial failed: {why}"}]
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    say(f"backbone.compile: auto is {str(found[0]['compile']).lower()}: {found[0]['reason']}")
    return found[0]["compile"]


def count_work(recipe: Recipe, rows: int, processes: int) -> tuple[int, float, int]:
    """A process's images in a pass, and of a fold the passes, as if all were of the last size, and the graphs."""
    sizes, pieces = recipe.augment.sizes or (recipe.images.size,), processes * recipe.accumulate
    batches = {min(recipe.batch_size, rows), rows % recipe.batch_size} - {0}
    parts = {max(1, n) for batch in batches for n in (batch // pieces, -(-batch // pieces))}
    share = mean(size**2 for size in sizes) / sizes[-1] ** 2
    passes = share * recipe.schedule.epochs * recipe.accumulate * -(-rows // recipe.batch_size)
    return max(parts), passes, len(set(sizes)) * len(parts)


def decide(accelerator: Accelerator, recipe: Recipe, model: nn.Module, rows: int) -> dict[str, Any]:
    """Whether compiling pays for a fold of so many rows, why, and what was measured.

    Raises RuntimeError where torch cannot compile, or compute, it.
    """
    size = (recipe.augment.sizes or (recipe.images.size,))[-1]
    pictures, passes, graphs = count_work(recipe, rows, accelerator.num_processes)
    layout = torch.channels_last if recipe.backbone.channels_last else torch.contiguous_format
    copy = deepcopy(model)  # its statistics and gradients are not the fold's
    train_mode(copy, recipe.backbone.freeze_batch_stats)
    keep_memory(accelerator.device)  # as in training
    try:
        images = torch.rand(pictures, 3, size, size, device=accelerator.device).to(memory_format=layout)
        seconds = timer(accelerator, images)
        seconds(copy.forward)  # warms up
        if (whole := passes * seconds(copy.forward)) < SHORT:
            reason = f"a fold computes for {whole:.0f} s, and a trial of torch.compile is for {SHORT:.0f} s and more"
            return {"compile": False, "reason": reason}
        say("backbone.compile: trying torch.compile, which takes minutes")
        found = trial(copy, seconds)
    finally:
        copy.to("meta")  # gives its memory back now; what was compiled and the copy refer to each other
        torch.compiler.reset()
    saved = found.saves(passes, graphs)
    reason = (
        f"a forward and backward pass takes {median(found.plain):.3g} s, compiled {median(found.compiled):.3g} s, and "
        f"compiling {found.compiling:.0f} s for each of {graphs} shape{'s' * (graphs > 1)} of a batch: by the trial's "
        f"worst pair a fold's {passes:.0f} passes take {abs(saved):.0f} s {'less' if saved > 0 else 'more'}"
    )
    return {"compile": saved > 0, "reason": reason, **asdict(found)}


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
