"""Labels to look at: the rows whose out-of-fold prediction contradicts their label, the least likely label first.

python -m creature.judging.labels runs/laptop
python -m creature.judging.labels runs/laptop --top 50 --out suspects.csv

N rows, K classes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from creature.terminal import UserError, run, say, show_table, warn

if TYPE_CHECKING:
    from creature.judging.study import Run

COLUMNS = ("image", "label", "probability", "member_says", "its_probability", "surely")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m creature.judging.labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="a run folder, whose folds have held out its images")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="rows that are shown (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="all of them; RUN/labels.csv if not given")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Show and write the labels that a run's members contradict."""
    args = parse(argv)
    from creature.judging.members import folds_of
    from creature.judging.study import read_runs
    from creature.judging.tables import table_writer

    (found,) = read_runs([args.run], None)
    out = args.out or found.folder / "labels.csv"
    if not found.folds:
        raise UserError(f"{args.run}: no finished fold, and so no prediction of an image that it never saw")
    held, probabilities = found.held, found.probabilities
    if missing := int((folds_of(found.folder).fold >= 0).sum()) - len(held.ids):
        warn(f"{missing} images are not judged, for no finished fold holds them out; train.py --resume goes on")
    rows, sure = suspects(probabilities, held.labels), confident(probabilities, held.labels)
    show_table("Labels that the members contradict, by class", CLASS_COLUMNS, by_class(found, rows, sure))
    lines = []
    for row in rows.tolist():
        label, said = held.labels[row], held.predicted[row]
        likely, surest = (f"{probabilities[row, k]:.4f}" for k in (label, said))
        lines.append((held.ids[row], held.names[label], likely, held.names[said], surest, "yes" if sure[row] else "no"))
    if lines:
        cells = [(name, f"{label} {p}", f"{said} {q}", surely) for name, label, p, said, q, surely in lines[: args.top]]
        show_table(f"The least likely labels of {len(held.ids)} images", ("image", "label", "member", "surely"), cells)
    with table_writer(out) as table:
        table.writerow(COLUMNS)
        table.writerows(lines)
    say(f"{out} lists all {len(lines)}; next: look at them from the top, correct the wrong labels, and train anew")
    return 0


def suspects(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows whose most probable class is another than their label, the least probable label first.

    `probabilities` (N, K) are of models that never saw the row. Self-confidence, the ranking of Northcutt et al. 2021
    (Confident Learning).
    """
    contradicted = np.flatnonzero(probabilities.argmax(1) != labels)
    return contradicted[np.argsort(probabilities[contradicted, labels[contradicted]], kind="stable")]


def confident(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each row (N,) is put into another class as surely as that class's own rows are on average.

    The threshold of Northcutt et al. 2021, by which the confident joint counts wrong labels.
    """
    classes = np.arange(probabilities.shape[1])
    usual = np.array([probabilities[labels == k, k].mean() if (labels == k).any() else np.inf for k in classes])
    reached = np.where(probabilities >= usual, probabilities, 0.0)
    return reached.any(1) & (reached.argmax(1) != labels)


CLASS_COLUMNS = ("class", "images", "contradicted", "surely", "most often put into")


def by_class(found: "Run", rows: np.ndarray, sure: np.ndarray) -> list[tuple[str, ...]]:
    """A line for each class with contradicted labels, those with the largest share first."""
    held, lines = found.held, []
    for k, name in enumerate(held.names):
        own, total = rows[held.labels[rows] == k], int((held.labels == k).sum())
        if len(own):
            into = held.names[np.bincount(held.predicted[own]).argmax()]
            lines.append((len(own) / total, (name, str(total), str(len(own)), str(int(sure[own].sum())), into)))
    return [line for _, line in sorted(lines, key=lambda pair: -pair[0])]


if __name__ == "__main__":
    run(main)
