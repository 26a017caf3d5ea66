"""A run's folder while it is trained: its recipe, its fold file, each fold's lock. One process writes at a time."""

import json
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from creature.console import warn
from creature.data.files import ENDINGS, walk_files
from creature.data.folds import FoldTable, find_folds_file, read_folds, write_folds
from creature.data.tables import TABLES
from creature.errors import BrokenError, UserError
from creature.recipe import Recipe, recipe_changes
from creature.recipe_file import dump_recipe, load_recipe
from creature.results import Environment
from creature.storage import write_json, write_text

CONTENTS = {"weights": "backbone.weights", "teacher": "loss.teacher"}  # settings whose files run.json has a hash of
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "datasets", "pillow", "numpy")


def open_run(run: Path, recipe: Recipe, contents: dict[str, str | None]) -> None:
    """Create the run's folder with its recipe, or check that the recipe there differs in free settings alone.

    `contents` are hashes of the files that the recipe names, by the keys of CONTENTS; None where it names none. Raises
    UserError where a setting or a file differs.
    """
    run.mkdir(parents=True, exist_ok=True)
    with FileLock(run / "run.lock"):
        saved = run / "recipe.yaml"
        if not saved.exists():
            write_json(run / "run.json", {"identity": recipe.identity(), **contents})
            write_text(saved, dump_recipe(recipe))
            return
        changes = recipe_changes(load_recipe(saved), recipe)
        before = contents_of(run)
        # guard: changed-content
        changes += [f"{CONTENTS[key]}: its content" for key in CONTENTS if before[key] != contents[key]]
        if changes:  # guard: changed-recipe
            raise UserError(
                f"{run} was made with another recipe; these settings differ:\n  " + "\n  ".join(changes) + "\n"
                f"undo the change (--recipe {saved} --out {run} is as it was begun), or start another run with --out "
                f"DIR{_untrained(run)}"
            )


def refuse_foreign_folder(run: Path, sources: Sequence[str]) -> None:
    """Raises UserError for a new run's folder that holds images, or lies within those to train on."""
    place, way_out = run.resolve(), "give --out a new folder, such as runs/NAME"
    for source in sources:
        if os.path.isdir(source) and place.is_relative_to(Path(source).resolve()):
            raise UserError(f"--out: {run} is within the images of {source}; {way_out}")
    endings = (*ENDINGS, *TABLES)
    inside = walk_files(str(run)) if run.is_dir() else ()
    if image := next((path for path in inside if path.lower().endswith(endings)), None):
        raise UserError(f"--out: {run} is no run, and holds images ({image}); {way_out}")


def warn_of_places(run: Path, recipe: Recipe) -> None:
    """Warn of images that were moved since the run began: later programs look where its recipe says."""
    begun = load_recipe(run / "recipe.yaml").images
    for name in ("train", "validation", "holdout", "labels", "holdout_labels"):
        if getattr(begun, name) != getattr(recipe.images, name):
            warn(f"images.{name}: not as in {run / 'recipe.yaml'}, by which ensemble.py goes; change it there, too")


def contents_of(run: Path) -> dict[str, str | None]:
    """The hashes of the files that a run was begun with; raises BrokenError where run.json is damaged."""
    path = run / "run.json"
    try:
        begun = json.loads(path.read_text())
        return {"weights": begun["weights"], "teacher": begun.get("teacher")}  # older runs had no teacher
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenError(f"{path} is damaged ({error}); restore it, or start another run with --out DIR") from error


def share_folds(run: Path, folds: FoldTable) -> FoldTable:
    """The run's fold file: created once, by whoever comes first; refused where the data is no longer the same."""
    with FileLock(run / "run.lock"):
        if find_folds_file(run) is None:
            write_folds(run, folds)
    saved = read_folds(run)
    if saved.fingerprint != folds.fingerprint:  # guard: changed-images
        before, now = (
            dict(zip(table.ids.to_pylist(), table.hashes.to_pylist(), strict=True)) for table in (saved, folds)
        )
        changes = {
            "gone": before.keys() - now.keys(),
            "new": now.keys() - before.keys(),
            "with other content": {name for name in before.keys() & now.keys() if before[name] != now[name]},
        }
        counts = [f"{len(ids)} {what} (such as {min(ids)})" for what, ids in changes.items() if ids]
        raise UserError(
            f"{find_folds_file(run)}: the images are not those that this run began with: "
            f"{', '.join(counts) or 'labels differ'}\n"
            f"restore the images, or start another run with --out DIR{_untrained(run)}"
        )
    return saved


def _untrained(run: Path) -> str:
    """The way out of a run that was begun by mistake, where nothing is lost by it."""
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
        lock.acquire(timeout=0)  # guard: fold-lock
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


def environment(device: torch.device, processes: int) -> Environment:
    """What a result was computed with."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return Environment(
        device=f"{device.type} ({name})",
        processes=processes,
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        versions={package: version(package) for package in PACKAGES},
        commit=_commit(Path(__file__).parents[2] / ".git"),
    )


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
