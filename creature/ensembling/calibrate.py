"""How sure to be: temperature, sets of labels with a stated coverage, and answers with a stated precision.

creature calibrate runs/laptop --coverage 0.95 --min-precision 0.9

All is fitted for what answers: for one member, on the rows that it held out; for an ensemble, on labelled images that
none of its members saw, or on repeated folds. What this command shows is cross-fitted: each row is judged by what the
other rows gave. `creature predict RUN/fold-0 PHOTOS --coverage 0.95` then uses all of them.
N rows, K classes, M members.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from creature.console import say, show_table
from creature.errors import UserError
from creature.inference.options import add_promises
from creature.metrics.accuracy import Count
from creature.metrics.blend import blend, log
from creature.metrics.calibration import (
    FEWEST,
    PARTS,
    CalibrationData,
    calibrate,
    calibration_error,
    cross_fit,
    enough_to_cross_fit,
    fit,
)

OF_MODEL, OF_ENSEMBLE = "calibration.safetensors", "ensemble_calibration.safetensors"  # in what is published


def member_calibration(folder: Path) -> CalibrationData:
    """What was fitted for one model: a trained fold, on the rows that it held out, or a published one.

    Raises UserError where these rows are not at hand.
    """
    from creature.ensembling.out_of_fold import held_out
    from creature.inference.members import check_members, result_of

    if (folder / OF_MODEL).exists():
        return load_calibration(folder / OF_MODEL)
    if not (folder / "held_out.safetensors").exists() or not (folder.parent / "folds.json").exists():
        raise UserError(
            f"--coverage and --min-precision rest on the images that a fold held out, and {folder} has none of them; "
            "give a trained fold, such as runs/NAME/fold-0"
        )
    check_members([folder])  # the weights are those that the rows were answered with
    held, labels = held_out(folder)
    return fit(held.logits, labels, result_of(folder)["selected"])


def ensemble_calibration(
    home: Path, folders: Sequence[Path], weights: np.ndarray, strategy: str, mirror: bool
) -> CalibrationData:
    """What was fitted for the ensemble of a run, or of a published one whose main folder is `home`.

    Raises UserError where no answers to images that no member saw are at hand.
    """
    if (home / OF_ENSEMBLE).exists():
        return load_calibration(home / OF_ENSEMBLE)
    found = rows_of_ensemble(home, folders, weights, strategy, mirror) if (home / "folds.json").exists() else None
    if found is None:
        how = f" --strategy {strategy}" * (strategy != "logits") + " --mirror" * mirror
        raise UserError(
            f"--coverage and --min-precision of an ensemble rest on its answers to labelled images that no member was "
            f"trained on, and {home} has none; first: creature ensemble {home} --images DIR --labels FILE.csv{how}, or "
            "train with images.holdout or folds.repeats, or ask one fold"
        )
    return fit(found.logits, found.labels, found.selected, mirror)


class UnseenLogits(NamedTuple):
    """What an ensemble's calibration rests on: images that no member saw."""

    logits: np.ndarray  # (N, K), logs of its probabilities
    labels: np.ndarray  # (N,)
    what: str
    selected: bool = False  # an epoch was chosen on them


def rows_of_ensemble(
    run: Path, folders: Sequence[Path], weights: np.ndarray, strategy: str, mirror: bool
) -> UnseenLogits | None:
    """Images that no member of a run's ensemble saw, with what it says of them.

    Its answers to the holdout, or else to labelled images, as ensemble.py has kept them; or else repeated folds, where
    the members that never saw a row stand in for the larger ensemble. None where there is neither.
    """
    from creature.ensembling.out_of_fold import full_repeats, never_saw
    from creature.ensembling.recorded import exposure_of, load_recorded
    from creature.inference.members import check_members, folds_of, result_of

    models = tuple(result["sha256"]["model.safetensors"] for result in check_members(folders))
    for name in ("holdout", "images"):
        if not (path := run / "ensemble" / f"{name}.safetensors").exists():
            continue
        answered = load_recorded(path)
        asked = answered.models == models and answered.blended_by(weights, strategy, mirror)
        if answered.scores is None or not asked:
            continue
        unseen = exposure_of(answered, folders) == "unseen"
        if unseen.any():
            return UnseenLogits(answered.scores[unseen], answered.labels[unseen], f"ensemble of {len(folders)}, {name}")
    if strategy == "vote" or mirror or len(full_repeats(folders)) < 2 or len(set(weights.tolist())) > 1:
        return None
    rows, logits = never_saw(folders)
    what = f"ensembles of {len(logits)}, for that of {len(folders)}"
    selected = any(result_of(folder)["selected"] for folder in folders)
    return UnseenLogits(log(blend(logits, strategy)), folds_of(run).labels[rows], what, selected)


def save_calibration(path: Path, fitted: CalibrationData) -> None:
    """Write it as safetensors."""
    words = {name: getattr(fitted, name) for name in ("temperature", "selected", "mirror")}
    tensors = {name: getattr(fitted, name) for name in ("of_label", "sure", "right")}
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in words.items()})


def load_calibration(path: Path) -> CalibrationData:
    """Read it; raises UserError where the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            words = {key: json.loads(value) for key, value in file.metadata().items()}
            found = CalibrationData(**words, **{name: file.get_tensor(name) for name in ("of_label", "sure", "right")})
        rows = [found.of_label, found.sure, found.right]
        if {array.shape for array in rows} != {(len(found.right),)} or found.right.dtype != bool:
            raise ValueError("its rows are no columns")
        if not (0 < found.temperature < 1000 and all(((p >= 0) & (p <= 1)).all() for p in rows[:2])):
            raise ValueError("its numbers are no probabilities")
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a calibration ({error}); fetch it again") from error
    return found


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
    from creature.ensembling.out_of_fold import held_out
    from creature.inference.members import find_folds, result_of

    head = ["member", "T", "ECE", "after"]
    head += [f"in sets of {args.coverage:g} [95 %]", "size"] if args.coverage else []
    head += [f"right, of {args.min_precision:g} [95 %]", "answered"] if args.min_precision else []
    rows, lacking, folds = [], [], find_folds(args.members)
    for folder in folds:
        held, labels = held_out(folder)
        mark = " selected" if result_of(folder)["selected"] else ""
        rows.append((f"{folder}{mark}", *judged(str(folder), held.logits, labels, args)))
    for home in dict.fromkeys(folder.parent for folder in folds):
        members = find_folds([str(home)])
        if len(members) == 1 or not set(members) <= set(folds):
            continue
        words = (home, members, np.ones(len(members)), "logits")
        found = {mirror: rows_of_ensemble(*words, mirror) for mirror in (False, True)}
        for mirror, basis in ((mirror, each) for mirror, each in found.items() if each):
            name = f"{home}, {basis.what}{', mirrored' * mirror}{' selected' * basis.selected}"
            rows.append((name, *judged(name, basis.logits, basis.labels, args)))
        lacking += [] if any(found.values()) else [home]
    show_table("Calibration, each row judged by what the other rows gave", head, rows)
    say("T: temperature. ECE: expected calibration error, before and after; all else is calibrated. size: labels a set")
    for home in lacking:
        say(f"for that of an ensemble, first: creature ensemble {home} --images DIR --labels FILE.csv")
    return 0


def judged(name: str, logits: np.ndarray, labels: np.ndarray, args: argparse.Namespace) -> list[str]:
    """The cells of a model's row, cross-fitted, for its logits (N, K) of rows with labels (N,).

    Raises UserError where it cannot promise what is asked for.
    """
    try:
        return _judged(logits, labels, args)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _judged(logits: np.ndarray, labels: np.ndarray, args: argparse.Namespace) -> list[str]:
    if not enough_to_cross_fit(len(labels)):
        raise UserError(
            f"{len(labels)} held-out images are too few to judge each by the others: {FEWEST} must be left without any "
            f"of {PARTS} parts"
        )
    whole = calibrate(logits, labels, args.coverage, args.min_precision)
    after, covered, sizes, sure = np.empty(logits.shape), *(np.zeros(len(labels)) for _ in range(3))
    for own, fitted in cross_fit(logits, labels, args.coverage, args.min_precision):
        after[own] = fitted.probabilities(logits[own])
        if args.coverage:
            sets = fitted.sets(after[own])
            covered[own], sizes[own] = sets[np.arange(own.sum()), labels[own]], sets.sum(1)
        if args.min_precision:
            sure[own] = fitted.sure(after[own])
    cells = [f"{whole.temperature:.2f}"]
    cells += [f"{calibration_error(p, labels):.4f}" for p in (blend(logits[None]), after)]
    if args.coverage:
        cells += [str(Count(int(covered.sum()), len(labels))), f"{sizes.mean():.2f}"]
    if args.min_precision:
        right, answered = (after.argmax(1) == labels)[sure > 0], int(sure.sum())
        cells += [str(Count(int(right.sum()), answered)) if answered else "none", f"{answered / len(labels):.0%}"]
    return cells
