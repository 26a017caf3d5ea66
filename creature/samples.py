"""Drawings: images of twelve kinds of creatures, drawn from a seed, so that the quickstart needs no download.

Shape alone tells the kinds apart: colours, patterns, grounds, poses and what stands in front are drawn for all alike.
"""

import argparse
import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from creature.console import say
from creature.errors import UserError
from creature.species import OVERSAMPLING, SEEN_FROM_ABOVE, SPECIES, Colour, Pen, arc

UPRIGHT_TILT = 0.35  # radians; creatures that are seen from above turn all around instead


def draw(species: str, rng: np.random.Generator, size: int = 64) -> Image.Image:
    """One image of a creature in its surroundings; RGB, size x size pixels."""
    side = size * OVERSAMPLING
    level = rng.uniform(0.15, 0.85)
    image = _ground(rng, level, side)
    # From the ground over the body to the lines the light goes one way, so that every outline shows.
    extreme = 0.98 if level < 0.5 else 0.03
    body, trim = (_colour(rng, level + (extreme - level) * rng.uniform(0.45, 0.8), 0.4) for _ in range(2))
    line = _colour(rng, extreme, 0.05)
    pen = Pen(ImageDraw.Draw(image), rng, np.eye(3, 2) * side, body, trim, line, edged=False)
    _surroundings(pen, level)
    SPECIES[species](replace(pen, frame=_pose(rng, species, side), edged=True))
    _obstacles(pen)
    return _with_grain(rng, image.resize((size, size), Image.Resampling.BOX))


def _colour(rng: np.random.Generator, level: float, strength: float) -> Colour:
    tint = rng.uniform(-strength, strength, 3)
    red, green, blue = np.clip(255 * (level + tint - tint.mean()), 0, 255).astype(int).tolist()
    return red, green, blue


def _ground(rng: np.random.Generator, level: float, side: int) -> Image.Image:
    """Soft blobs of two neighbouring colours, from a gradient up to coarse noise."""
    cells = int(rng.choice([2, 4, 9, 24]))
    first, second = (np.array(_colour(rng, level + shift, 0.3)) for shift in (-0.1, 0.1))
    mixed = first + rng.uniform(0, 1, (cells, cells, 1)) * (second - first)
    return Image.fromarray(mixed.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def _pose(rng: np.random.Generator, species: str, side: int) -> np.ndarray:
    tilt = rng.uniform(-np.pi, np.pi) if species in SEEN_FROM_ABOVE else rng.uniform(-UPRIGHT_TILT, UPRIGHT_TILT)
    cos, sin = np.cos(tilt), np.sin(tilt)
    wide, high = side * rng.uniform(0.31, 0.45) * rng.uniform(0.9, 1.1, 2)
    axes = [[rng.choice([-1, 1]) * wide, 0], [0, high]] @ np.array([[cos, sin], [-sin, cos]])
    return np.vstack([axes, side * rng.uniform(0.42, 0.58, 2)])


def _surroundings(pen: Pen, level: float) -> None:
    kind, count = pen.rng.integers(4), pen.rng.integers(4, 12)
    for _ in range(count):
        colour, (x, y) = _colour(pen.rng, level + pen.between(-0.2, 0.2), 0.3), pen.rng.uniform(0, 1, 2)
        if kind == 0:
            pen.limb([x, 1], [x, y], [x + pen.between(-0.3, 0.3), y], 0.03, colour)
        if kind == 1:
            pen.oval(x, y, pen.between(0.03, 0.15), pen.between(0.03, 0.15), colour, pen.between(0, 3))
        if kind == 2:
            ripple = arc(pen.between(0, 3), pen.between(3, 6), 20) * pen.between(0.1, 0.4)
            pen.ribbon(np.add(ripple, [x, y]), 0.01, 0.01, colour)


def _obstacles(pen: Pen) -> None:
    for _ in range(pen.rng.integers(0, 3)):
        colour, (x, y) = _colour(pen.rng, pen.between(0.1, 0.9), 0.4), pen.rng.uniform(0.1, 0.9, 2)
        kind, long, angle = pen.rng.integers(3), pen.between(0.1, 0.22), pen.between(0, 2 * np.pi)
        if kind == 0:
            leaf = [x + long * np.cos(angle), y + long * np.sin(angle)]
            pen.limb([x, y], leaf, leaf, 0.07, colour)
        if kind == 1:
            pen.limb([x, 1.1], [x, 0.5], [x + pen.between(-0.4, 0.4), -0.1], 0.035, colour)
        if kind == 2:
            pen.shape(arc(angle, angle + 1.5 * np.pi, 4) * 0.6 * long + [x, y], colour)


def _with_grain(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    grain = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(1, 8)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def write_drawings(folder: str | Path, train: int, test: int, *, seed: int = 0, size: int = 64) -> bool:
    """Draw labelled train images and a flat folder of test images; False where the folder holds them already.

    Writes train/SPECIES/NUMBER.jpg, test/NAME.jpg and test_labels.csv (image_name, label); the counts are over all
    species. Raises UserError where the folder holds anything else.
    """
    folder, settings = Path(folder), {"seed": seed, "train": train, "test": test, "size": size}
    if seed < 0 or size < 16 or min(train, test) < len(SPECIES):
        raise UserError(f"drawings: seed must be >= 0, size >= 16, train and test >= {len(SPECIES)}, got {settings}")
    if _is_drawn(folder, settings):
        return False
    for number in range(train):
        species, index = _deal(number)
        _save(folder / "train" / species / f"{index + 1:05d}.jpg", species, [seed, 0, number], size=size)
    labels = {}
    for number in range(test):
        species, _ = _deal(number)
        name = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=6).hexdigest()
        _save(folder / "test" / f"{name}.jpg", species, [seed, 1, number], size=size)
        labels[name] = species
    with (folder / "test_labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("image_name", "label"), *sorted(labels.items())])
    # Last, so that a folder with this file is complete.
    (folder / "drawings.json").write_text(json.dumps(settings), encoding="utf-8")
    return True


def _is_drawn(folder: Path, settings: dict[str, int]) -> bool:
    """Whether the folder holds exactly the images of these settings; raises UserError where it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    note, images = folder / "drawings.json", len(list(folder.rglob("*.jpg")))
    same = note.is_file() and note.read_text(encoding="utf-8") == json.dumps(settings)
    if same and images == settings["train"] + settings["test"]:
        return True
    raise UserError(f"drawings: {folder} holds something else or an unfinished set; delete it or name another folder")


def _deal(number: int) -> tuple[str, int]:
    """The species of an image, and its index among the images of that species."""
    return list(SPECIES)[number % len(SPECIES)], number // len(SPECIES)


def _save(path: Path, species: str, seeds: Sequence[int], *, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(species, np.random.default_rng(seeds), size).save(path, quality=90)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="creature draw", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write train/, test/ and test_labels.csv")
    parser.add_argument("--train", type=int, default=2400, help="images to train on (default: %(default)s)")
    parser.add_argument("--test", type=int, default=360, help="images to test on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side in pixels (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the quickstart's images."""
    options = parse(argv)
    drawn = write_drawings(**vars(options))
    state = "drawn" if drawn else "there already"
    say(f"{options.train} train and {options.test} test images {state}")
    say(f"images: {options.folder}; next: creature train --recipe quickstart")
    return 0
