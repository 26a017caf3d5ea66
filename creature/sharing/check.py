"""Whether a downloaded model is the one that was published: python -m creature.sharing.check FOLDER."""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from creature.terminal import UserError, run, say


def check(folder: Path) -> int:
    """How many files of a folder are those of its manifest; its model then gave the golden answer, too.

    Raises UserError with all that is wrong.
    """
    manifest = _read(folder / "manifest.json")
    if wrong := list(_differing(folder, manifest)):
        raise UserError(f"{folder} is not what was published; download it again:\n  " + "\n  ".join(wrong))
    golden = _read(folder / "golden.json")
    from creature.sharing.export import answer  # torch is not needed to find a damaged file

    try:
        picture = (folder / Path(golden["picture"]).name).read_bytes()
        said = [float(logit) for logit in golden["logits"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'golden.json'} names no picture and logits ({error})") from None
    _, found = answer(folder, picture)
    far = max(abs(a - b) for a, b in zip(found, said, strict=True)) if len(found) == len(said) else math.inf
    if not far <= 1e-3:
        raise UserError(
            f"{folder}: the model's logits for golden.png are not those of golden.json (up to {far:.2g} away)"
        )
    return len(manifest)


def _read(path: Path) -> dict:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); only published folders have one") from None
    if not isinstance(said, dict):
        raise UserError(f"{path}: is no mapping")
    return said


def _differing(folder: Path, manifest: dict) -> Iterator[str]:
    from creature.images.files import file_hash

    for name, entry in manifest.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            yield f"{name}: lies outside of the folder"
        elif not path.is_file():
            yield f"{name}: missing"
        elif not isinstance(entry, dict) or path.stat().st_size != entry.get("bytes"):
            yield f"{name}: of another size"
        elif file_hash(path) != entry.get("sha256"):
            yield f"{name}: of another content"


def main(argv: Sequence[str] | None = None) -> int:
    """Check a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="such as `hf download USER/NAME --local-dir FOLDER` makes")
    folder = parser.parse_args(argv).folder
    say(f"{folder}: {check(folder)} files are those of its manifest, and the model answers as it did when published")
    return 0


if __name__ == "__main__":
    run(main)
