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
from functools import partial
from pathlib import Path

import numpy as np

from creature.console import say, show_table, warn
from creature.data.folds import find_folds_file
from creature.ensembling.out_of_fold import unseen_rows
from creature.ensembling.recorded import exposures
from creature.errors import UserError
from creature.inference.load import find_model
from creature.inference.options import add_promises
from creature.member_folds import by_run, check_members, find_members, is_whole_run, member_names
from creature.metrics.accuracy import Count, count_correct
from creature.metrics.blend import Blending, blend, log_probabilities
from creature.metrics.calibration import (
    ENSEMBLE_CALIBRATION,
    FEWEST,
    MODEL_CALIBRATION,
    SPLITS,
    Calibration,
    CalibrationData,
    calibration_error,
    choose_thresholds,
    cross_fit,
    enough_to_cross_fit,
    fit,
    load_calibration,
)
from creature.run import Fold, Run, full_repeats


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


def calibration_of(
    model: str, all_members: bool, mirror: bool, *, coverage: float | None, min_precision: float | None
) -> Calibration:
    """The calibration of what predict.py loads as `model`, on rows that it never saw, with what it is to promise.

    Raises UserError where these rows are not at hand, too few, or were predicted with mirror images and it is to go
    without.
    """
    source = find_model(model, all_members)
    if len(source.folders) > 1:
        data = ensemble_calibration(source.home, source.folders, replace(source.blending, mirror=mirror))
    else:
        data = member_calibration(source.folders[0])
    if data.mirror != mirror:
        raise UserError(
            f"--mirror: calibration was made {'with' if data.mirror else 'without'} it; predict as that did"
        )
    if data.selected:
        warn(f"{model}: its epoch was chosen on the images that this is fitted on, so it promises a little too much")
    return choose_thresholds(data, coverage, min_precision)


@dataclass(frozen=True)
class CalibrationRows:
    """Logits of images that the model never saw, for its calibration."""

    logits: np.ndarray  # (N, K), of an ensemble logs of its probabilities
    labels: np.ndarray  # (N,)
    source: str
    selected: bool = False  # an epoch was chosen on them


def rows_of_ensemble(run: Run, members: Sequence[Fold], blending: Blending) -> CalibrationRows | None:
    """Images that no member of a run's ensemble saw, with what it predicts of them.

    Its predictions of the holdout or of labelled images, whichever are most, as ensemble.py has kept them; or else
    repeated folds, where the members that never saw a row stand in for the larger ensemble. None without any of these.
    """
    check_members(members)
    models, most = tuple(member.result.sha256.weights for member in members), None
    for kind, recorded in run.predictions.items():
        if recorded.log_probabilities is None or recorded.models != models or not recorded.blended_by(blending):
            continue
        rows = np.flatnonzero(exposures(recorded, members) == "unseen")
        if len(rows) > (len(most.labels) if most else 0):
            source = f"ensemble of {len(members)}, {kind}"
            most = CalibrationRows(recorded.log_probabilities[rows], recorded.labels[rows], source)
    if most:
        return most
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
        prog="creature calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("members", nargs="+", help="run folders (all their folds) and fold folders")
    add_promises(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Show how well calibration works for each member and ensemble, on rows that had no part in it."""
    args = parse(argv)
    coverage, min_precision, members = args.coverage, args.min_precision, find_members(args.members)
    tables = [
        CalibrationRows(fold.held_out.logits, fold.held_out.labels, name, selected=fold.result.selected)
        for fold, name in zip(members, member_names(members), strict=True)
    ]
    lacking = []
    for run, inside in by_run(members):
        if len(inside) > 1 and is_whole_run(inside):
            before = len(tables)
            for mirror in (False, True):
                if rows := rows_of_ensemble(run, inside, Blending(np.ones(len(inside)), mirror=mirror)):
                    source = f"{rows.source}{', mirrored' * mirror}"
                    tables.append(replace(rows, source=source if is_whole_run(members) else f"{run}, {source}"))
            lacking += [run] if len(tables) == before else []
    heads = ["member", "T", "ECE", "after"]
    heads += [f"in sets of {coverage:g} [95 %]", "size"] if coverage else []
    heads += [f"right, of {min_precision:g} [95 %]", "answered"] if min_precision else []
    lines, failed = [], []
    for table in tables:
        try:
            cells = score_cells(table, coverage, min_precision)
            lines.append((f"{table.source}{' selected' * table.selected}", *cells))
        except UserError as error:
            failed.append(error)
    if not lines:
        raise failed[0]
    for error in failed:
        warn(error)
    of_run = f" of {members[0].run}" * is_whole_run(members)
    show_table(f"Calibration{of_run}, each row judged by what the other rows gave", heads, lines)
    say("T: temperature. ECE: expected calibration error, before and after; all else is calibrated. size: labels a set")
    for run in lacking:
        say(f"for that of an ensemble, first: creature ensemble {run} --images DIR --labels FILE.csv")
    return 0


def score_cells(table: CalibrationRows, coverage: float | None, min_precision: float | None) -> list[str]:
    """The cells of a calibration's row in the terminal's table, each image scored with what the other ones gave.

    Raises UserError where the rows are too few, or give nothing of what is asked for.
    """
    logits, labels, n = table.logits, table.labels, len(table.labels)
    if not enough_to_cross_fit(n):
        raise UserError(
            f"{table.source}: {n} held-out images are too few to judge each by the others: {FEWEST} must be left "
            f"without any of {SPLITS} splits"
        )
    probabilities = np.empty(logits.shape)
    for rows, calibration in cross_fit(logits, labels):
        probabilities[rows] = calibration.probabilities(logits[rows])
    before, after = calibration_error(blend(logits[None]), labels), calibration_error(probabilities, labels)
    cells, failed = [f"{fit(logits, labels).temperature:.2f}", f"{before:.4f}", f"{after:.4f}"], []
    asked = [partial(_coverage_cells, coverage=coverage)] if coverage else []
    asked += [partial(_precision_cells, min_precision=min_precision)] if min_precision else []
    for promise in asked:
        try:
            cells += promise(logits, labels)
        except UserError as error:
            failed.append(UserError(f"{table.source}: {error}"))
            cells += ["out of reach", ""]
    if asked and len(failed) == len(asked):
        raise failed[0]
    for failure in failed:
        warn(failure)
    return cells


def _coverage_cells(logits: np.ndarray, labels: np.ndarray, *, coverage: float) -> list[str]:
    """How often the label is in its image's set, and the labels a set; logits (N, K), labels (N,)."""
    sets = np.zeros(logits.shape, bool)
    for rows, calibration in cross_fit(logits, labels, coverage):
        sets[rows] = calibration.label_sets(calibration.probabilities(logits[rows]))
    n = len(labels)
    return [str(Count(int(sets[np.arange(n), labels].sum()), n)), f"{sets.sum(1).mean():.2f}"]


def _precision_cells(logits: np.ndarray, labels: np.ndarray, *, min_precision: float) -> list[str]:
    """How often a label that is given is right, and the share of images that get one; logits (N, K), labels (N,)."""
    sure, top = np.zeros(len(labels), bool), logits.argmax(1)  # which a temperature leaves as they are
    for rows, calibration in cross_fit(logits, labels, min_precision=min_precision):
        sure[rows] = calibration.sure(calibration.probabilities(logits[rows]))
    right = count_correct(top[sure], labels[sure])
    return [str(right) if sure.any() else "none", f"{sure.mean():.0%}"]
