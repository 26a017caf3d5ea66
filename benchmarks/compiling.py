"""P12: what torch.compile saves of a step, and after how many it has paid: what backbone.compile=auto finds out.

python benchmarks/compiling.py [ROUNDS]

Forward and backward passes of a network as it is and compiled, in turns, on noise; by the trial that `auto` makes
before a run's first fold. The seconds of compiling belong to an empty cache of torch's, which this program gets.
"""

import argparse
import os
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from sides import ratio, record  # first, for it puts this checkout first
from step import make_recipe, new_learner

from creature.console import say
from creature.training.compiling import timer, trial

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
        accelerator, learner = new_learner(make_recipe(name, size, rows))
        images = torch.rand(rows, 3, size, size).to(memory_format=torch.channels_last)
        with TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(cache))
            found = trial(accelerator.unwrap_model(learner.model).train(), timer(accelerator, images), rounds)
        compared, saved = ratio(found.compiled, found.plain), median(found.plain) - median(found.compiled)
        case = f"a step of {name} at {size} px, batch {rows}: compiled over as it is"
        record("P12", case, None, compared, compiling_seconds=round(found.compiling, 1))
        pays = f"pays after {found.compiling / saved:.0f} steps" if saved > 0 else "never pays"
        say(f"{case} {compared}; compiling takes {found.compiling:.0f} s and {pays}")


if __name__ == "__main__":
    main()
