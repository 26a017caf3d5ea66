"""Finished folds as members of an ensemble: found, weighed, checked, and how they know an image. M members."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from creature.console import warn
from creature.errors import BrokenError, UserError
from creature.run import Fold, Run, no_finished_fold, unfinished
from creature.storage import file_hash


def find_members(paths: Sequence[str | Path]) -> list[Fold]:
    """The finished folds among fold and run folders, each once, in an order that the argument order does not change.

    Raises UserError for a folder without a finished fold, or a fold that is given twice.
    """
    runs: dict[Path, Run] = {}
    members: list[Fold] = []
    for path in map(Path, paths):
        inside = runs.setdefault(path, Run(path)).folds
        if not inside and not (path / "config.json").exists():
            raise no_finished_fold(path)
        if inside and (stopped := unfinished(path)):
            warn(f"{path}: {len(inside)} finished {'fold' if len(inside) == 1 else 'folds'} of it alone; {stopped}")
        members += inside or [Fold(path, runs.setdefault(path.parent, Run(path.parent)))]
    if len({member.folder.resolve() for member in members}) < len(members):
        raise UserError("a fold is given twice; a run folder stands for all of its folds")
    # fold-10 after fold-9
    return sorted(members, key=lambda member: (str(member.folder.parent), len(member.name), member.name))


def weigh_members(paths: Sequence[str], weights: Sequence[float] | None) -> tuple[list[Fold], np.ndarray]:
    """The members of all paths and their weights (M,); the folds of a run share the weight given for it equally."""
    members = find_members(paths)
    if weights is None:
        return members, np.ones(len(members))
    if len(weights) != len(paths) or min(weights) < 0 or not sum(weights) > 0:
        raise UserError(
            f"--weights: one number of 0 or more for each of the {len(paths)} given members, not all 0, "
            f"got {' '.join(map(str, weights))}"
        )
    given = dict(zip(map(Path, paths), weights, strict=True))
    of_path = [member.folder if member.folder in given else member.run.folder for member in members]
    return members, np.array([given[path] / of_path.count(path) for path in of_path])


def is_whole_run(members: Sequence[Fold]) -> bool:
    """Whether the members are all the finished folds of one run."""
    of_run = [fold.folder for fold in members[0].run.folds]
    return [member.folder for member in members] == of_run


def member_names(members: Sequence[Fold]) -> list[str]:
    """The names of members: `fold-0` where they are all folds of one run, else their paths."""
    return [member.name if is_whole_run(members) else str(member) for member in members]


def by_run(members: Sequence[Fold]) -> Iterator[tuple[Run, list[Fold]]]:
    """Each run with those of its folds that are among the members."""
    for folder in dict.fromkeys(member.run.folder for member in members):
        inside = [member for member in members if member.run.folder == folder]
        yield inside[0].run, inside


def exposure(members: Sequence[Fold], content_hash: str) -> str:
    """How members know an image: `seen` if one was trained on it, `selected` if an epoch was chosen on it, `unseen`."""
    known = "unseen"
    for member in members:
        rows = member.run.rows_by_content.get(content_hash)
        if rows and not member.held_out_rows[rows].all():
            return "seen"
        if rows and member.result.selected:
            known = "selected"
    return known


def check_members(members: Sequence[Fold]) -> None:
    """Raises UserError unless the members are different folds of one fold table and share class names.

    Raises BrokenError for weights that the result was not measured with.
    """
    first = members[0]
    known: dict[tuple[Path, int], Fold] = {}
    by_weights: dict[str, Fold] = {}
    for member in members:
        other = known.setdefault((member.run.folder.resolve(), member.result.fold), member)
        if other is not member:
            raise UserError(
                f"{other} and {member} are both fold {member.result.fold} of their run; a fold counts once: leave out "
                "the copy"
            )
        twin = by_weights.setdefault(member.result.sha256.weights, member)
        if twin is not member:
            raise UserError(f"{twin} and {member} have the same weights; a copy counts once: leave one of them out")
        if file_hash(member.folder / "model.safetensors") != member.result.sha256.weights:
            raise BrokenError(
                f"{member.folder / 'model.safetensors'} is not what its result.json was measured with; restore it, or "
                "train the fold again"
            )
        _ = member.held_out_rows  # which refuses a fold that is none of the run's
        names, expected = member.run.classes, first.run.classes
        if names != expected:
            odd = sorted(set(names) ^ set(expected)) or ["the order"]
            raise UserError(
                f"{member} and {first} were trained on different classes; they differ in {', '.join(odd[:10])}"
            )
        if member.result.folds != first.result.folds:
            raise UserError(
                f"{member} and {first} hold out different images; members must share one fold table "
                "(same images, folds.count, folds.repeats, folds.seed and folds.group)"
            )
