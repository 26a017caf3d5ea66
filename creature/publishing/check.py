"""Whether a downloaded model is the one that was published: creature check FOLDER."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from creature.console import say
from creature.errors import UserError
from creature.storage import manifest_differences


def check(folder: Path) -> None:
    """The files of a folder are those of its manifest, and its model gives the golden answer.

    Raises UserError with all that is wrong.
    """
    if wrong := manifest_differences(folder):
        raise UserError(f"{folder} is not what was published; download it again:\n  " + "\n  ".join(wrong))
    from creature.publishing.export import golden_logits  # torch is not needed to find a damaged file

    try:
        golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        picture = (folder / Path(golden["picture"]).name).read_bytes()
        said = [float(logit) for logit in golden["logits"]]
    except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / 'golden.json'} names no image and logits ({error})") from error
    _, found = golden_logits(folder, picture)
    far = max(abs(a - b) for a, b in zip(found, said, strict=True)) if len(found) == len(said) else math.inf
    if not far <= 1e-3:
        raise UserError(
            f"{folder}: the model's logits for golden.png are not those of golden.json (up to {far:.2g} away)"
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="creature check", description=__doc__)
    parser.add_argument("folder", type=Path, help="such as `hf download USER/NAME --local-dir FOLDER` makes")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Check a folder."""
    folder = parse(argv).folder
    check(folder)
    say(f"{folder}: every file is as its manifest says, and the model answers as it did when it was published")
    return 0
