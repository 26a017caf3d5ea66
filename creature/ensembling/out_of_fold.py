"""Honest scores: out-of-fold accuracy of members and of the small ensembles of repeats, and of new images.

N rows, K classes. Where the folds were drawn R times, a row has R members that never saw it, one of each repeat.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from creature.console import say, show_table, warn
from creature.data.dataset import read_images
from creature.data.sources import SourceFormat
from creature.ensembling.recorded import Tally
from creature.errors import BrokenError, UserError
from creature.member_folds import by_run
from creature.metrics.accuracy import Count, count_correct
from creature.metrics.blend import Blending, blend
from creature.metrics.predictions import concatenate
from creature.metrics.uneven_classes import uneven_lines
from creature.results import Accuracy, EnsembleMember, EnsembleResult
from creature.run import Fold, by_repeat, full_repeats

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class UnseenRows:
    """Rows of one run with the logits of R members that never saw them, one of each repeat; in the order of the ids."""

    ids: tuple[str, ...]
    content_hashes: tuple[str, ...]
    labels: np.ndarray  # (N,)
    logits: np.ndarray  # (R, N, K)


def unseen_rows(members: Sequence[Fold], last: bool = False) -> UnseenRows:
    """Rows that a member of each full repeat of one run held out; by the weights of the selected or the last epoch."""
    tables = [
        concatenate([member.held_out_last if last else member.held_out for member in repeat])
        for repeat in full_repeats(members)
    ]
    shared = sorted(set.intersection(*(set(table.ids) for table in tables)))
    row_of = [{id_: row for row, id_ in enumerate(table.ids)} for table in tables]
    rows = [np.array([row_of_id[id_] for id_ in shared], dtype=np.int64) for row_of_id in row_of]
    first = tables[0].take(rows[0])
    logits = np.stack([table.logits[chosen] for table, chosen in zip(tables, rows, strict=True)])
    return UnseenRows(first.ids, first.content_hashes, first.labels, logits=logits)


def score_of_repeats(members: Sequence[Fold], strategy: str, last: bool = False) -> tuple[int, Count] | None:
    """R, and the accuracy of the R members of one run that never saw a row, with equal weights; each row counts once.

    None where fewer than two members never saw any row.
    """
    if len(full_repeats(members)) < 2:
        return None
    rows = unseen_rows(members, last)
    if not rows.ids:
        return None
    return len(rows.logits), count_correct(blend(rows.logits, strategy).argmax(1), rows.labels)


def out_of_fold_table(members: Sequence[Fold], strategy: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the out-of-fold accuracy: of members, pooled for each run, and of the ensembles of repeats.

    Repeats are pooled apart: all of them together would count each row R times, and make the interval too narrow.
    """
    selected = any(member.result.selected for member in members)
    columns = ("member", "accuracy [95 %]", *(("the same at the last epoch",) if selected else ()))
    rows: list[tuple[str, ...]] = []

    def add(name: str, score: object, last: object, *, pool: Sequence[Fold]) -> None:
        mark = " selected" if any(member.result.selected for member in pool) else ""
        rows.append((name, f"{score}{mark}", *([str(last)] if selected else [])))

    for run, inside in by_run(members):
        repeated = len(run.fold_table.partitions) > 1
        for member in inside:
            add(str(member), member.score, member.last_score, pool=[member])
        for repeat, pool in by_repeat(inside).items():
            if len(pool) > 1:
                name = f"{run}, {f'repeat {repeat}, ' * repeated}{len(pool)} folds pooled"
                add(name, pooled(fold.score for fold in pool), pooled(fold.last_score for fold in pool), pool=pool)
        if repeats := score_of_repeats(inside, strategy):
            models, score = repeats
            last = _last_of_repeats(inside, strategy) if selected else ""
            add(f"{run}, ensemble of {models} models that never saw the image", score, last, pool=inside)
    return columns, rows


def _last_of_repeats(members: Sequence[Fold], strategy: str) -> str:
    try:
        repeats = score_of_repeats(members, strategy, last=True)
    except BrokenError:  # kept/ may be deleted to save space
        return "not kept"
    return str(repeats and repeats[1])


def show_out_of_fold(members: Sequence[Fold], strategy: str) -> None:
    """Print the table; and for each run with repeats which ensemble theirs stands in for, or which folds it lacks."""
    columns, rows = out_of_fold_table(members, strategy)
    show_table("Out of fold: each image scored by the member that never saw it", columns, rows)
    for run, inside in by_run(members):
        rows_once = concatenate([member.held_out for member in full_repeats(inside)[0]])
        for line in uneven_lines(rows_once.logits.argmax(1), rows_once.labels, run.classes):
            say(f"{run}: {line}")
        if len(run.fold_table.partitions) == 1:
            continue
        repeats = score_of_repeats(inside, strategy)
        if repeats is None:
            lacking = "an ensemble that never saw an image needs finished folds of two repeats that hold it out"
            say(f"{run}: {lacking}", style="dim")
        elif repeats[0] < len(inside):
            say(
                f"The ensemble of {repeats[0]} (by {strategy}, equal weights) stands in for that of all {len(inside)}, "
                "which is larger and can't be scored on these images: some of its members were trained on each of them",
                style="dim",
            )


def pooled(counts: Iterable[Count]) -> Count:
    """The count of all rows together; folds hold out different rows."""
    listed = list(counts)
    return Count(sum(count.correct for count in listed), sum(count.n for count in listed))


def read_holdout(members: Sequence[Fold]) -> "Dataset | None":
    """The images.holdout of the members' recipes; None where no recipe has one, or its images are not there."""
    recipes = [run.recipe for run, _ in by_run(members)]
    images = next((recipe.images for recipe in recipes if recipe.images.holdout), None)
    if images is None:
        return None
    columns = SourceFormat(images.image_column, images.label_column, images.holdout_labels or images.labels)
    try:
        return read_images(images.holdout, columns, "images.holdout", class_names=members[0].run.classes)
    except UserError as error:
        warn(f"the holdout is not scored: {error}")
        return None


def ensemble_result(members: Sequence[Fold], blending: Blending, tallies: Mapping[str, Tally]) -> EnsembleResult:
    """Members, weights, out-of-fold scores, and those of new images."""
    repeats, once = score_of_repeats(members, blending.strategy), full_repeats(members)[0]
    shares = blending.weights / blending.weights.sum()
    return EnsembleResult(
        strategy=blending.strategy,
        mirror=blending.mirror,
        members=tuple(
            EnsembleMember(
                fold=member.name,
                weight=weight,
                out_of_fold=Accuracy.of(member.score),
                selected=member.result.selected,
                sha256=member.result.sha256.weights,
            )
            for member, weight in zip(members, shares.tolist(), strict=True)
        ),
        out_of_fold=Accuracy.of(pooled(member.score for member in once)),
        out_of_fold_last=Accuracy.of(pooled(member.last_score for member in once)),
        ensemble_of_repeats=Accuracy.of(repeats[1], models=repeats[0]) if repeats else None,
        ensemble={name: counts.result for name, counts in tallies.items()},
    )
