"""A run as folders to publish: `main`, the one model to use, and a folder for each member of the ensemble.

Each is a model in timm's own format with its recipe, result and golden outputs; nothing in them names a place or a
person of the machine that trained them.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from creature.console import warn
from creature.data.folds import FoldTable, write_folds
from creature.data.sources import short_names
from creature.ensembling.calibrate import member_calibration, rows_of_ensemble
from creature.ensembling.out_of_fold import ensemble_summary
from creature.errors import BrokenError, UserError
from creature.inference.members import load_member, predictor
from creature.inference.predictor import ImageInput, predict_batches
from creature.metrics.blend import Blending
from creature.metrics.calibration import ENSEMBLE_CALIBRATION, FEWEST, MODEL_CALIBRATION, fit, save_calibration
from creature.recipe import Recipe
from creature.recipe_file import check_recipe, dump_recipe
from creature.reporting.study import StudyRun
from creature.run import Fold
from creature.samples import draw
from creature.storage import file_hash, link_or_copy, write_json

GOLDEN_SIZE = (160, 120)  # not square, so that a wrong fit cannot hide


def export(run: StudyRun, out: Path) -> dict[str, Path]:
    """Write `out`/main and, of several members, `out`/fold-N; the folders by branch, without their cards.

    Raises UserError for a run without a finished fold.
    """
    if not run.folds:
        raise UserError(f"{run.folder} has no finished fold; train one first: creature train --recipe ...")
    shutil.rmtree(out, ignore_errors=True)
    branches = {"main": run.folds[0]} | {fold.name: fold for fold in run.folds if len(run.folds) > 1}
    for branch, fold in branches.items():
        folder = out / branch
        folder.mkdir(parents=True)
        link_or_copy(fold.folder / "model.safetensors", folder / "model.safetensors")
        for name in ("config.json", "result.json", "history.jsonl"):
            shutil.copyfile(fold.folder / name, folder / name)
        (folder / "recipe.yaml").write_text(dump_recipe(portable(run.recipe)), encoding="utf-8")
        write_golden(folder)
    write_folds(out / "main", anonymous(run.run.fold_table))
    summary = published_ensemble(run)
    write_json(out / "main" / "ensemble.json", summary)
    write_calibrations(run, out, branches, blending_of(summary))
    return {branch: out / branch for branch in branches}


def blending_of(summary: dict[str, Any]) -> Blending:
    """How the ensemble of a summary is blended; older ones do not say whether mirror images were predicted."""
    weights = np.array([member["weight"] for member in summary["members"]])
    return Blending(weights, summary["strategy"], bool(summary.get("mirror", False)))


def as_published(run: StudyRun) -> StudyRun:
    """The run without predictions that were blended in another way than what is published of it."""
    blending, kept = blending_of(published_ensemble(run)), {}
    for kind, table in run.recorded.items():
        if len(run.folds) == 1 or table.blended_by(blending):
            kept[kind] = table
        else:
            warn(
                f"{run.folder}/ensemble/{kind}.safetensors: its score is left out, for it was blended in another way "
                f"({table.how}) than ensemble.py did last, which is published; predict as it is to be published"
            )
    return replace(run, recorded=kept)


def write_calibrations(run: StudyRun, out: Path, branches: dict[str, Fold], blending: Blending) -> None:
    """What calibration rests on, for each model that held out enough rows, and for the ensemble where there is any.

    A table of probabilities that names no image.
    """
    for branch, fold in branches.items():
        if fold.score.n >= FEWEST:
            save_calibration(out / branch / MODEL_CALIBRATION, member_calibration(fold.folder))
    if len(run.folds) > 1:
        rows = rows_of_ensemble(run.run, run.folds, blending)
        if rows and len(rows.labels) >= FEWEST:
            fitted = fit(rows.logits, rows.labels, rows.selected, blending.mirror)
            save_calibration(out / "main" / ENSEMBLE_CALIBRATION, fitted)


def portable(recipe: Recipe) -> Recipe:
    """The recipe with names where it had paths of this machine."""
    settings: dict[str, Any] = json.loads(recipe.model_dump_json())
    images = settings["images"]
    for field in ("train", "validation", "holdout"):
        names = short_names(images[field], f"images.{field}") if images[field] else []
        images[field] = [
            path if path.startswith("hub:") else name for path, name in zip(images[field], names, strict=True)
        ]
    for group, field in (("images", "labels"), ("backbone", "weights"), ("loss", "teacher")):
        if path := settings[group][field]:
            settings[group][field] = Path(path).name
    return check_recipe(settings, "the recipe")


def anonymous(folds: FoldTable) -> FoldTable:
    """The fold file with hashes for ids, which are names of files; images are still known by their content."""
    import pyarrow as pa

    def hashed(name: str) -> str:
        return hashlib.sha256(name.encode()).hexdigest()

    bad = {hashed(name): reason for name, reason in folds.bad.items()}
    return replace(folds, ids=pa.chunked_array([list(map(hashed, folds.ids.to_pylist()))]), bad=bad)


def published_ensemble(run: StudyRun) -> dict[str, Any]:
    """The members with the hashes of their weights, how they are blended, and what was measured."""
    path = run.folder / "ensemble" / "result.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise BrokenError(f"{path}: cannot be read: {error}; run creature ensemble {run.folder} again") from error
    now = {fold.name: fold.result.sha256.weights for fold in run.folds}
    # Older ones have no hashes.
    if summary is None or [(m["fold"], m.get("sha256", now.get(m["fold"]))) for m in summary["members"]] != [
        *now.items()
    ]:
        summary = ensemble_summary(run.folds, np.ones(len(now)), strategy="logits", tallies={})
    members = [
        {**member, "name": fold.name, "sha256": file_hash(fold.folder / "model.safetensors")}
        for member, fold in zip(summary["members"], run.folds, strict=True)
    ]
    scores = {Path(name).name: score for name, score in summary["ensemble"].items()}
    return {**summary, "members": members, "ensemble": scores}


def write_golden(folder: Path) -> None:
    """An image and the logits that the folder's model must give it, for whoever loads it elsewhere."""
    image = draw("bird", np.random.default_rng(0), max(GOLDEN_SIZE))
    image.crop((0, 0, *GOLDEN_SIZE)).save(out := BytesIO(), "PNG")
    (folder / "golden.png").write_bytes(out.getvalue())
    names, logits = golden_logits(folder, out.getvalue())
    versions = {"device": "cpu", "precision": "fp32", "torch": torch.__version__.partition("+")[0]}
    write_json(folder / "golden.json", {"picture": "golden.png", "labels": names, "logits": logits, **versions})


def golden_logits(folder: Path, image: bytes) -> tuple[Sequence[str], list[float]]:
    """Class names and logits (K,) of an encoded image, by the model of a folder on the CPU."""
    member = load_member(folder, torch.device("cpu"))
    (batch,) = predict_batches(predictor([member]), [ImageInput("golden", lambda: image)], 1)
    return member.class_names, batch.logits[0, 0].astype(float).tolist()
