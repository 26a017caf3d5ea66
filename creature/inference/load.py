"""Models to use: a run's fold, all members of a run, an exported folder, or what is published on the Hub."""

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from creature.ensembling.calibrate import OF_ENSEMBLE, OF_MODEL
from creature.errors import UserError
from creature.inference.predictor import Predictor
from creature.metrics.blend import STRATEGIES
from creature.storage import file_hash

HUB = "hf-hub:"
FILES = ("config.json", "model.safetensors", "recipe.yaml", "result.json", "ensemble.json", OF_MODEL, OF_ENSEMBLE)


def load_predictor(
    model: str, all_members: bool, device: str, features: bool = False, explain: bool = False
) -> Predictor:
    """What answers: an ONNX file, the one model of a folder or repository, or all members of it.

    `features` asks for what the classifier sees, too, `explain` for a drawing of each image with its activation map.

    Raises UserError where there is no model, or where it cannot give what is asked of it.
    """
    if model.endswith(".onnx"):
        from creature.inference.onnx import open_session

        if all_members or features or explain:
            raise UserError(
                f"{model} is one model without features; --members, --embed and --explain need the trained folder"
            )
        return open_session(model)
    from creature.inference import members
    from creature.device import keep_memory, share_cores

    found = find_model(model, all_members)
    if features and len(found.folders) > 1:
        raise UserError("--embed asks one model, and --members are several; leave one of them out")
    chosen = members.choose_device(device)
    share_cores()
    keep_memory(chosen)
    loaded = [members.load_member(folder, chosen, fused=True) for folder in found.folders]
    if len({member.class_names for member in loaded}) > 1:
        raise UserError(f"{model}: its members know different classes")
    title = f"{model}, {len(loaded)} members" if all_members else model
    predictor = members.predictor(loaded, found.weights, found.strategy, features, title, found.names)
    if explain:
        from creature.inference.explain import explained

        return explained(predictor, loaded[0])
    return predictor


class FoundModel(NamedTuple):
    """Folders of the members, with their names, weights and the strategy that blends them; `home` is of all of them."""

    folders: list[Path]
    names: tuple[str, ...]
    weights: np.ndarray
    strategy: str
    home: Path


def find_model(model: str, all_members: bool) -> FoundModel:
    """The one model of a folder or a repository, or with `all_members` the ensemble that it stands for.

    Raises UserError for a folder without a model, a repository that cannot be reached, or weights that are not those
    that the ensemble was measured with.
    """
    if model.startswith(HUB):
        folder = download(model)
    elif not (Path(model) / "ensemble.json").exists():
        from creature.inference.members import find_folds

        folders = find_folds([model])
        if len(folders) > 1 and not all_members:
            raise UserError(
                f"{model} has {len(folders)} folds; name one, such as {folders[0]}; predict.py --members asks all"
            )
        return FoundModel(
            folders, tuple(folder.name for folder in folders), np.ones(len(folders)), "logits", folders[0].parent
        )
    else:
        folder = Path(model)
    if not all_members:
        return FoundModel([folder], (model,), np.ones(1), "logits", folder)
    return _members(model, folder)


def _members(model: str, main: Path) -> FoundModel:
    try:
        said = json.loads((main / "ensemble.json").read_text(encoding="utf-8"))
        listed = [(str(m["name"]), float(m["weight"]), str(m["sha256"])) for m in said["members"]]
        strategy, weights = str(said["strategy"]), np.array([weight for _, weight, _ in listed])
        if not all(re.fullmatch(r"fold-\d+", name) for name, *_ in listed) or strategy not in STRATEGIES:
            raise ValueError("a name or the strategy is none of ours")
        if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.sum() > 0):
            raise ValueError("its weights are no shares")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"--members: {model} does not say what its ensemble is ({error}); predict without it"
        ) from error
    folders = []
    for name, _, digest in listed:
        folder = download(f"{model.partition('@')[0]}@{name}") if model.startswith(HUB) else main.parent / name
        if not (folder / "model.safetensors").exists() or file_hash(folder / "model.safetensors") != digest:
            raise UserError(
                f"--members: the weights of {name} are not those that {model} names in ensemble.json; "
                "publish the run again, or predict without --members"
            )
        folders.append(folder)
    return FoundModel(folders, tuple(name for name, *_ in listed), weights, strategy, main)


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
    from huggingface_hub.utils import disable_progress_bars

    repo, _, revision = model.removeprefix(HUB).partition("@")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(FILES)))
    except GatedRepoError as error:
        raise UserError(
            f"{model}: its owner lets in who asks; ask on its page, then log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{model}: the repository has no branch {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{model}: no such repository, or a private one of others; log in with `hf auth login`, or set HF_TOKEN"
        ) from error
    except HFValidationError as error:
        raise UserError(
            f"{model}: a model of the Hub is written hf-hub:USER/NAME or hf-hub:USER/NAME@BRANCH"
        ) from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{model}: not in the local cache, and the Hub cannot be reached ({_first_line(error.__cause__ or error)})"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"{model}: cannot be downloaded: {_first_line(error)}; what is there is kept") from error
    if not (folder / "config.json").exists():
        raise UserError(f"{model}: the repository has no config.json; it is no timm model")
    return folder


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
