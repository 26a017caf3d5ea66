"""A run as folders to publish: `main`, the one model to use, and a folder for each member of the ensemble.

Each is a model in timm's format with its recipe, result and golden logits; nothing in them names a path, or a user, of
the machine that trained them.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from creature.console import warn
from creature.data.folds import FoldTable, write_folds
from creature.data.sources import short_names
from creature.ensembling.calibrate import member_calibration, rows_of_ensemble
from creature.ensembling.out_of_fold import ensemble_result
from creature.metrics.blend import Blending
from creature.metrics.calibration import (
    ENSEMBLE_CALIBRATION,
    FEWEST,
    MODEL_CALIBRATION,
    fit,
    save_calibration,
)
from creature.publishing.golden import write_golden
from creature.recipe import Recipe
from creature.recipe_file import check_recipe, dump_recipe
from creature.reporting.study import StudyRun
from creature.results import EnsembleResult, read_result, write_result
from creature.run import Fold, no_finished_fold
from creature.storage import file_hash, link_or_copy
from creature.training.source import portable_name


def export(run: StudyRun, out: Path) -> dict[str, Path]:
    """Write `out`/main and, for several members, `out`/fold-N, without their cards; the folders by branch."""
    shutil.rmtree(out, ignore_errors=True)
    branches = {"main": run.folds[0]} | {fold.name: fold for fold in run.folds if len(run.folds) > 1}
    for branch, fold in branches.items():
        folder = out / branch
        folder.mkdir(parents=True)
        link_or_copy(fold.folder / "model.safetensors", folder / "model.safetensors")
        for name in ("config.json", "result.json", "history.jsonl"):
            shutil.copyfile(fold.folder / name, folder / name)
        # guard: portable-recipe
        (folder / "recipe.yaml").write_text(dump_recipe(portable(run.recipe)), encoding="utf-8")
        write_golden(folder)
    write_folds(out / "main", anonymous(run.run.fold_table))  # guard: anonymous-rows
    ensemble = published_ensemble(run)
    temperature = write_calibrations(run, out, branches, blending=ensemble.blending)
    write_result(out / "main" / "ensemble.json", ensemble.model_copy(update={"temperature": temperature}))
    return {branch: out / branch for branch in branches}


def as_published(run: StudyRun) -> StudyRun:
    """The run without predictions that were blended in another way than what is published of it.

    Raises UserError for a run without a finished fold.
    """
    if not run.folds:
        raise no_finished_fold(run.folder)
    blending, kept = published_ensemble(run).blending, {}
    for kind, table in run.recorded.items():
        if len(run.folds) == 1 or table.blended_by(blending):
            kept[kind] = table
        else:
            warn(
                f"{run.folder}/ensemble/{kind}.safetensors: its score is left out, for it was blended in another way "
                f"({table.how}) than ensemble.py did last, which is published; predict as it is to be published"
            )
    return replace(run, recorded=kept)


def write_calibrations(run: StudyRun, out: Path, branches: dict[str, Fold], *, blending: Blending) -> float | None:
    """Write the calibration of each model that held out enough rows, and of the ensemble where it has enough.

    It is a table of probabilities that names no image. The temperature is the ensemble's.
    """
    fitted = {
        out / branch / MODEL_CALIBRATION: member_calibration(fold.folder)
        for branch, fold in branches.items()
        if fold.score.n >= FEWEST
    }
    temperature, rows = None, rows_of_ensemble(run.run, run.folds, blending) if len(run.folds) > 1 else None
    if rows and len(rows.labels) >= FEWEST:
        calibration = fit(rows.logits, rows.labels, selected=rows.selected, mirror=blending.mirror)
        fitted[out / "main" / ENSEMBLE_CALIBRATION], temperature = calibration, calibration.temperature
    for path, calibration in fitted.items():
        save_calibration(path, calibration)
        sort_header(path)
    return temperature


def sort_header(path: Path) -> None:
    """Sort a safetensors file's header, which is written in a random order: what has not changed is not uploaded."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    path.write_bytes(content[:8] + header.encode().ljust(size) + content[8 + size :])


def portable(recipe: Recipe) -> Recipe:
    """The recipe with the last names of its paths instead of the paths."""
    settings: dict[str, Any] = json.loads(recipe.model_dump_json())
    images = settings["images"]
    for field in ("train", "validation", "holdout"):
        paths = images[field]
        names = short_names(paths, f"images.{field}") if paths else []
        images[field] = [path if path.startswith("hub:") else name for path, name in zip(paths, names, strict=True)]
    files = (("images", "labels"), ("images", "holdout_labels"), ("backbone", "weights"), ("loss", "teacher"))
    for group, field in files:  # guard: teacher-path
        if path := settings[group][field]:
            settings[group][field] = Path(path).name
    settings["backbone"]["name"] = portable_name(recipe.backbone.name)
    return check_recipe(settings, "the recipe")


def anonymous(folds: FoldTable) -> FoldTable:
    """The fold table with hashes for ids, which are names of files; content hashes still tell the images apart."""

    def hashed(name: str) -> str:
        return hashlib.sha256(name.encode()).hexdigest()

    bad = {hashed(name): reason for name, reason in folds.bad.items()}
    return replace(folds, ids=pa.chunked_array([list(map(hashed, folds.ids.to_pylist()))]), bad=bad)


def published_ensemble(run: StudyRun) -> EnsembleResult:
    """The members with the hashes of their weights, how they are blended, and what was measured."""
    path = run.folder / "ensemble" / "result.json"
    ensemble = None
    if path.exists():
        ensemble = read_result(path, EnsembleResult, f"run creature ensemble {run.folder} again")
    if ensemble is None or not _is_of_folds(ensemble, run.folds):
        ensemble = ensemble_result(run.folds, Blending(np.ones(len(run.folds))), tallies={})
    members = tuple(
        member.model_copy(update={"name": fold.name, "sha256": file_hash(fold.folder / "model.safetensors")})
        for member, fold in zip(ensemble.members, run.folds, strict=True)
    )
    scores = {Path(name).name: score for name, score in ensemble.ensemble.items()}
    return ensemble.model_copy(update={"members": members, "ensemble": scores})


def _is_of_folds(ensemble: EnsembleResult, folds: Sequence[Fold]) -> bool:
    """Whether the ensemble is of exactly these folds and their weights; older ones have no hashes of weights."""
    weights = {fold.name: fold.result.sha256.weights for fold in folds}
    members = [(member.fold, member.sha256 or weights.get(member.fold)) for member in ensemble.members]
    return members == list(weights.items())
