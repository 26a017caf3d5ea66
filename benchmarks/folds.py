"""P4: K folds in one process beside K single runs, and a frozen backbone's five folds beside one.

python benchmarks/folds.py [PHOTOS] [--rounds 3]

Whole processes of train.py. Compute-bound: EfficientNet-Lite0 at 128 px, two epochs. Small net: test_resnet at 160 px,
four epochs, the five folds with a cache, which single runs have no use for: each would make it for itself. The photos
are those given, over and over, each time with another last byte, so that no two are equal.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
from pictures import jpegs, lay_out
from safetensors.torch import save_file
from sides import ROOT, in_turns, judge

from creature.console import run

K = 5


def trained(recipe: dict[str, Any], folds: list[int], work: Path) -> float:
    """Seconds of one start of train.py on those folds, with no index or cache of an earlier one."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        path = Path(name) / "recipe.yaml"
        path.write_text(json.dumps(recipe | {"folds": {"count": K, "train": folds}}))
        env = os.environ | {"XDG_CACHE_HOME": f"{name}/cache", "HF_DATASETS_CACHE": f"{name}/datasets"}
        command = [sys.executable, "train.py", "--recipe", str(path), "--out", f"{name}/run"]
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?", type=Path, default=ROOT.parent / "shared/data/photos")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), work / "w.safetensors")
        images = {"train": [str(lay_out(jpegs(args.photos), work / "photos", 200))], "normalize": "none"}
        base = {"name": "folds", "batch_size": 32, "device": "cpu"}
        net = {"name": "tf_efficientnet_lite0", "weights": str(work / "w.safetensors")}
        bound = base | {"images": images | {"size": 128}, "backbone": net, "schedule": {"epochs": 2}}
        tiny = {"name": "test_resnet", "pretrained": False}
        small = base | {"images": images | {"size": 160}, "backbone": tiny, "schedule": {"epochs": 4}}
        cached = small | {"images": small["images"] | {"cache": "disk"}}
        frozen = bound | {"backbone": net | {"frozen": True}, "schedule": {"epochs": 10}}
        every = list(range(K))
        for title, together, alone, limit in (
            ("EfficientNet-Lite0, two epochs", bound, bound, 0.95),
            ("a small net, four epochs, cached", cached, small, 0.70),
        ):
            sides = {
                "five folds": lambda together=together: trained(together, every, work),
                "five runs": lambda alone=alone: sum(trained(alone, [fold], work) for fold in every),
            }
            judge("P4", title, "five folds", in_turns(sides, args.rounds, warm=False), {"five runs": limit})
        sides = {"five folds": lambda: trained(frozen, every, work), "one fold": lambda: trained(frozen, [0], work)}
        title = "a frozen backbone, ten epochs"
        judge("P4", title, "five folds", in_turns(sides, args.rounds, warm=False), {"one fold": 1.3})
    return 0


if __name__ == "__main__":
    run(main)
