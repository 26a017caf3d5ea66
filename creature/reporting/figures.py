"""The figures of a study: curves over epochs, and of each run's held-out rows the confusions and the probabilities.

N rows, K classes. Equal runs give equal bytes: no date, no random ids. Colours: Okabe and Ito's, which the colour-blind
can tell apart, as grey print can by the dashes.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import cycle, product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from sklearn.metrics import confusion_matrix

from creature.console import printable, warn
from creature.metrics.accuracy import Count
from creature.metrics.calibration import BINS, calibration_error
from creature.reporting.class_scores import confused_pairs, count_recalls
from creature.reporting.study import ScoredRows, StudyRun

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
LINES = [{"color": color, "linestyle": style} for style, color in product(("-", "--", ":", "-."), COLORS)]
WIDTH = 5.2  # inches; at 9 points it can be read on a telephone
NAMED = 40  # the most classes that the figure of recalls names
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


@dataclass(frozen=True)
class CaptionedFigure:
    """A figure, the name of its files, and what it shows."""

    name: str
    caption: str
    figure: Figure


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
    with matplotlib.rc_context(STYLE), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    if any("missing from font" in str(warning.message) for warning in caught):
        _warn_of_letters()
    return out.getvalue()


@cache
def _warn_of_letters() -> None:
    warn("figures: no font here has all letters of the names, which are drawn as boxes; install Noto Sans CJK")


def curve_figures(runs: Sequence[StudyRun], baseline: StudyRun) -> list[CaptionedFigure]:
    """Figures 3, 4 and 5: a curve for each run, of its first trained fold."""
    runs = [run for run in runs if run.histories]
    if not runs:
        return []
    names = [run.name for run in runs]
    loss = _curves(runs, names, key="loss", label="Training loss")
    accuracy = _curves(runs, names, key="accuracy", label="Held-out accuracy")
    figures = [
        CaptionedFigure("loss", "Figure 3. Training loss by epoch", loss),
        CaptionedFigure("accuracy", "Figure 4. Held-out accuracy by epoch", accuracy),
    ]
    others = [run for run in runs if run.recipe.backbone.name != baseline.recipe.backbone.name]
    if others:
        compared = [baseline, *others] if baseline.histories else others
        names = [f"{run.recipe.backbone.name} ({run.name})" for run in compared]
        backbones = _curves(compared, names, key="accuracy", label="Held-out accuracy")
        figures.append(CaptionedFigure("backbones", "Figure 5. Held-out accuracy by epoch and backbone", backbones))
    return figures


def _curves(runs: Sequence[StudyRun], names: Sequence[str], *, key: str, label: str) -> Figure:
    legend_columns = 2 if max(map(len, names)) < 24 else 1
    height = 3.2 + 0.19 * -(-len(runs) // legend_columns)
    with _figure(f"{label} of one fold a run", height) as (figure, axes):
        handles: list[Any] = []
        restarts: list[Any] = []
        for line, run in zip(cycle(LINES), runs, strict=False):
            history = run.histories[min(run.histories)]
            points = [(epoch.epoch, getattr(epoch, key)) for epoch in history]
            marker = "o" if len(points) < 16 else None
            epochs, values = zip(*points, strict=True)
            handles += axes.plot(epochs, values, **line, linewidth=1.4, marker=marker, markersize=3)
            restarts += [
                axes.scatter(epoch, value, s=34, facecolor="white", edgecolor=line["color"], zorder=3)
                for epoch, value in _before_restarts(run, points)
            ]
        axes.set(xlabel="epoch", ylabel=label.lower())
        axes.xaxis.get_major_locator().set_params(integer=True)
        labels = [printable(name) for name in names]
        if restarts:
            handles, labels = [*handles, restarts[0]], [*labels, "learning rate restarts after it"]
        figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns, fontsize=8)
    return figure


def _before_restarts(run: StudyRun, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (epoch, value) after which the learning rate starts again at its full height."""
    if run.recipe.schedule.name != "cosine_warm_restarts":
        return []
    ends = run.recipe.schedule.cycle_ends()
    return [(epoch, value) for epoch, value in points if epoch in ends and epoch < points[-1][0]]


def run_figures(run: StudyRun) -> list[CaptionedFigure]:
    """The figures of a run's held-out rows."""
    held = run.held
    confusion = f"Confusion matrix of held-out rows, accuracy {held.count}{' selected' * run.selected}"
    reliability = "Reliability: how often it is right when it is so sure"
    coverage = "Accuracy against coverage: if only the surest predictions count"
    return [
        CaptionedFigure("confusion", confusion, _confusion(held)),
        CaptionedFigure("confused", "The most confused pairs of classes", _confused(held)),
        CaptionedFigure("recall", "Recall by class, with 95 % intervals", _recall(held)),
        CaptionedFigure("reliability", reliability, _reliability(run)),
        CaptionedFigure("coverage", coverage, _coverage(run)),
    ]


def _confusion(rows: ScoredRows) -> Figure:
    names, classes = rows.class_names, len(rows.class_names)
    counts = confusion_matrix(rows.labels, rows.predicted, labels=np.arange(classes))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    named, size = classes <= 30, 8 if classes <= 20 else 6
    with _figure("", max(4.2, 0.17 * classes if named else 4.2)) as (figure, axes):
        image = axes.imshow(share, cmap="cividis", norm=PowerNorm(0.5, 0, 1))  # so that rare confusions can be seen
        axes.grid(False)
        axes.set(xlabel="predicted class", ylabel="true class")
        if named:
            ticks = [_short(name) for name in names]
            axes.set_xticks(range(classes), ticks, rotation=90 if classes > 6 else 45, fontsize=size)
            axes.set_yticks(range(classes), ticks, fontsize=size)
        if classes <= 12:
            for (row, column), n in np.ndenumerate(counts):
                color = "black" if share[row, column] > 0.25 else "white"
                axes.text(column, row, str(n), ha="center", va="center", fontsize=7, color=color)
        figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def _confused(rows: ScoredRows) -> Figure:
    pairs, names = confused_pairs(rows)[:12], [_short(name) for name in rows.class_names]
    with _figure("" if pairs else "No held-out row is wrong", 0.9 + 0.26 * len(pairs)) as (figure, axes):
        axes.barh(range(len(pairs)), [pair.count for pair in pairs], color=COLORS[0], height=0.65)
        for y, pair in enumerate(pairs):
            axes.text(pair.count, y, f" {pair.count} of {pair.rows}", va="center", fontsize=8)
        labels = [f"{names[pair.label]} taken for {names[pair.predicted]}" for pair in pairs]
        axes.set_yticks(range(len(pairs)), labels)
        axes.margins(x=0.18)
        axes.invert_yaxis()
        axes.set_xlabel("rows")
        axes.grid(axis="y", visible=False)
    return figure


def _recall(rows: ScoredRows) -> Figure:
    counts = count_recalls(rows)
    order = sorted(counts, key=lambda k: (counts[k].accuracy, k))
    shown = order[:NAMED]
    title = f"The {len(shown)} lowest of {len(order)} classes" if len(shown) < len(order) else ""
    with _figure(title, 0.9 + 0.2 * len(shown)) as (figure, axes):
        for y, k in enumerate(shown):
            axes.plot(counts[k].interval, [y, y], color="#777777", linewidth=1.2)
            axes.plot(counts[k].accuracy, y, "o", color=COLORS[0], markersize=4)
        axes.set_yticks(range(len(shown)), [f"{_short(rows.class_names[k])} ({counts[k].n})" for k in shown])
        axes.set(xlim=(-0.02, 1.02), ylim=(len(shown) - 0.4, -0.6), xlabel="recall (rows of the class in brackets)")
    return figure


def _reliability(run: StudyRun) -> Figure:
    held, bins = run.held, min(BINS, len(run.held.labels))
    if run.calibrated is None:
        curves = {"as it is, with too few rows a fold to show it calibrated": run.probabilities}
    else:
        curves = {"as it is": run.probabilities, "calibrated, each row by the fold's others": run.calibrated}
    with _figure(f"n = {len(held.labels)}, {bins} bins of equal size; bars: 95 % intervals", 3.9) as (figure, axes):
        axes.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="--")
        for (name, probabilities), color, marker in zip(curves.items(), COLORS, "os", strict=False):
            confidence = probabilities.max(1)
            rows_of_bins = np.array_split(np.argsort(confidence, kind="stable"), bins)
            counts = [Count(int(held.right[rows].sum()), len(rows)) for rows in rows_of_bins]
            means = [confidence[rows].mean() for rows in rows_of_bins]
            low, high = zip(*(count.interval for count in counts), strict=True)
            axes.vlines(means, low, high, color=color, alpha=0.4, linewidth=1.2)
            label = f"{name}: expected calibration error {calibration_error(probabilities, held.labels):.4f}"
            axes.plot(means, [count.accuracy for count in counts], marker, color=color, markersize=4, label=label)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="mean probability of the predicted class", ylabel="accuracy")
        figure.legend(loc="outside lower center", fontsize=8)
    return figure


def _coverage(run: StudyRun) -> Figure:
    order = np.argsort(-run.probabilities.max(1), kind="stable")
    counts = [Count(correct, n) for n, correct in enumerate(run.held.right[order].cumsum().tolist(), 1)]
    counts = counts[min(10, len(order) - 1) :]  # the accuracy of the first few rows says nothing
    coverage, accuracy = [count.n / len(order) for count in counts], [count.accuracy for count in counts]
    low, high = zip(*(count.interval for count in counts), strict=True)
    with _figure(f"n = {len(order)}; band: 95 % interval") as (figure, axes):
        axes.fill_between(coverage, low, high, color=COLORS[6], alpha=0.35, linewidth=0)
        axes.plot(coverage, accuracy, color=COLORS[0], linewidth=1.4)
        axes.set(xlim=(0, 1.02), ylim=(min(0.5, accuracy[-1]) - 0.02, 1.01))
        axes.set(xlabel="share of rows predicted", ylabel="accuracy")
    return figure


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= 22 else f"{text[:20]}…"
