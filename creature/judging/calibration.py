"""How sure to be: temperature, sets of labels with a stated coverage, and answers with a stated precision.

python -m creature.judging.calibration runs/laptop --set 0.95 --precision 0.9

All is fitted for one member, on the rows that it held out. What this command shows is cross-fitted: each row is judged
by what the other rows gave. `predict.py RUN/fold-0 PHOTOS --set 0.95` then uses all of them. N rows, K classes.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from creature.judging.blend import blend
from creature.judging.count import Count
from creature.judging.output import add_promises
from creature.terminal import UserError, run, say, show_table, warn

PARTS = 5  # of the rows, each judged by what the others gave
BINS = 10
FEWEST = 30  # rows


@dataclass(frozen=True)
class Calibration:
    """What was fitted on held-out rows: a temperature, and the probabilities from which on a label counts."""

    temperature: float
    member: float | None = None  # in a set, whose coverage was asked for
    answer: float | None = None  # as an answer, whose precision was asked for

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (N, K) of one member's logits (N, K)."""
        return blend(logits[None] / self.temperature)

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Whether each label is in the row's set (N, K); the most probable one always is."""
        assert self.member is not None
        return (probabilities >= self.member) | np.eye(probabilities.shape[1], dtype=bool)[probabilities.argmax(1)]

    def sure(self, probabilities: np.ndarray) -> np.ndarray:
        """Whether each row's answer counts (N,)."""
        assert self.answer is not None
        return probabilities.max(1) >= self.answer


def calibrate(
    logits: np.ndarray, labels: np.ndarray, coverage: float | None = None, precision: float | None = None
) -> Calibration:
    """Fit on a member's logits (N, K) of rows that it never saw, with their labels (N,).

    Raises UserError where the rows are too few for the coverage, or no threshold reaches the precision.
    """
    if len(labels) < FEWEST:
        raise UserError(f"calibration needs {FEWEST} held-out images or more, there are {len(labels)}")
    temperature = fit_temperature(logits, labels)
    probabilities = blend(logits[None] / temperature)
    return Calibration(
        temperature,
        None if coverage is None else threshold_of_sets(probabilities[np.arange(len(labels)), labels], coverage),
        None if precision is None else threshold_of_answers(probabilities, labels, precision),
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of least log loss (Guo et al. 2017), from 0.05 to 20."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        probabilities = blend(logits[None] / math.exp(log_temperature))
        return -float(np.log(probabilities[np.arange(len(labels)), labels].clip(1e-300)).mean())

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return math.exp(found.x)  # type: ignore[attr-defined]


def threshold_of_sets(of_label: np.ndarray, coverage: float) -> float:
    """The probability from which on labels are in the set, by those (N,) that the true labels had.

    Split conformal prediction with the least ambiguous sets (Sadinle et al. 2019): a new picture's label, from the same
    source, is in its set with at least that probability. Raises UserError where the rows are too few to promise it.
    """
    n = len(of_label)
    rank = math.ceil(round((n + 1) * coverage, 9))  # one more than rows, for the new picture is one of n + 1
    if rank > n:
        needed = math.ceil(round(coverage / (1 - coverage), 9))
        raise UserError(f"--set: {coverage:g} needs {needed} held-out images, there are {n}; take a lower coverage")
    return float(np.sort(of_label)[n - rank])


def threshold_of_answers(probabilities: np.ndarray, labels: np.ndarray, precision: float) -> float:
    """The lowest probability from which on answers are right so often, by the lower end of the 95 % interval.

    Raises UserError where no threshold reaches the precision.
    """
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    order = np.argsort(-sure, kind="stable")
    correct, best = np.cumsum(right[order]), None
    for n in range(1, len(order) + 1):
        if n < len(order) and sure[order[n]] == sure[order[n - 1]]:
            continue  # equal ones count together
        if Count(int(correct[n - 1]), n).interval[0] >= precision:
            best = float(sure[order[n - 1]])
    if best is None:
        highest = max(Count(int(correct[n - 1]), n).interval[0] for n in range(1, len(order) + 1))
        raise UserError(
            f"--precision: {precision:g} is not reached by any threshold on {len(labels)} held-out images; the lower "
            f"end of the 95 % interval is {highest:.4f} at most"
        )
    return best


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: how far how sure answers are is from how often right, in bins of equal size."""
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.array_split(np.argsort(sure, kind="stable"), min(BINS, len(sure)))
    return float(sum(len(rows) * abs(sure[rows].mean() - right[rows].mean()) for rows in bins) / len(sure))


def of_member(folder: Path, coverage: float | None = None, precision: float | None = None) -> Calibration:
    """The calibration of a trained fold, on the rows that it held out; raises UserError where they are not at hand."""
    from creature.judging.honest import held_out
    from creature.judging.members import check_members, result_of

    if not (folder / "held_out.safetensors").exists() or not (folder.parent / "folds.json").exists():
        raise UserError(
            f"--set and --precision rest on the images that a fold held out, and {folder} has none of them; give a "
            "trained fold, such as runs/NAME/fold-0"
        )
    check_members([folder])  # the weights are those that the rows were answered with
    held, labels = held_out(folder)
    if result_of(folder)["selected"]:
        warn(f"{folder}: its epoch was chosen on the images that this is fitted on, so it promises a little too much")
    return calibrate(held.logits, labels, coverage, precision)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m creature.judging.calibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("members", nargs="+", help="run folders (all their folds) and fold folders")
    add_promises(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Show how well calibration works for each member, on rows that had no part in it."""
    args = parse(argv)
    from creature.judging.honest import held_out
    from creature.judging.members import find_folds, result_of

    head = ["member", "T", "ECE", "after"]
    head += [f"in sets of {args.set:g} [95 %]", "size"] if args.set else []
    head += [f"right, of {args.precision:g} [95 %]", "answered"] if args.precision else []
    rows = []
    for folder in find_folds(args.members):
        held, labels = held_out(folder)
        whole = calibrate(held.logits, labels, args.set, args.precision)
        mark = " selected" if result_of(folder)["selected"] else ""
        rows.append((f"{folder}{mark}", f"{whole.temperature:.2f}", *judged(held.logits, labels, args)))
    show_table("Calibration, each row judged by what the other rows of its fold gave", head, rows)
    say("T: temperature. ECE: expected calibration error, before and after; all else is calibrated. size: labels a set")
    return 0


def judged(logits: np.ndarray, labels: np.ndarray, args: argparse.Namespace) -> list[str]:
    """The cells of a member's row, cross-fitted."""
    part = np.random.default_rng(0).permutation(len(labels)) % PARTS
    after, covered, sizes, sure = np.empty(logits.shape), *(np.zeros(len(labels)) for _ in range(3))
    for k in range(PARTS):
        own = part == k
        fitted = calibrate(logits[~own], labels[~own], args.set, args.precision)
        after[own] = fitted.probabilities(logits[own])
        if args.set:
            sets = fitted.sets(after[own])
            covered[own], sizes[own] = sets[np.arange(own.sum()), labels[own]], sets.sum(1)
        if args.precision:
            sure[own] = fitted.sure(after[own])
    cells = [f"{calibration_error(p, labels):.4f}" for p in (blend(logits[None]), after)]
    if args.set:
        cells += [str(Count(int(covered.sum()), len(labels))), f"{sizes.mean():.2f}"]
    if args.precision:
        right, answered = (after.argmax(1) == labels)[sure > 0], int(sure.sum())
        cells += [str(Count(int(right.sum()), answered)) if answered else "none", f"{answered / len(labels):.0%}"]
    return cells


if __name__ == "__main__":
    run(main)
