"""How the creatures of the drawings look: a pen, and a function for each of twelve species.

A creature fills about one unit around the origin; those that are seen from the side look to the right.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from PIL import ImageDraw

Colour = tuple[int, int, int]

OVERSAMPLING = 2  # drawn this many times larger and then reduced, which smooths the edges


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


def fish(pen: Pen) -> None:
    """From the side: a deep body, a forked tail, a fin on its back."""
    swing, deep = pen.between(-0.2, 0.2), pen.between(0.36, 0.5)
    pen.shape([[-0.5, 0], [-1, -0.5 + swing], [-0.85, swing], [-1, 0.5 + swing]], pen.trim)
    pen.shape([[-0.35, -0.7 * deep], [-0.2, -deep - 0.25], [0.45, -0.7 * deep]], pen.trim)
    pen.oval(0.15, 0, 0.75, deep, pen.body)
    pen.pattern(0.05, 0, 0.5, 0.85 * deep)
    pen.shape([[0.3, 0.1], [-0.05, 0.1 + pen.between(0, 0.3)], [0, 0.3 + pen.between(0, 0.2)]], pen.trim)
    pen.eye(0.6, -0.12)


def bird(pen: Pen) -> None:
    """From the side, on two legs, a wing raised or folded."""
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


def beetle(pen: Pen) -> None:
    """From above: six legs, a wide body with a seam."""
    for side in (-1, 1):
        for x in (-0.35, 0.0, 0.3):
            reach = x * 1.6 + pen.between(-0.15, 0.15)
            pen.limb([x, 0.3 * side], [x, 0.75 * side], [reach, 0.85 * side], 0.06, pen.line)
        pen.limb([0.7, 0.1 * side], [0.9, 0.1 * side], [1.05, pen.between(0.2, 0.5) * side], 0.04, pen.line)
    pen.oval(0.65, 0, 0.22, 0.24, pen.trim)
    pen.oval(-0.15, 0, 0.72, 0.52, pen.body)
    pen.pattern(-0.15, 0, 0.6, 0.45)
    pen.limb([0.57, 0], [0, 0], [-0.87, 0], 0.03, pen.line)


def snake(pen: Pen) -> None:
    """A long body in waves, with a head at its end."""
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


def spider(pen: Pen) -> None:
    """From above: eight bent legs around two round parts."""
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


def starfish(pen: Pen) -> None:
    """Five arms that bend, with dots along them."""
    bends, waist = pen.rng.uniform(-0.25, 0.25, 5), pen.between(0.3, 0.42)
    tips = np.arange(5) * 2 * np.pi / 5
    angles = np.column_stack([tips - 0.63, tips - 0.12 + bends, tips + bends, tips + 0.12 + bends]).ravel()
    far = np.tile([waist, 0.92, 1.0, 0.92], 5)
    pen.shape(far[:, None] * np.column_stack([np.cos(angles), np.sin(angles)]), pen.body)
    for angle, bend in zip(tips, bends, strict=True):
        for reach in (0.25, 0.48, 0.7):
            turn = angle + bend * reach
            pen.oval(reach * np.cos(turn), reach * np.sin(turn), 0.06, 0.06, pen.trim)


def jellyfish(pen: Pen) -> None:
    """A bell with arms that hang from it."""
    drift = pen.between(-0.4, 0.4)
    for x in np.linspace(-0.5, 0.5, pen.rng.integers(4, 7)):
        y = np.linspace(-0.1, pen.between(0.75, 1), 14)
        wave = x * 1.2 + drift * y + 0.09 * np.sin(8 * y + pen.between(0, 6.3))
        pen.ribbon(np.column_stack([wave, y]), 0.06, 0.03, pen.trim)
    dome = arc(np.pi, 2 * np.pi, 16) * [0.75, pen.between(0.75, 0.95)]
    pen.shape(np.concatenate([dome, arc(0, np.pi, 10) * [0.75, 0.14]]), pen.body)
    pen.pattern(0, -0.35, 0.5, 0.3)


def snail(pen: Pen) -> None:
    """From the side: a coiled shell on a flat foot."""
    rise = pen.between(-0.5, -0.2)
    for x in (0.7, 0.95):
        pen.limb([0.75, rise], [x, rise - 0.2], [x + 0.05, rise - pen.between(0.35, 0.5)], 0.05, pen.line)
    pen.limb([0.75, rise], [0.7, 0.6], [-1, 0.62], 0.2, pen.trim)
    pen.oval(0.75, rise + 0.05, 0.22, 0.2, pen.trim)
    pen.oval(-0.15, -0.05, 0.6, 0.6, pen.body)
    turns = arc(0.5, 0.5 + pen.between(3.2, 4.5) * np.pi, 36)
    pen.ribbon(turns * np.linspace(0.52, 0.05, 36)[:, None] + [-0.15, -0.05], 0.05, 0.03, pen.line)


def butterfly(pen: Pen) -> None:
    """From above: two pairs of wings, more or less folded."""
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


def crab(pen: Pen) -> None:
    """From the front: six legs, two raised claws, eyes on stalks."""
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


def turtle(pen: Pen) -> None:
    """From above: a shell with four paddles, a head and a tail."""
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


def rabbit(pen: Pen) -> None:
    """From the side, sitting, with two long ears."""
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


_DRAWN = (beetle, bird, butterfly, crab, fish, jellyfish, rabbit, snail, snake, spider, starfish, turtle)
SPECIES: dict[str, Callable[[Pen], None]] = {species.__name__: species for species in _DRAWN}
SEEN_FROM_ABOVE = {"beetle", "butterfly", "snake", "spider", "starfish", "turtle"}
