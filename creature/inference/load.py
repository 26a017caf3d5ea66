"""Where models to predict with are: a fold, all members of a run, an exported folder, a repository of the Hub."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from creature.errors import CreatureError, UserError, network_reason
from creature.member_folds import find_members
from creature.metrics.blend import Blending
from creature.metrics.calibration import ENSEMBLE_CALIBRATION, MODEL_CALIBRATION
from creature.results import EnsembleResult, read_result
from creature.storage import file_hash

HUB = "hf-hub:"
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
    """The folders of a model's members, their names and their blending; `home` is the run or the published model."""

    folders: list[Path]
    names: tuple[str, ...]
    blending: Blending
    home: Path


WITH_MEMBERS = "or all of them with --members (in Python members=True)"


def find_model(model: str, all_members: bool, *, of_several: str = WITH_MEMBERS) -> ModelFolders:
    """The one model of a folder or a repository, or with `all_members` the ensemble that it stands for.

    `of_several` says what else there is to do with a run of several folds. Raises UserError for a folder without a
    model, a repository that cannot be reached, or weights that are not those that the ensemble was measured with.
    """
    folder = download(model) if model.startswith(HUB) else Path(model)
    if model.startswith(HUB) or (folder / "ensemble.json").exists():
        if all_members:
            return _published_ensemble(model, folder)
        return ModelFolders([folder], (model,), Blending(np.ones(1)), home=folder)
    members = find_members([model])
    if len(members) > 1 and not all_members:
        raise UserError(f"{model} has {len(members)} folds; name one, such as {members[0]}, {of_several}")
    names = tuple(member.name for member in members)
    blending = Blending(np.ones(len(members)))
    return ModelFolders([member.folder for member in members], names, blending, home=members[0].folder.parent)


def _published_ensemble(model: str, main: Path) -> ModelFolders:
    try:
        ensemble = read_result(main / "ensemble.json", EnsembleResult, "predict without it")
    except CreatureError as error:
        raise UserError(f"--members: {model} does not say what its ensemble is: {error}") from error
    names = tuple(member.name for member in ensemble.members)
    folders = []
    for name, digest in [(member.name, member.sha256) for member in ensemble.members]:
        folder = download(f"{model.partition('@')[0]}@{name}") if model.startswith(HUB) else main.parent / name
        if not (folder / "model.safetensors").exists() or file_hash(folder / "model.safetensors") != digest:
            raise UserError(
                f"--members: the weights of {name} are not those that {model} names in ensemble.json; "
                "publish the run again, or predict without --members"
            )
        folders.append(folder)
    return ModelFolders(folders, names, replace(ensemble.blending, mirror=False), home=main)


def download(model: str) -> Path:
    """The local folder of `hf-hub:USER/NAME` or `hf-hub:USER/NAME@REVISION`, fetched once and then from the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of httpx, in the version that the client uses
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = model.removeprefix(HUB).partition("@")
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(FILES)))
    except (HTTPError, ImportError, OSError, ValueError) as error:
        match error:
            case GatedRepoError():
                reason = "access has to be requested; do so on its page, then log in with `hf auth login`"
            case RevisionNotFoundError():
                reason = f"the repository has no branch {revision!r}"
            case RepositoryNotFoundError():
                reason = "no such repository, or a private one of others; log in with `hf auth login`, or set HF_TOKEN"
            case HFValidationError():
                reason = "a model of the Hub is written hf-hub:USER/NAME or hf-hub:USER/NAME@BRANCH"
            case LocalEntryNotFoundError():
                cause = network_reason(error.__cause__ or error)
                reason = f"not in the local cache, and the Hub cannot be reached ({cause})"
            case _:
                reason = f"cannot be downloaded: {network_reason(error)}; what is there is kept"
        raise UserError(f"{model}: {reason}") from error
    if not (folder / "config.json").exists():
        raise UserError(f"{model}: the repository has no config.json; it is no timm model")
    return folder
