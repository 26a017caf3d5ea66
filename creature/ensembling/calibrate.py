"""How sure to be: temperature, sets of labels with a stated coverage, and answers with a stated precision.

creature calibrate runs/laptop --coverage 0.95 --min-precision 0.9

All is fitted for what answers: for one member, on the rows that it held out; for an ensemble, on labelled images that
none of its members saw, or on repeated folds. What this command shows is cross-fitted: each row is judged by what the
other rows gave. `creature predict RUN/fold-0 PHOTOS --coverage 0.95` then uses all of them.
N rows, K classes, M members.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from creature.console import say, show_table
from creature.data.folds import find_folds_file
from creature.ensembling.out_of_fold import unseen_rows
from creature.ensembling.recorded import exposures
from creature.errors import UserError
from creature.inference.options import add_promises
from creature.metrics.accuracy import Count
from creature.metrics.blend import Blending, blend, log
from creature.metrics.calibration import (
    ENSEMBLE_CALIBRATION,
    FEWEST,
    MODEL_CALIBRATION,
    PARTS,
    CalibrationData,
    calibrate,
    calibration_error,
    cross_fit,
    enough_to_cross_fit,
    fit,
    load_calibration,
)
from creature.run import Fold, Run, by_run, check_members, find_members, full_repeats, is_whole_run


def member_calibration(folder: Path) -> CalibrationData:
    """The calibration of one model: a trained fold, on the rows that it held out, or a published one.

    Raises UserError where these rows are not at hand.
    """
    if (folder / MODEL_CALIBRATION).exists():
        return load_calibration(folder / MODEL_CALIBRATION)
    if not (folder / "held_out.safetensors").exists() or not find_folds_file(folder.parent):
        raise UserError(
            f"--coverage and --min-precision rest on the images that a fold held out, and {folder} has none of them; "
            "give a trained fold, such as runs/NAME/fold-0"
        )
    fold = Fold(folder)
    check_members([fold])  # the weights are those that predicted the rows
    return fit(fold.held_out.logits, fold.held_out.labels, fold.result.selected)


def ensemble_calibration(home: Path, folders: Sequence[Path], blending: Blending) -> CalibrationData:
    """The calibration of a run's ensemble, or of a published one whose main folder is `home`.

    Raises UserError where no predictions of images that no member saw are at hand.
    """
    if (home / ENSEMBLE_CALIBRATION).exists():
        return load_calibration(home / ENSEMBLE_CALIBRATION)
    rows = None
    if find_folds_file(home):
        members = find_members(folders)
        rows = rows_of_ensemble(members[0].run, members, blending)
    if rows is None:
        how = f" --strategy {blending.strategy}" * (blending.strategy != "logits") + " --mirror" * blending.mirror
        raise UserError(
            "--coverage and --min-precision of an ensemble rest on its predictions of labelled images that no member "
            f"was trained on, and {home} has none; first: creature ensemble {home} --images DIR --labels FILE.csv{how}"
            ", or train with images.holdout or folds.repeats, or ask one fold"
        )
    return fit(rows.logits, rows.labels, rows.selected, blending.mirror)


@dataclass(frozen=True)
class CalibrationRows:
    """What an ensemble's calibration rests on: images that no member saw."""

    logits: np.ndarray  # (N, K), logs of the ensemble's probabilities
    labels: np.ndarray  # (N,)
    source: str
    selected: bool = False  # an epoch was chosen on them


def rows_of_ensemble(run: Run, members: Sequence[Fold], blending: Blending) -> CalibrationRows | None:
    """Images that no member of a run's ensemble saw, with what it predicts of them.

    Its predictions of the holdout, or else of labelled images, as ensemble.py has kept them; or else repeated folds,
    where the members that never saw a row stand in for the larger ensemble. None where there is neither.
    """
    check_members(members)
    models = tuple(member.result.sha256.weights for member in members)
    for kind, recorded in run.predictions.items():
        if recorded.log_probabilities is None or recorded.models != models or not recorded.blended_by(blending):
            continue
        rows = np.flatnonzero(exposures(recorded, members) == "unseen")
        if len(rows):
            unseen = recorded.predictions.take(rows)
            return CalibrationRows(unseen.logits, unseen.labels, f"ensemble of {len(members)}, {kind}")
    equal = len(set(blending.weights.tolist())) == 1
    if blending.strategy == "vote" or blending.mirror or len(full_repeats(members)) < 2 or not equal:
        return None
    rows = unseen_rows(members)
    source = f"ensembles of {len(rows.logits)}, for that of {len(members)}"
    selected = any(member.result.selected for member in members)
    return CalibrationRows(log(blend(rows.logits, blending.strategy)), rows.labels, source, selected)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("members", nargs="+", help="run folders (all their folds) and fold folders")
    add_promises(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Show how well calibration works for each member, on rows that had no part in it."""
    args = parse(argv)
    head = ["member", "T", "ECE", "after"]
    head += [f"in sets of {args.coverage:g} [95 %]", "size"] if args.coverage else []
    head += [f"right, of {args.min_precision:g} [95 %]", "answered"] if args.min_precision else []
    rows, lacking, members = [], [], find_members(args.members)
    for member in members:
        mark = " selected" if member.result.selected else ""
        held = member.held_out
        rows.append((f"{member}{mark}", *cross_fitted_cells(str(member), held.logits, held.labels, args)))
    for run, inside in by_run(members):
        if len(inside) == 1 or not is_whole_run(inside):
            continue
        blendings = [Blending(np.ones(len(inside)), "logits", mirror) for mirror in (False, True)]
        tables = {blending.mirror: rows_of_ensemble(run, inside, blending) for blending in blendings}
        for mirror, table in tables.items():
            if table:
                name = f"{run}, {table.source}{', mirrored' * mirror}{' selected' * table.selected}"
                rows.append((name, *cross_fitted_cells(name, table.logits, table.labels, args)))
        lacking += [] if any(tables.values()) else [run]
    show_table("Calibration, each row judged by what the other rows gave", head, rows)
    say("T: temperature. ECE: expected calibration error, before and after; all else is calibrated. size: labels a set")
    for run in lacking:
        say(f"for that of an ensemble, first: creature ensemble {run} --images DIR --labels FILE.csv")
    return 0


def cross_fitted_cells(name: str, logits: np.ndarray, labels: np.ndarray, args: argparse.Namespace) -> list[str]:
    """The cells of a model's row, for its logits (N, K) of rows with labels (N,), each judged by the others.

    Raises UserError where it cannot promise what is asked for.
    """
    try:
        return _cross_fitted_cells(logits, labels, args.coverage, args.min_precision)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _cross_fitted_cells(
    logits: np.ndarray, labels: np.ndarray, coverage: float | None, precision: float | None
) -> list[str]:
    if not enough_to_cross_fit(len(labels)):
        raise UserError(
            f"{len(labels)} held-out images are too few to judge each by the others: {FEWEST} must be left without any "
            f"of {PARTS} parts"
        )
    on_all = calibrate(logits, labels, coverage, precision)
    after, covered, sizes, sure = np.empty(logits.shape), *(np.zeros(len(labels)) for _ in range(3))
    for rows, fitted in cross_fit(logits, labels, coverage, precision):
        after[rows] = fitted.probabilities(logits[rows])
        if coverage:
            sets = fitted.sets(after[rows])
            covered[rows], sizes[rows] = sets[np.arange(rows.sum()), labels[rows]], sets.sum(1)
        if precision:
            sure[rows] = fitted.sure(after[rows])
    cells = [f"{on_all.temperature:.2f}"]
    cells += [f"{calibration_error(p, labels):.4f}" for p in (blend(logits[None]), after)]
    if coverage:
        cells += [str(Count(int(covered.sum()), len(labels))), f"{sizes.mean():.2f}"]
    if precision:
        right, n = (after.argmax(1) == labels)[sure > 0], int(sure.sum())
        cells += [str(Count(int(right.sum()), n)) if n else "none", f"{n / len(labels):.0%}"]
    return cells
