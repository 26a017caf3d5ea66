"""P12: what torch.compile saves of a step, and after how many steps it has paid for compiling.

python benchmarks/compiling.py [ROUNDS]

Forward and backward passes of a network as it is and compiled (backbone.compile false and true), in turns, on noise.
The seconds of compiling belong to an empty cache of torch's, which this program gets.
"""

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from tempfile import TemporaryDirectory

import torch
from sides import ratio, record  # first, for it puts this checkout first
from step import make_recipe, new_learner

from creature.console import say

CASES = (
    ("resnet18", 128, 32),
    ("tf_efficientnet_lite0", 128, 32),
    ("vit_tiny_patch16_224", 224, 8),
    ("convnext_atto", 128, 32),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=15, metavar="ROUNDS", help="(%(default)s)")
    rounds = parser.parse_args().rounds
    for name, size, rows in CASES:
        accelerator, learner = new_learner(make_recipe(name, size, rows), steps=1)
        model = accelerator.unwrap_model(learner.model).train()
        images = torch.rand(rows, 3, size, size).to(memory_format=torch.channels_last)
        plain, compiled = [], []
        with TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            torch.compiler.reset()
            seconds_of_pass(model.forward, images)  # warms up
            model.compile(dynamic=False)
            first = seconds_of_pass(model, images)
            for _ in range(rounds):
                plain.append(seconds_of_pass(model.forward, images))  # which is not the compiled call
                compiled.append(seconds_of_pass(model, images))
        compiling, saved = first - median(compiled), median(plain) - median(compiled)
        compared = ratio(compiled, plain)
        case = f"a step of {name} at {size} px, batch {rows}: compiled over as it is"
        record("P12", case, None, compared, compiling_seconds=round(compiling, 1))
        pays = f"pays after {compiling / saved:.0f} steps" if saved > 0 else "never pays"
        say(f"{case} {compared}; compiling takes {compiling:.0f} s and {pays}")


def seconds_of_pass(call: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> float:
    """Seconds of a forward and backward pass; gradients add up, parameters stay."""
    began = time.perf_counter()
    call(images).logsumexp(1).sum().backward()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
