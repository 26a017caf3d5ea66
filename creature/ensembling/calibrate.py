"""Calibration: a temperature, sets of labels with a stated coverage, and labels with a stated precision.

creature calibrate runs/laptop --coverage 0.95 --min-precision 0.9

It is fitted for the model that predicts: for one member, on the rows that it held out; for an ensemble, on labelled
images that none of its members saw, or on repeated folds. What this command shows is cross-fitted: each row is judged
by what the other rows gave. `creature predict RUN/fold-0 PHOTOS --coverage 0.95` then uses all of them.
N rows, K classes, M members.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from creature.console import say, show_table
from creature.data.folds import find_folds_file
from creature.ensembling.out_of_fold import unseen_rows
from creature.ensembling.recorded import exposures
from creature.errors import UserError
from creature.inference.options import add_promises
from creature.metrics.accuracy import Count
from creature.metrics.blend import Blending, blend, log_probabilities
from creature.metrics.calibration import (
    ENSEMBLE_CALIBRATION,
    FEWEST,
    MODEL_CALIBRATION,
    SPLITS,
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
    return fit(rows.logits, rows.labels, rows.selected, mirror=blending.mirror)


@dataclass(frozen=True)
class CalibrationRows:
    """Logits of images that the model never saw, for its calibration."""

    logits: np.ndarray  # (N, K), of an ensemble logs of its probabilities
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
    return CalibrationRows(
        log_probabilities(blend(rows.logits, blending.strategy)), rows.labels, source, selected=selected
    )


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
    """Show how well calibration works for each member and ensemble, on rows that had no part in it."""
    args = parse(argv)
    coverage, min_precision, members = args.coverage, args.min_precision, find_members(args.members)
    tables = [
        CalibrationRows(fold.held_out.logits, fold.held_out.labels, str(fold), selected=fold.result.selected)
        for fold in members
    ]
    lacking = []
    for run, inside in by_run(members):
        if len(inside) > 1 and is_whole_run(inside):
            of_ensemble = _rows_of_run(run, inside)
            tables += of_ensemble
            lacking += [] if of_ensemble else [run]
    heads = ["member", "T", "ECE", "after"]
    heads += [f"in sets of {coverage:g} [95 %]", "size"] if coverage else []
    heads += [f"right, of {min_precision:g} [95 %]", "answered"] if min_precision else []
    lines = [
        (f"{table.source}{' selected' * table.selected}", *score_calibration(table, coverage, min_precision).cells())
        for table in tables
    ]
    show_table("Calibration, each row judged by what the other rows gave", heads, lines)
    say("T: temperature. ECE: expected calibration error, before and after; all else is calibrated. size: labels a set")
    for run in lacking:
        say(f"for that of an ensemble, first: creature ensemble {run} --images DIR --labels FILE.csv")
    return 0


def _rows_of_run(run: Run, members: Sequence[Fold]) -> list[CalibrationRows]:
    """The rows of the run's ensemble, without mirror images and with them, as far as there are any."""
    tables = []
    for mirror in (False, True):
        if rows := rows_of_ensemble(run, members, Blending(np.ones(len(members)), mirror=mirror)):
            tables.append(replace(rows, source=f"{run}, {rows.source}{', mirrored' * mirror}"))
    return tables


@dataclass(frozen=True)
class CalibrationScore:
    """How a calibration does on rows that had no part in it."""

    temperature: float
    error_before: float  # expected calibration error
    error_after: float
    covered: Count | None = None  # rows whose label is in their set, where a coverage was asked for
    set_size: float = 0.0  # labels in a set, on average
    correct: Count | None = None  # of the labels that are sure enough to be given, where a precision was asked for
    given: float | None = None  # share of rows with such a label

    def cells(self) -> list[str]:
        """The cells of its row in the terminal's table."""
        cells = [f"{self.temperature:.2f}", f"{self.error_before:.4f}", f"{self.error_after:.4f}"]
        cells += [str(self.covered), f"{self.set_size:.2f}"] if self.covered else []
        return cells + ([] if self.given is None else [str(self.correct or "none"), f"{self.given:.0%}"])


def score_calibration(
    table: CalibrationRows, coverage: float | None = None, min_precision: float | None = None
) -> CalibrationScore:
    """The score of a calibration, each row scored with what the other rows gave.

    Raises UserError where the rows are too few, or give no such coverage or precision.
    """
    try:
        return _score_calibration(table.logits, table.labels, coverage, min_precision=min_precision)
    except UserError as error:
        raise UserError(f"{table.source}: {error}") from error


def _score_calibration(
    logits: np.ndarray, labels: np.ndarray, coverage: float | None, *, min_precision: float | None
) -> CalibrationScore:
    n = len(labels)
    if not enough_to_cross_fit(n):
        raise UserError(
            f"{n} held-out images are too few to judge each by the others: {FEWEST} must be left without any of "
            f"{SPLITS} splits"
        )
    temperature = calibrate(logits, labels, coverage, min_precision=min_precision).temperature
    probabilities, sets, sure = np.empty(logits.shape), np.zeros(logits.shape, bool), np.zeros(n, bool)
    for rows, calibration in cross_fit(logits, labels, coverage, min_precision=min_precision):
        probabilities[rows] = calibration.probabilities(logits[rows])
        if coverage:
            sets[rows] = calibration.label_sets(probabilities[rows])
        if min_precision:
            sure[rows] = calibration.sure(probabilities[rows])
    correct = probabilities.argmax(1) == labels
    return CalibrationScore(
        temperature=temperature,
        error_before=calibration_error(blend(logits[None]), labels),
        error_after=calibration_error(probabilities, labels),
        covered=Count(int(sets[np.arange(n), labels].sum()), n) if coverage else None,
        set_size=float(sets.sum(1).mean()),
        correct=Count(int(correct[sure].sum()), int(sure.sum())) if sure.any() else None,
        given=float(sure.mean()) if min_precision else None,
    )
