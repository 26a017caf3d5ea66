"""Strategies and members of an ensemble beside each other, on new images. N images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from creature.console import say, show_table
from creature.inference.prediction_files import table_writer
from creature.metrics.accuracy import Count
from creature.metrics.blend import STRATEGIES
from creature.metrics.recorded import RecordedPredictions
from creature.metrics.significance import PairedComparison, compare_paired, holm, shown_p

LISTED = 20  # disagreements that the terminal shows


@dataclass(frozen=True)
class ScoredMember:
    """The score of a strategy or member on new images, and its comparison with the mean of logits."""

    name: str
    count: Count
    against: PairedComparison | None
    p: float | None  # Holm-corrected


def compare_members(recorded: RecordedPredictions, exposed: np.ndarray) -> list[ScoredMember]:
    """Every strategy and member on the images that no member knows; none where there are no such images."""
    new = exposed == "unseen"
    if not new.any():
        return []
    right_by = {name: predicted[new] == recorded.labels[new] for name, predicted in recorded.predicted.items()}
    pairs = {name: compare_paired(right, right_by["logits"]) for name, right in right_by.items() if name != "logits"}
    p = dict(zip(pairs, holm([pair.p for pair in pairs.values()]), strict=True))
    return [
        ScoredMember(name, Count(int(right.sum()), len(right)), pairs.get(name), p=p.get(name))
        for name, right in right_by.items()
    ]


def disagreements(recorded: RecordedPredictions, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Images to which these strategies or members give different classes: id, label, and the class by each."""
    predicted = np.stack([recorded.predicted[name] for name in names])
    classes = (*recorded.class_names, "")  # -1: no label
    readable = np.array([bool(content) for content in recorded.content_hashes])
    rows = np.flatnonzero((predicted != predicted[0]).any(0) & readable)
    return [(recorded.ids[r], classes[recorded.labels[r]], *(classes[k] for k in predicted[:, r])) for r in rows]


def show_comparison(title: str, recorded: RecordedPredictions, exposed: np.ndarray, *, file: Path | None) -> None:
    """Print all scores, and the images on which the strategies disagree; all disagreements go to a file."""
    seen = int((exposed == "seen").sum())
    rows = [
        (row.name, str(row.count), str(row.against or ""), "" if row.p is None else shown_p(row.p))
        for row in compare_members(recorded, exposed)
    ]
    rows += [(f"{seen} images, trained on", "seen", "", "")] if seen else []
    note = "logits, softmax, vote: of all members. right alone : logits right alone; p: McNemar's, Holm-corrected"
    if rows:
        show_table(f"Strategies and members on {title}", ("model", "accuracy [95 %]", "against logits", "p"), rows)
        say(note, style="dim")
    between = disagreements(recorded, STRATEGIES)
    say(f"{len(between)} of {len(recorded.ids)} images are given different classes by the three strategies")
    if between:
        more = f" (the first {LISTED})" if len(between) > LISTED else ""
        show_table(f"Where strategies disagree{more}", ("image", "label", *STRATEGIES), between[:LISTED])
    if file:
        names = list(recorded.predicted)
        with table_writer(file) as out:
            out.writerow(("image", "label", *names))
            out.writerows(disagreements(recorded, names))
        say(f"{file} lists every image on which strategies or members disagree")
