"""A run on disk: its recipe and identity, its fold file, each fold's lock and result. One process writes at a time."""

import json
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, Field, ValidationError, model_validator

from creature.console import warn
from creature.data.folds import FoldTable, find_folds_file, read_folds, write_folds
from creature.errors import UserError
from creature.recipe import Recipe, recipe_changes
from creature.recipe_file import dump_recipe, load_recipe
from creature.storage import write_json, write_text

CONTENTS = {"weights": "backbone.weights", "teacher": "loss.teacher"}  # what run.json has a hash of, by setting
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "datasets", "pillow", "numpy")


def open_run(run: Path, recipe: Recipe, contents: dict[str, str | None]) -> None:
    """Create the run's folder with its recipe, or check that the one there is the same but for free settings.

    `contents`: hashes of what the recipe names, by the names of CONTENTS; None where it names nothing.
    """
    run.mkdir(parents=True, exist_ok=True)
    with _locked(run / "run.lock"):
        saved = run / "recipe.yaml"
        if not saved.exists():
            write_json(run / "run.json", {"identity": recipe.identity(), **contents})
            write_text(saved, dump_recipe(recipe))
            return
        changes = recipe_changes(load_recipe(saved), recipe)
        before = contents_of(run)
        changes += [f"{CONTENTS[key]}: its content" for key in CONTENTS if before[key] != contents[key]]
        if changes:
            raise UserError(
                f"{run} was made with another recipe; these settings differ:\n  " + "\n  ".join(changes) + "\n"
                f"undo the change (--recipe {saved} --out {run} is as it was begun), or start another run with --out "
                f"DIR{_untrained(run)}"
            )


def warn_of_places(run: Path, recipe: Recipe) -> None:
    """Warn of images in other places than a run's recipe says: that is where later programs look for them."""
    begun = load_recipe(run / "recipe.yaml").images
    for name in ("train", "validation", "holdout", "labels"):
        if getattr(begun, name) != getattr(recipe.images, name):
            warn(f"images.{name}: not as in {run / 'recipe.yaml'}, by which ensemble.py goes; change it there, too")


def contents_of(run: Path) -> dict[str, str | None]:
    """The hashes that a run was begun with; older ones had no teacher."""
    mark = run / "run.json"
    try:
        said = json.loads(mark.read_text())
        return {"weights": said["weights"], "teacher": said.get("teacher")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{mark} is damaged ({error}); restore it, or start another run with --out DIR") from error


def share_folds(run: Path, folds: FoldTable) -> FoldTable:
    """The run's fold file: created once, by whoever comes first; refused where the data is no longer the same."""
    with _locked(run / "run.lock"):
        if find_folds_file(run) is None:
            write_folds(run, folds)
    saved = read_folds(run)
    if saved.fingerprint != folds.fingerprint:
        before, now = (dict(zip(some.ids.to_pylist(), some.hashes.to_pylist(), strict=True)) for some in (saved, folds))
        gone, new = before.keys() - now.keys(), now.keys() - before.keys()
        changed = {name for name in before.keys() & now.keys() if before[name] != now[name]}
        counts = [
            f"{len(some)} {what} (such as {min(some)})"
            for some, what in ((gone, "gone"), (new, "new"), (changed, "with other content"))
            if some
        ]
        raise UserError(
            f"{find_folds_file(run)}: the images are not those that this run was parted on: "
            f"{', '.join(counts) or 'labels differ'}\n"
            f"restore the images, or start another run with --out DIR{_untrained(run)}"
        )
    return saved


def _untrained(run: Path) -> str:
    """The way out of a run that was begun by mistake."""
    begun = any(fold_state(folder) != "missing" for folder in run.glob("fold-*"))
    return "" if begun else f"; or remove {run}, where no fold has been trained yet"


def fold_state(folder: Path) -> str:
    """How far a fold is: `missing`, `begun` or `finished`."""
    if (folder / "result.json").exists():
        return "finished"
    return "begun" if list((folder / "state").glob("step-*")) else "missing"


@contextmanager
def lock_fold(folder: Path) -> Iterator[None]:
    """Hold a fold's lock, which dies with its holder; raises UserError, naming the holder, where it is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "lock.json"
    lock = FileLock(folder / "fold.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        holder = json.loads(owner.read_text()) if owner.exists() else {"pid": "?", "host": "?"}
        raise UserError(
            f"{folder} is being trained by process {holder['pid']} on {holder['host']}; "
            "wait for it, or train another fold with --set 'folds.train=[...]'"
        ) from error
    try:
        write_json(owner, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


class _Score(BaseModel):
    correct: int = Field(ge=0)
    n: int = Field(ge=1)

    @model_validator(mode="after")
    def _no_more_than_all(self) -> Self:
        if self.correct > self.n:
            raise ValueError(f"correct is {self.correct}, and n only {self.n}")
        return self


class _Hashes(BaseModel):
    weights: str = Field(alias="model.safetensors")


class _Result(_Score):
    """What others rest on in a result.json; it holds more."""

    fold: int = Field(ge=0)
    selected: bool
    epoch: int = Field(ge=1)
    last: _Score
    class_counts: list[int]
    parameters: int
    seconds: float
    folds: str
    sha256: _Hashes


def read_result(fold: Path) -> dict[str, Any]:
    """A finished fold's result.json; raises UserError where there is none, or one that says something else."""
    try:
        result = json.loads((fold / "result.json").read_text())
        _Result.model_validate(result, strict=True)
        return result
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserError(
            f"{fold / 'result.json'}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}; restore it, or train the "
            "fold again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{fold} is no finished fold: {error}") from error


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """What a result was computed with."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "processes": processes,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "commit": _commit(Path(__file__).parents[2] / ".git"),
    }


def _commit(git: Path) -> str | None:
    """The commit of this project's checkout; read, for no program is started beside a training."""
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).exists():
            return (git / name).read_text().strip()
        packed = [line.split() for line in (git / "packed-refs").read_text().splitlines()]
        return next((line[0] for line in packed if line[1:] == [name]), None)
    except OSError:
        return None  # installed without a checkout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with FileLock(path):
        yield
