"""The figures of a study: curves over epochs, and of each run's held-out rows what is confused and how sure it was.

N rows, K classes. Equal runs give equal bytes: no date, no random ids. Colours: Okabe and Ito's, told apart by the
colour-blind and, with the dashes, in grey print.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from scipy.stats import norm
from sklearn.metrics import confusion_matrix

from creature.console import printable, warn
from creature.metrics.accuracy import Count
from creature.metrics.calibration import BINS, calibration_error
from creature.reporting.study import StudyRun

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
LINES = [{"color": color, "linestyle": style} for style, color in product(("-", "--", ":", "-."), COLORS)]
WIDTH = 5.2  # inches; at 9 points it can be read on a telephone
NAMED = 40  # classes, at most, that the figure of recalls names
CJK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei", "WenQuanYi Zen Hei")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": ["DejaVu Sans", *(name for name in CJK if name in get_font_names())],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "creature",
    "text.parse_math": False,  # a class may be called $x$
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}


@contextmanager
def _figure(title: str, height: float = 3.4) -> Iterator[tuple[Figure, Any]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots()
        axes.set_title(printable(title))
        yield figure, axes


def to_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as png or svg."""
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    if any("missing from font" in str(each.message) for each in said):
        _warn_of_letters()
    return out.getvalue()


@cache
def _warn_of_letters() -> None:
    warn("figures: no font here has all letters of the names, which are drawn as boxes; install Noto Sans CJK")


def curve_figures(runs: Sequence[StudyRun], baseline: StudyRun) -> dict[str, tuple[str, Figure]]:
    """Figures 3, 4 and 5 as name -> (what it shows, figure): a line for each run, of its first trained fold."""
    drawn = [run for run in runs if run.histories]
    if not drawn:
        return {}
    others = [run for run in drawn if run.recipe.backbone.name != baseline.recipe.backbone.name]
    backbones = [baseline, *others] if others and baseline.histories else others
    loss, accuracy = "Training loss", "Held-out accuracy"
    figures = {
        "loss": ("Figure 3. Training loss by epoch", _curves(drawn, "loss", loss, [run.name for run in drawn])),
        "accuracy": (
            "Figure 4. Held-out accuracy by epoch",
            _curves(drawn, "accuracy", accuracy, [run.name for run in drawn]),
        ),
    }
    if others:
        names = [f"{run.recipe.backbone.name} ({run.name})" for run in backbones]
        figures["backbones"] = (
            "Figure 5. Held-out accuracy by epoch and backbone",
            _curves(backbones, "accuracy", accuracy, names),
        )
    return figures


def _curves(runs: Sequence[StudyRun], key: str, label: str, names: Sequence[str]) -> Figure:
    columns = 2 if max(map(len, names)) < 24 else 1
    with _figure(f"{label} of one fold a run", 3.2 + 0.19 * -(-len(runs) // columns)) as (figure, axes):
        handles, restarts = [], []
        for line, run in zip(LINES * (1 + len(runs) // len(LINES)), runs, strict=False):
            rows = run.histories[min(run.histories)]
            epochs, values = [row.epoch for row in rows], [getattr(row, key) for row in rows]
            marker = "o" if len(rows) < 16 else None
            handles += axes.plot(epochs, values, **line, linewidth=1.4, marker=marker, markersize=3)
            schedule = run.recipe.schedule
            if schedule.name == "cosine_warm_restarts":
                # The last epoch of a cycle; the next one starts at the full learning rate again.
                ends = [
                    (e, v) for e, v in zip(epochs, values, strict=True) if e in schedule.cycle_ends() and e < epochs[-1]
                ]
                restarts += [
                    axes.scatter(*point, s=34, facecolor="white", edgecolor=line["color"], zorder=3) for point in ends
                ]
        axes.set_xlabel("epoch")
        axes.set_ylabel(label.lower())
        axes.xaxis.get_major_locator().set_params(integer=True)
        labels = [printable(name) for name in names]
        if restarts:
            handles, labels = [*handles, restarts[0]], [*labels, "learning rate restarts after it"]
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
    return figure


def run_figures(run: StudyRun) -> dict[str, tuple[str, Figure]]:
    """Figures of a run's held-out rows as name -> (what it shows, figure)."""
    held, count = run.held, run.held.count
    of = f"held-out rows, accuracy {count}{' selected' * run.selected}"
    return {
        "confusion": (f"Confusion matrix of {of}", _confusion(held.labels, held.predicted, held.class_names)),
        "confused": ("The most confused pairs of classes", _confused(held.labels, held.predicted, held.class_names)),
        "recall": ("Recall by class, with 95 % intervals", _recall(held.labels, held.predicted, held.class_names)),
        "reliability": ("Reliability: how often it is right when it is so sure", _reliability(run)),
        "coverage": ("Accuracy against coverage: if only the surest answers count", _coverage(run)),
    }


def _confusion(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Figure:
    counts = confusion_matrix(labels, predicted, labels=np.arange(len(names)))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    named, size = len(names) <= 30, 8 if len(names) <= 20 else 6
    with _figure("", max(4.2, 0.17 * len(names) if named else 4.2)) as (figure, axes):
        image = axes.imshow(share, cmap="cividis", norm=PowerNorm(0.5, 0, 1))  # a rare confusion can be seen, too
        axes.grid(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        if named:
            ticks = [_short(name) for name in names]
            axes.set_xticks(range(len(names)), ticks, rotation=90 if len(names) > 6 else 45, fontsize=size)
            axes.set_yticks(range(len(names)), ticks, fontsize=size)
        if len(names) <= 12:
            for (row, column), n in np.ndenumerate(counts):
                color = "black" if share[row, column] > 0.25 else "white"
                axes.text(column, row, str(n), ha="center", va="center", fontsize=7, color=color)
        figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def confused_pairs(labels: np.ndarray, predicted: np.ndarray, classes: int) -> list[tuple[int, int, int, int]]:
    """(true class, predicted class, rows, rows of the true class), the most frequent first."""
    counts = confusion_matrix(labels, predicted, labels=np.arange(classes))
    total = counts.sum(1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[: np.count_nonzero(counts)]
    pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
    return [(int(a), int(b), int(counts[a, b]), int(total[a])) for a, b in pairs]


def _confused(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Figure:
    pairs = confused_pairs(labels, predicted, len(names))[:12]
    with _figure("" if pairs else "No held-out row is wrong", 0.9 + 0.26 * len(pairs)) as (figure, axes):
        axes.barh(range(len(pairs)), [n for _, _, n, _ in pairs], color=COLORS[0], height=0.65)
        for at, (_, _, n, total) in enumerate(pairs):
            axes.text(n, at, f" {n} of {total}", va="center", fontsize=8)
        axes.set_yticks(range(len(pairs)), [f"{_short(names[a])} taken for {_short(names[b])}" for a, b, _, _ in pairs])
        axes.margins(x=0.18)
        axes.invert_yaxis()
        axes.set_xlabel("rows")
        axes.grid(axis="y", visible=False)
    return figure


def _recall(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Figure:
    present = [k for k in range(len(names)) if (labels == k).any()]
    counts = {k: Count(int((predicted[labels == k] == k).sum()), int((labels == k).sum())) for k in present}
    order = sorted(present, key=lambda k: (counts[k].accuracy, k))
    shown = order[:NAMED]
    title = f"The {len(shown)} lowest of {len(order)} classes" if len(shown) < len(order) else ""
    with _figure(title, 0.9 + 0.2 * len(shown)) as (figure, axes):
        for at, k in enumerate(shown):
            low, high = counts[k].interval
            axes.plot([low, high], [at, at], color="#777777", linewidth=1.2)
            axes.plot(counts[k].accuracy, at, "o", color=COLORS[0], markersize=4)
        axes.set_yticks(range(len(shown)), [f"{_short(names[k])} ({counts[k].n})" for k in shown])
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("recall (rows of the class in brackets)")
    return figure


def _reliability(run: StudyRun) -> Figure:
    held, n = run.held, len(run.held.labels)
    drawn = {"as it is": run.probabilities}
    if run.calibrated is None:
        drawn = {"as it is, with too few rows a fold to show it calibrated": run.probabilities}
    else:
        drawn["calibrated, each row by the fold's others"] = run.calibrated
    with _figure(f"n = {n}, {min(BINS, n)} bins of equal size; bars: 95 % intervals", 3.9) as (figure, axes):
        axes.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="--")
        for (name, probabilities), color, marker in zip(drawn.items(), COLORS, "os", strict=False):
            sure = probabilities.max(1)
            counts, at = [], []
            for rows in np.array_split(np.argsort(sure, kind="stable"), min(BINS, n)):
                counts.append(Count(int(held.right[rows].sum()), len(rows)))
                at.append(sure[rows].mean())
            low, high = zip(*(found.interval for found in counts), strict=True)
            axes.vlines(at, low, high, color=color, alpha=0.4, linewidth=1.2)
            label = f"{name}: expected calibration error {calibration_error(probabilities, held.labels):.4f}"
            axes.plot(at, [found.accuracy for found in counts], marker, color=color, markersize=4, label=label)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="mean probability of the predicted class", ylabel="accuracy")
        figure.legend(loc="outside lower center", fontsize=8)
    return figure


def _coverage(run: StudyRun) -> Figure:
    order = np.argsort(-run.probabilities.max(1), kind="stable")
    n = np.arange(1, len(order) + 1)
    accuracy = run.held.right[order].cumsum() / n
    z2 = norm.ppf(0.975) ** 2
    center = (accuracy + z2 / (2 * n)) / (1 + z2 / n)  # Wilson's interval, as in Count
    half = np.sqrt(z2 * (accuracy * (1 - accuracy) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    with _figure(f"n = {len(order)}; band: 95 % interval") as (figure, axes):
        # The first few rows have no accuracy to speak of.
        n, accuracy, low, high = (
            each[min(10, len(order) - 1) :] for each in (n, accuracy, center - half, center + half)
        )
        axes.fill_between(n / len(order), low, high, color=COLORS[6], alpha=0.35, linewidth=0)
        axes.plot(n / len(order), accuracy, color=COLORS[0], linewidth=1.4)
        axes.set(
            xlim=(0, 1.02),
            ylim=(min(0.5, accuracy[-1]) - 0.02, 1.01),
            xlabel="share of rows answered",
            ylabel="accuracy",
        )
    return figure


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= 22 else f"{text[:20]}…"
