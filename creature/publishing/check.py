"""Whether a downloaded model is the one that was published: creature check FOLDER."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from creature.console import say
from creature.errors import UserError
from creature.publishing.golden import predict_golden, read_golden
from creature.storage import manifest_differences

TRAINED = {"recipe.yaml", "result.json", "history.jsonl"}  # of a run, and of its folds
PUBLISHED = {"manifest.json", "golden.json"}
TOLERANCE = 1e-3  # of a logit: other processors and versions round differently


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="creature check", description=__doc__)
    parser.add_argument("folder", type=Path, help="such as `hf download USER/NAME --local-dir FOLDER` makes")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare a folder's files with its manifest, and its model's logits with the golden ones."""
    folder = parse(argv).folder
    names = {path.name for path in folder.glob("*")}
    if names & TRAINED and not names & PUBLISHED:
        raise UserError(
            f"{folder} was trained here and is not published, so that there is nothing to compare it with; "
            "creature publish FOLDER USER/NAME publishes it"
        )
    if differences := manifest_differences(folder):
        raise UserError(f"{folder} is not what was published; download it again:\n  " + "\n  ".join(differences))
    golden = read_golden(folder)
    logits = predict_golden(folder, golden.image).logits
    same_length = len(logits) == len(golden.logits)
    largest = max(abs(a - b) for a, b in zip(logits, golden.logits, strict=True)) if same_length else math.inf
    if not largest <= TOLERANCE:
        raise UserError(
            f"{folder}: the model's logits for {golden.image} are not those of golden.json (up to {largest:.2g} away)"
        )
    say(f"{folder}: every file is as its manifest says, and the model predicts what it did when it was published")
    return 0
