"""Drawings: images of twelve kinds of creatures, drawn from a seed, so that the quickstart needs no download.

Shape alone tells the kinds apart: colours, patterns, grounds, poses and what stands in front are drawn for all alike.
"""

import argparse
import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from creature.console import say
from creature.errors import UserError

Colour = tuple[int, int, int]

OVERSAMPLING = 2  # drawn this many times larger and then reduced, which smooths the edges
UPRIGHT_TILT = 0.35  # radians; creatures that are seen from above turn all around instead


@dataclass(frozen=True)
class Pen:
    """Draws in a creature's own units: it looks along x, y points down, and it fills about -1 to 1."""

    canvas: ImageDraw.ImageDraw
    rng: np.random.Generator
    frame: np.ndarray  # (3, 2), in pixels: the x axis, the y axis, the origin
    body: Colour
    trim: Colour
    line: Colour
    edged: bool  # whether shapes get an outline, in the colour of lines

    def between(self, low: float, high: float) -> float:
        """A random number of this drawing."""
        return float(self.rng.uniform(low, high))

    def shape(self, points: ArrayLike, colour: Colour) -> None:
        """A filled polygon of points (n, 2)."""
        placed = np.asarray(points) @ self.frame[:2] + self.frame[2]
        edge = self.line if self.edged else None
        self.canvas.polygon(placed.ravel().tolist(), fill=colour, outline=edge, width=OVERSAMPLING)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour, turn: float = 0.0) -> None:
        """A filled ellipse around (x, y), turned by `turn` radians."""
        cos, sin = np.cos(turn), np.sin(turn)
        self.shape(arc(0, 2 * np.pi, 24) * [rx, ry] @ [[cos, sin], [-sin, cos]] + [x, y], colour)

    def ribbon(self, points: np.ndarray, start: float, end: float, colour: Colour) -> None:
        """A band along points (n, 2), whose half-width goes from `start` to `end`."""
        along = np.gradient(points, axis=0)
        across = along[:, ::-1] * [-1, 1] / (np.hypot(*along.T)[:, None] + 1e-9)
        across *= np.linspace(start, end, len(points))[:, None]
        self.shape(np.concatenate([points + across, (points - across)[::-1]]), colour)

    def limb(self, start: ArrayLike, bend: ArrayLike, end: ArrayLike, width: float, colour: Colour) -> None:
        """A thinning band from `start` to `end` that bends towards `bend`."""
        t = np.linspace(0, 1, 8)[:, None]
        a, b, c = (np.asarray(point, dtype=float) for point in (start, bend, end))
        self.ribbon((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c, width, width / 3, colour)

    def eye(self, x: float, y: float, radius: float = 0.1) -> None:
        """A white eye with a black pupil."""
        plain = replace(self, edged=False)
        plain.oval(x, y, radius, radius, (250, 250, 250))
        plain.oval(x, y, radius / 2, radius / 2, (10, 10, 10))

    def pattern(self, x: float, y: float, rx: float, ry: float) -> None:
        """Spots, bars or nothing, inside an ellipse."""
        plain, kind = replace(self, edged=False), self.rng.integers(3)
        if kind == 1:
            for angle, far in self.rng.uniform(0, 1, (self.rng.integers(3, 9), 2)) * [2 * np.pi, 0.75]:
                radius = self.between(0.05, 0.12)
                plain.oval(x + rx * far * np.cos(angle), y + ry * far * np.sin(angle), radius, radius, self.trim)
        if kind == 2:
            for far in np.linspace(-0.7, 0.7, self.rng.integers(2, 6)):
                half = 0.9 * ry * np.sqrt(1 - far**2)
                plain.limb([x + rx * far, y - half], [x + rx * far, y], [x + rx * far, y + half], 0.07, self.trim)


def arc(start: float, end: float, count: int) -> np.ndarray:
    """Points (count, 2) on the unit circle, from angle to angle in radians."""
    angles = np.linspace(start, end, count)
    return np.column_stack([np.cos(angles), np.sin(angles)])


def draw_fish(pen: Pen) -> None:
    """A fish within about one unit of the origin, head to the right."""
    swing, deep = pen.between(-0.2, 0.2), pen.between(0.36, 0.5)
    pen.shape([[-0.5, 0], [-1, -0.5 + swing], [-0.85, swing], [-1, 0.5 + swing]], pen.trim)
    pen.shape([[-0.35, -0.7 * deep], [-0.2, -deep - 0.25], [0.45, -0.7 * deep]], pen.trim)
    pen.oval(0.15, 0, 0.75, deep, pen.body)
    pen.pattern(0.05, 0, 0.5, 0.85 * deep)
    pen.shape([[0.3, 0.1], [-0.05, 0.1 + pen.between(0, 0.3)], [0, 0.3 + pen.between(0, 0.2)]], pen.trim)
    pen.eye(0.6, -0.12)


def draw_bird(pen: Pen) -> None:
    """A bird within about one unit of the origin, head to the right."""
    lift, step = pen.between(-1.1, 0.3), pen.between(-0.2, 0.2)
    pen.limb([-0.1, 0.3], [-0.1, 0.7], [-0.1 + step, 0.95], 0.05, pen.line)
    pen.limb([0.1, 0.3], [0.1, 0.7], [0.1 - step, 0.95], 0.05, pen.line)
    pen.shape([[-0.4, 0], [-1, pen.between(-0.3, 0)], [-1, pen.between(0.1, 0.3)], [-0.4, 0.2]], pen.trim)
    pen.shape([[0.6, -0.55], [1, -0.4], [0.6, -0.3]], pen.trim)
    pen.oval(0, 0.1, 0.6, 0.38, pen.body, -0.3)
    pen.oval(0.5, -0.42, 0.28, 0.28, pen.body)
    pen.pattern(0, 0.1, 0.4, 0.3)
    pen.limb([0.2, 0.1], [-0.1, 0.1 + lift], [-0.6, 0.1 + lift], 0.22, pen.trim)
    pen.eye(0.56, -0.47, 0.08)


def draw_beetle(pen: Pen) -> None:
    """A beetle within about one unit of the origin, head to the right."""
    for side in (-1, 1):
        for x in (-0.35, 0.0, 0.3):
            reach = x * 1.6 + pen.between(-0.15, 0.15)
            pen.limb([x, 0.3 * side], [x, 0.75 * side], [reach, 0.85 * side], 0.06, pen.line)
        pen.limb([0.7, 0.1 * side], [0.9, 0.1 * side], [1.05, pen.between(0.2, 0.5) * side], 0.04, pen.line)
    pen.oval(0.65, 0, 0.22, 0.24, pen.trim)
    pen.oval(-0.15, 0, 0.72, 0.52, pen.body)
    pen.pattern(-0.15, 0, 0.6, 0.45)
    pen.limb([0.57, 0], [0, 0], [-0.87, 0], 0.03, pen.line)


def draw_snake(pen: Pen) -> None:
    """A snake within about one unit of the origin, head to the right."""
    x = np.linspace(-1, 0.8, 28)
    y = pen.between(0.2, 0.4) * np.sin(pen.between(4, 7) * x + pen.between(0, 6.3))
    body = np.column_stack([x, y])
    head = body[-1]
    pen.limb(head, np.add(head, [0.2, 0]), np.add(head, [0.42, pen.between(-0.15, 0.15)]), 0.04, pen.trim)
    pen.ribbon(body, 0.04, 0.17, pen.body)
    for spot in body[4:-2:3]:
        pen.oval(spot[0], spot[1], 0.07, 0.07, pen.trim)
    pen.oval(head[0], head[1], 0.22, 0.17, pen.body)
    pen.eye(head[0] + 0.08, head[1] - 0.05, 0.07)


def draw_spider(pen: Pen) -> None:
    """A spider within about one unit of the origin."""
    for side in (-1, 1):
        for angle in (0.45, 1.1, 1.8, 2.5):
            knee, foot = angle + pen.between(-0.12, 0.12), angle + pen.between(-0.25, 0.25)
            bend = 0.85 * np.array([np.cos(knee), side * np.sin(knee)])
            pen.limb([0.15, 0], bend * 1.1, [1.05 * np.cos(foot), 1.0 * side * np.sin(foot)], 0.06, pen.line)
    pen.oval(-0.3, 0, 0.42, 0.34, pen.body)
    pen.pattern(-0.3, 0, 0.3, 0.25)
    pen.oval(0.22, 0, 0.22, 0.2, pen.trim)
    pen.eye(0.32, -0.08, 0.06)
    pen.eye(0.32, 0.08, 0.06)


def draw_starfish(pen: Pen) -> None:
    """A starfish within about one unit of the origin."""
    bends, waist = pen.rng.uniform(-0.25, 0.25, 5), pen.between(0.3, 0.42)
    tips = np.arange(5) * 2 * np.pi / 5
    angles = np.column_stack([tips - 0.63, tips - 0.12 + bends, tips + bends, tips + 0.12 + bends]).ravel()
    far = np.tile([waist, 0.92, 1.0, 0.92], 5)
    pen.shape(far[:, None] * np.column_stack([np.cos(angles), np.sin(angles)]), pen.body)
    for angle, bend in zip(tips, bends, strict=True):
        for reach in (0.25, 0.48, 0.7):
            turn = angle + bend * reach
            pen.oval(reach * np.cos(turn), reach * np.sin(turn), 0.06, 0.06, pen.trim)


def draw_jellyfish(pen: Pen) -> None:
    """A jellyfish within about one unit of the origin."""
    drift = pen.between(-0.4, 0.4)
    for x in np.linspace(-0.5, 0.5, pen.rng.integers(4, 7)):
        y = np.linspace(-0.1, pen.between(0.75, 1), 14)
        wave = x * 1.2 + drift * y + 0.09 * np.sin(8 * y + pen.between(0, 6.3))
        pen.ribbon(np.column_stack([wave, y]), 0.06, 0.03, pen.trim)
    dome = arc(np.pi, 2 * np.pi, 16) * [0.75, pen.between(0.75, 0.95)]
    pen.shape(np.concatenate([dome, arc(0, np.pi, 10) * [0.75, 0.14]]), pen.body)
    pen.pattern(0, -0.35, 0.5, 0.3)


def draw_snail(pen: Pen) -> None:
    """A snail within about one unit of the origin, head to the right."""
    rise = pen.between(-0.5, -0.2)
    for x in (0.7, 0.95):
        pen.limb([0.75, rise], [x, rise - 0.2], [x + 0.05, rise - pen.between(0.35, 0.5)], 0.05, pen.line)
    pen.limb([0.75, rise], [0.7, 0.6], [-1, 0.62], 0.2, pen.trim)
    pen.oval(0.75, rise + 0.05, 0.22, 0.2, pen.trim)
    pen.oval(-0.15, -0.05, 0.6, 0.6, pen.body)
    turns = arc(0.5, 0.5 + pen.between(3.2, 4.5) * np.pi, 36)
    pen.ribbon(turns * np.linspace(0.52, 0.05, 36)[:, None] + [-0.15, -0.05], 0.05, 0.03, pen.line)


def draw_butterfly(pen: Pen) -> None:
    """A butterfly within about one unit of the origin."""
    fold, sweep = pen.between(0.6, 1), pen.between(-0.15, 0.15)
    fore = np.array([[0.0, 0.05], [0.3, 0.05], [0.85, 0.75], [0.8, 1.0], [0.55, 1.05], [0.15, 0.8]])
    hind = np.array([[0.0, 0.05], [0.1, 0.6], [-0.25, 0.85], [-0.6, 0.8], [-0.75, 0.5], [-0.4, 0.05]])
    for side in (-1, 1):
        pen.shape(hind * [1, side * fold] + [sweep, 0], pen.trim)
        pen.shape(fore * [1, side * fold] + [sweep, 0], pen.body)
        pen.oval(0.52 + sweep, 0.7 * side * fold, 0.17, 0.17 * fold, pen.trim)
        pen.oval(-0.35 + sweep, 0.5 * side * fold, 0.14, 0.14 * fold, pen.body)
        pen.limb([0.5, 0], [0.8, 0], [0.95, pen.between(0.1, 0.4) * side], 0.03, pen.line)
    pen.oval(0, 0, 0.6, 0.1, pen.line)


def draw_crab(pen: Pen) -> None:
    """A crab within about one unit of the origin."""
    for side in (-1, 1):
        for lean in (-0.25, 0.0, 0.25):
            foot = [1.0 * side, 0.55 + lean + pen.between(-0.1, 0.1)]
            pen.limb([0.4 * side, 0.3], [0.95 * side, 0.05 + lean], foot, 0.07, pen.line)
        hand = np.array([pen.between(0.65, 0.95) * side, pen.between(-0.75, -0.5)])
        pen.limb([0.5 * side, 0.1], [0.95 * side, -0.1], hand, 0.12, pen.body)
        for finger in (-1, 1):
            bend, tip = np.add(hand, [0.4 * finger, -0.1]), np.add(hand, [0.1 * finger, -0.45])
            pen.limb(hand, bend, tip, 0.14, pen.body)
        pen.limb([0.15 * side, 0], [0.15 * side, -0.2], [0.2 * side, -0.35], 0.05, pen.line)
        pen.eye(0.2 * side, -0.35)
    pen.oval(0, 0.2, 0.65, 0.42, pen.body)
    pen.pattern(0, 0.2, 0.5, 0.35)


def draw_turtle(pen: Pen) -> None:
    """A turtle within about one unit of the origin, head to the right."""
    for side in (-1, 1):
        for x, far in ((0.45, 0.85), (-0.5, 0.7)):
            paddle = pen.between(-0.3, 0.3)
            pen.limb([x, 0.4 * side], [x, far * side], [x - 0.2 + paddle, (far + 0.1) * side], 0.2, pen.trim)
    pen.limb([-0.6, 0], [-0.8, 0], [-1, pen.between(-0.1, 0.1)], 0.1, pen.trim)
    pen.oval(0.85, pen.between(-0.12, 0.12), 0.26, 0.2, pen.trim)
    pen.oval(0, 0, 0.75, 0.6, pen.body)
    plates = arc(0, 2 * np.pi, 7)
    pen.shape(plates * [0.38, 0.3], pen.trim)
    for inner, outer in zip(plates * [0.38, 0.3], plates * [0.73, 0.58], strict=True):
        pen.limb(inner, (inner + outer) / 2, outer, 0.03, pen.line)


def draw_rabbit(pen: Pen) -> None:
    """A rabbit within about one unit of the origin, head to the right."""
    for x in (0.3, 0.5):
        tip = [x - 0.1 + pen.between(-0.35, 0.25), -1.05]
        pen.limb(tip, [x, -0.7], [x, -0.35], 0.05, pen.trim)
        pen.oval((tip[0] + x) / 2, -0.72, 0.13, 0.36, pen.body, (tip[0] - x) * -0.8)
    pen.oval(-0.8, 0.4, 0.2, 0.2, pen.trim)
    pen.oval(-0.2, 0.4, 0.62, 0.5, pen.body, -0.2)
    pen.pattern(-0.2, 0.35, 0.45, 0.35)
    pen.oval(-0.4, 0.6, 0.35, 0.3, pen.body, pen.between(-0.5, 0.2))
    pen.oval(0.42, -0.2, 0.36, 0.3, pen.body)
    pen.limb([0.2, 0.5], [0.25, 0.8], [0.45, 0.9], 0.12, pen.body)
    pen.eye(0.5, -0.25)


SPECIES: dict[str, Callable[[Pen], None]] = {
    "beetle": draw_beetle,
    "bird": draw_bird,
    "butterfly": draw_butterfly,
    "crab": draw_crab,
    "fish": draw_fish,
    "jellyfish": draw_jellyfish,
    "rabbit": draw_rabbit,
    "snail": draw_snail,
    "snake": draw_snake,
    "spider": draw_spider,
    "starfish": draw_starfish,
    "turtle": draw_turtle,
}
SEEN_FROM_ABOVE = {"beetle", "butterfly", "snake", "spider", "starfish", "turtle"}


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


def write_drawings(folder: str | Path, train: int, test: int, seed: int = 0, size: int = 64) -> bool:
    """Draw labelled train images and a flat folder of test images; False where the folder holds them already.

    Writes train/SPECIES/NUMBER.jpg, test/NAME.jpg and test_labels.csv (image_name, label); the counts are over all
    species. Raises UserError where the folder holds anything else.
    """
    folder, wanted = Path(folder), {"seed": seed, "train": train, "test": test, "size": size}
    if seed < 0 or size < 16 or min(train, test) < len(SPECIES):
        raise UserError(f"drawings: seed must be >= 0, size >= 16, train and test >= {len(SPECIES)}, got {wanted}")
    if _holds(folder, wanted):
        return False
    for number in range(train):
        species, index = _deal(number)
        _save(folder / "train" / species / f"{index + 1:05d}.jpg", species, [seed, 0, number], size)
    answers = {}
    for number in range(test):
        species, _ = _deal(number)
        name = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=6).hexdigest()
        _save(folder / "test" / f"{name}.jpg", species, [seed, 1, number], size)
        answers[name] = species
    with (folder / "test_labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("image_name", "label"), *sorted(answers.items())])
    # Last, so that a folder with this file is whole.
    (folder / "drawings.json").write_text(json.dumps(wanted), encoding="utf-8")
    return True


def _holds(folder: Path, wanted: dict[str, int]) -> bool:
    """Whether exactly this set is in the folder; raises UserError where something else is."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    note, pictures = folder / "drawings.json", len(list(folder.rglob("*.jpg")))
    same = note.is_file() and note.read_text(encoding="utf-8") == json.dumps(wanted)
    if same and pictures == wanted["train"] + wanted["test"]:
        return True
    raise UserError(f"drawings: {folder} holds something else or an unfinished set; delete it or name another folder")


def _deal(number: int) -> tuple[str, int]:
    """The species of an image, and its index among the images of that species."""
    return list(SPECIES)[number % len(SPECIES)], number // len(SPECIES)


def _save(path: Path, species: str, seeds: Sequence[int], size: int) -> None:
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
