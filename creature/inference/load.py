"""Where models to predict with are: a fold, all members of a run, an exported folder, a repository of the Hub."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from creature.errors import CreatureError, UserError
from creature.hub_download import HUB, download
from creature.member_folds import find_members
from creature.metrics.blend import Blending
from creature.metrics.calibration import ENSEMBLE_CALIBRATION, MODEL_CALIBRATION, Calibration, by_mirror
from creature.results import Calibrated, EnsembleResult, read_result
from creature.run import RESTORE, Fold
from creature.storage import file_hash

FILES = (
    "config.json",
    "model.safetensors",
    "recipe.yaml",
    "result.json",
    "ensemble.json",
    MODEL_CALIBRATION,
    ENSEMBLE_CALIBRATION,
)


@dataclass(frozen=True)
class ModelFolders:
    """The folders of a model's members, their names and their blending; `home` is the run or the published model.

    `calibrations` are of the blended members, by whether mirror images are predicted, too.
    """

    folders: list[Path]
    names: tuple[str, ...]
    blending: Blending
    home: Path
    calibrations: dict[bool, Calibration]


WITH_MEMBERS = "or all of them with --members (in Python members=True)"


def find_model(model: str, all_members: bool, *, of_several: str = WITH_MEMBERS) -> ModelFolders:
    """The one model of a folder or a repository, or with `all_members` the ensemble that it stands for.

    `of_several` says what else there is to do with a run of several folds. Raises UserError for a folder without a
    model, a repository that cannot be reached, or weights that are not those that the ensemble was measured with.
    """
    folder = download(model, FILES) if model.startswith(HUB) else Path(model)
    if model.startswith(HUB) or (folder / "ensemble.json").exists():
        if all_members:
            return _published_ensemble(model, folder)
        alone = Blending(np.ones(1))
        return ModelFolders([folder], (model,), alone, home=folder, calibrations=by_mirror(temperature_of(folder)))
    members = find_members([model])
    if len(members) > 1 and not all_members:
        raise UserError(f"{model} has {len(members)} folds; name one, such as {members[0]}, {of_several}")
    names = tuple(member.name for member in members)
    blending, folders = Blending(np.ones(len(members))), [member.folder for member in members]
    calibrations = calibrations_of(members, blending)
    return ModelFolders(folders, names, blending, home=folders[0].parent, calibrations=calibrations)


def temperature_of(folder: Path) -> float | None:
    """The temperature that calibrates one model, without mirror images; None where its result has none."""
    path = folder / "result.json"
    return read_result(path, Calibrated, RESTORE).temperature if path.exists() else None


def calibrations_of(members: Sequence[Fold], blending: Blending) -> dict[bool, Calibration]:
    """What calibrates blended members, by whether mirror images are predicted, too.

    One model's temperature, or that which ensemble.py found for these members, blended so, when it ran last.
    """
    path = members[0].run.folder / "ensemble" / "result.json"
    if len(members) == 1:
        return by_mirror(temperature_of(members[0].folder))
    if not path.exists():
        return {}
    result = read_result(path, EnsembleResult, f"run creature ensemble {members[0].run.folder} again")
    weights = [member.result.sha256.weights for member in members]
    same = [member.sha256 for member in result.members] == weights and result.blending.weighs_like(blending)
    return by_mirror(result.temperature, result.mirror) if same else {}


def _published_ensemble(model: str, main: Path) -> ModelFolders:
    try:
        ensemble = read_result(main / "ensemble.json", EnsembleResult, "predict without it")
    except CreatureError as error:
        raise UserError(f"--members: {model} does not say what its ensemble is: {error}") from error
    names = tuple(member.name for member in ensemble.members)
    folders = []
    for name, digest in [(member.name, member.sha256) for member in ensemble.members]:
        folder = download(f"{model.partition('@')[0]}@{name}", FILES) if model.startswith(HUB) else main.parent / name
        if not (folder / "model.safetensors").exists() or file_hash(folder / "model.safetensors") != digest:
            raise UserError(
                f"--members: the weights of {name} are not those that {model} names in ensemble.json; "
                "publish the run again, or predict without --members"
            )
        folders.append(folder)
    blending = replace(ensemble.blending, mirror=False)
    several = len(folders) > 1
    calibrations = by_mirror(ensemble.temperature if several else temperature_of(main), several and ensemble.mirror)
    return ModelFolders(folders, names, blending, home=main, calibrations=calibrations)
