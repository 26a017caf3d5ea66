"""Comparisons of two models on the same rows, and of many at once. N rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from creature.console import say, show_table
from creature.ensembling.recorded import RecordedPredictions
from creature.inference.prediction_files import table_writer
from creature.metrics.accuracy import Count
from creature.metrics.blend import STRATEGIES


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same n rows, and how many of them each alone has right."""

    first: int
    second: int
    n: int

    @property
    def difference(self) -> float:
        """Accuracy of the first minus that of the second."""
        return (self.first - self.second) / self.n

    def __str__(self) -> str:
        return f"{100 * self.difference:+.2f} points ({self.first} : {self.second})"

    @property
    def p(self) -> float:
        """McNemar's exact test, two-sided: were both equally good, how likely is a split as uneven as this one."""
        from scipy.stats import binomtest  # here, for an ensemble that compares nothing need not wait for scipy

        together = self.first + self.second
        return float(binomtest(self.first, together).pvalue) if together else 1.0


def shown_p(p: float) -> str:
    """A p value for people."""
    return f"{p:.2g}" if p >= 0.0001 else "below 0.0001"


def compare_paired(first: np.ndarray, second: np.ndarray) -> PairedComparison:
    """Compare two models by whether each row (N,) is right."""
    return PairedComparison(int((first & ~second).sum()), int((second & ~first).sum()), len(first))


def difference_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the difference of two accuracies on the same rows, of which each (N,) says what is right.

    Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10: Wilson's intervals of both, less what they share.
    """
    n, both = len(first), int((first & second).sum())
    counts = Count(int(first.sum()), n), Count(int(second.sum()), n)
    (p, q), ((low_p, high_p), (low_q, high_q)) = (c.accuracy for c in counts), (c.interval for c in counts)
    margins = math.prod(c.correct * (n - c.correct) for c in counts)
    agreement = both * (n - counts[0].correct - counts[1].correct + both)
    shared = agreement - (counts[0].correct - both) * (counts[1].correct - both)
    shared = max(shared - n / 2, 0) if shared > 0 else shared  # the correction for continuity
    correlation = shared / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(one**2 - 2 * correlation * one * other + other**2)

    return p - q - reach(p - low_p, high_q - q), p - q + reach(high_p - p, q - low_q)


def holm(values: Sequence[float]) -> list[float]:
    """p values, corrected for their number (Holm 1979): any of them below 0.05 is wrong in 5 % of such tables."""
    order = np.argsort(values, kind="stable")
    steps = np.asarray(values, dtype=np.float64)[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected.tolist()


@dataclass(frozen=True)
class ScoredMember:
    """A decider's score on new images, and beside the mean of logits: on the same images, corrected by Holm."""

    name: str
    count: Count
    against: PairedComparison | None
    p: float | None


def compare_members(answered: RecordedPredictions, stands: np.ndarray) -> list[ScoredMember]:
    """Every strategy and member on the images that no member knows; none where there are no such images."""
    new = stands == "unseen"
    if not new.any():
        return []
    right = {name: said[new] == answered.labels[new] for name, said in answered.decisions.items()}
    pairs = {name: compare_paired(good, right["logits"]) for name, good in right.items() if name != "logits"}
    p = dict(zip(pairs, holm([each.p for each in pairs.values()]), strict=True))
    return [
        ScoredMember(name, Count(int(good.sum()), len(good)), pairs.get(name), p.get(name))
        for name, good in right.items()
    ]


def disagreements(answered: RecordedPredictions, deciders: Sequence[str]) -> list[tuple[str, ...]]:
    """Images to which the deciders give different classes: id, label, and each decider's class."""
    said = np.stack([answered.decisions[name] for name in deciders])
    names = (*answered.class_names, "")  # -1: no label
    rows = np.flatnonzero((said != said[0]).any(0) & np.array([bool(content) for content in answered.hashes]))
    return [(answered.ids[r], names[answered.labels[r]], *(names[k] for k in said[:, r])) for r in rows]


LISTED = 20  # disagreements that the terminal shows


def show(title: str, answered: RecordedPredictions, stands: np.ndarray, file: Path | None) -> None:
    """Print every decider's score, and the images on which the strategies disagree; all that differ go to a file."""
    known = int((stands == "seen").sum())
    rows = [
        (row.name, str(row.count), str(row.against or ""), "" if row.p is None else shown_p(row.p))
        for row in compare_members(answered, stands)
    ]
    rows += [(f"{known} images, trained on", "seen", "", "")] if known else []
    note = "logits, softmax, vote: of all members. right alone : logits right alone; p: McNemar's, Holm-corrected"
    if rows:
        show_table(f"Strategies and members on {title}", ("who", "accuracy [95 %]", "against logits", "p"), rows)
        say(note, style="dim")
    between = disagreements(answered, STRATEGIES)
    say(f"{len(between)} of {len(answered.ids)} images are given different classes by the three strategies")
    if between:
        more = f" (the first {LISTED})" if len(between) > LISTED else ""
        show_table(f"Where strategies disagree{more}", ("image", "label", *STRATEGIES), between[:LISTED])
    if file:
        everyone = list(answered.decisions)
        with table_writer(file) as out:
            out.writerow(("image", "label", *everyone))
            out.writerows(disagreements(answered, everyone))
        say(f"{file} lists every image on which strategies or members disagree")
