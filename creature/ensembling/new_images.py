"""New images, predicted by an ensemble: the holdout of a run's recipe, and those that --images names. N images."""

import argparse
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from creature.console import BROKEN_IMAGES, say, show_table, warn
from creature.device import choose_decoders
from creature.ensembling.calibrate import rows_of_ensemble
from creature.ensembling.compare import show_comparison
from creature.ensembling.out_of_fold import ensemble_result, read_holdout
from creature.ensembling.recorded import (
    ImagesAt,
    PredictedImages,
    Recorder,
    exposures,
    keep_recorded,
    read_truth,
    tally,
)
from creature.errors import UserError
from creature.inference.inputs import list_inputs, read_inputs, read_rows
from creature.inference.load import calibrations_of
from creature.inference.members import load_member, predictor, use_whole_machine
from creature.inference.options import OutputOptions
from creature.inference.prediction import to_predictions
from creature.inference.prediction_files import order_for_submission, write_predictions
from creature.inference.predictor import predict_batches
from creature.member_folds import is_whole_run
from creature.metrics.blend import Blending
from creature.metrics.calibration import find_temperature
from creature.metrics.uneven_classes import uneven_lines
from creature.results import EnsembleResult, read_result, write_result
from creature.run import Fold, Run
from creature.storage import write_refusal


@dataclass(frozen=True)
class GivenImages:
    """Images to predict, in the order of the output, with their labels."""

    title: str
    ids: Sequence[str]  # in full; a submission shortens them
    labels: np.ndarray  # (N,) -1 where there is none
    images: ImagesAt
    columns: tuple[str, str] = ("", "")  # of a submission


def find_images(args: argparse.Namespace, output: OutputOptions, members: Sequence[Fold]) -> dict[str, GivenImages]:
    """The `holdout` and the `images` that --images names, as far as there are any.

    Raises UserError where there are none for what is asked for.
    """
    given: dict[str, GivenImages] = {}
    listed = list_inputs(args.images) if args.images else []
    inputs, columns = order_for_submission(listed, output.template) if output.submission else (listed, ("", ""))
    full_id = {item.path: item.id for item in listed}
    ids = [full_id[item.path] for item in inputs]
    labels = read_truth(args.labels, ids, members[0].run.classes) if args.labels else np.full(len(ids), -1)
    if holdout := read_holdout(members):
        given["holdout"] = GivenImages(
            "images.holdout",
            holdout["id"],
            np.asarray(holdout["label"]),
            images=lambda rows: read_rows(holdout.select(rows)),
        )
    if inputs:
        given["images"] = GivenImages(
            args.labels or "images",
            ids,
            labels,
            images=lambda rows: read_inputs([inputs[row] for row in rows]),
            columns=columns,
        )
    if args.compare and not given:
        raise UserError("--compare needs images: --images DIR --labels FILE.csv, or a recipe with images.holdout")
    if (args.soup == "greedy" or args.distill) and not args.labels and "holdout" not in given:
        raise UserError(
            "--soup and --distill are scored on labelled images that no fold saw, and there are none: --images DIR "
            "--labels FILE.csv, or a recipe with images.holdout; --soup uniform makes a soup without a score"
        )
    return given


def predict(
    args: argparse.Namespace, output: OutputOptions, members: Sequence[Fold], *, blending: Blending
) -> tuple[dict[str, PredictedImages], int]:
    """Predict the `holdout` and the `images`, whose rows are written; with the exit code."""
    given = find_images(args, output, members)
    device, tables, code = use_whole_machine(args.device), {}, 0
    if not given:
        return tables, code
    ensemble = predictor([load_member(member.folder, device, fused=True) for member in members], blending)
    ensemble = replace(ensemble, calibrations=calibrations_of(members, blending))
    for kind, source in given.items():
        keep = bool((source.labels >= 0).any()) and blending.strategy != "vote"
        recorder, total = Recorder(members, blending, keep_probabilities=keep), len(source.ids)
        title = "holdout" if kind == "holdout" else "predicting"
        images = source.images(np.arange(total))
        processes = choose_decoders(device, total)
        batches = predict_batches(ensemble, images, args.batch_size, title=title, total=total, processes=processes)
        batches = recorder.watch(batches)
        if kind == "images" and output.path:
            top = min(args.top, len(ensemble.class_names))
            rows = to_predictions(batches, ensemble, top)
            code = write_predictions(output, source.columns, rows, predictor=ensemble, top=top)
        else:
            deque(batches, maxlen=0)
            code = BROKEN_IMAGES if kind == "images" and "" in recorder.content_hashes else 0
        recorded = recorder.recorded(source.ids, source.labels)
        tables[kind] = PredictedImages(source.title, recorded, exposures(recorded, members), images=source.images)
    return tables, code


def show_and_keep(
    args: argparse.Namespace, members: Sequence[Fold], blending: Blending, *, tables: Mapping[str, PredictedImages]
) -> None:
    """Show the scores and comparisons, and keep what all folds of a run predict."""
    tallies = {table.title: tally(table.recorded, table.exposed) for table in tables.values() if table.labelled}
    if tallies:
        title = f"Ensemble of {len(members)} by {blending.strategy}, on images that no member was trained on"
        lines = [line for name, counts in tallies.items() for line in counts.lines(name)]
        show_table(title, ("images", "accuracy [95 %]"), lines)
    for table in tables.values():
        rows, recorded = table.exposed == "unseen", table.recorded
        if rows.any():
            predicted = recorded.predicted[recorded.strategy][rows]
            for line in uneven_lines(predicted, recorded.labels[rows], recorded.class_names):
                say(f"{table.title}: {line}")
    folder = members[0].run.folder / "ensemble" if is_whole_run(members) else None
    if folder and (reason := write_refusal(folder)):
        warn(f"{folder}: {reason}; scores and predictions are not kept there for report, calibrate and publish")
        folder = None
    if args.compare:
        for kind, table in tables.items():
            file = folder and folder / f"disagreements-{kind}.csv"
            show_comparison(table.title, table.recorded, table.exposed, file=file)
    if folder:
        for kind, table in tables.items():
            keep_recorded(folder / f"{kind}.safetensors", table.recorded)
        rows = rows_of_ensemble(Run(folder.parent), members, blending)
        temperature = find_temperature(rows.logits, rows.labels) if rows else None
        result = ensemble_result(members, blending, tallies).model_copy(update={"temperature": temperature})
        full = args.out and args.format == "full" and not args.template
        if full and temperature and not calibrations_of(members, blending):
            say(
                f"{args.out} is not calibrated, and what is predicted from now on is: these labels gave the temperature"
            )
        _keep_result(folder / "result.json", result)


def _keep_result(path: Path, result: EnsembleResult) -> None:
    """Write the result, with the scores of other images that the same ensemble has."""
    before = read_result(path, EnsembleResult, "remove it, and run creature ensemble again") if path.exists() else None
    if before and _models_and_blending(before) == _models_and_blending(result):
        result = result.model_copy(update={"ensemble": {**before.ensemble, **result.ensemble}})
    write_result(path, result)


def _models_and_blending(result: EnsembleResult) -> tuple[str, bool, list[tuple[str, float]]]:
    return result.strategy, result.mirror, [(member.sha256, round(member.weight, 9)) for member in result.members]
