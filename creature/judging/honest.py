"""Honest scores: out-of-fold accuracy of members, and an ensemble's accuracy on pictures new to all members."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from creature.images.files import label_of, read_labels
from creature.images.manifest import read_images
from creature.images.sources import Columns
from creature.judging.blend import blend
from creature.judging.count import Count, count_correct
from creature.judging.members import Member, ask, folds_of, relation, result_of
from creature.judging.tables import Input, Row
from creature.learning.predictions import load_predictions
from creature.recipe import load_recipe
from creature.terminal import UserError, warn


def out_of_fold(folder: Path, last: bool = False) -> Count:
    """A fold's accuracy on the rows that it held out; of its last epoch, where another one was selected."""
    folds, result = folds_of(folder.parent), result_of(folder)
    if last:
        return Count(result["last"]["correct"], result["last"]["n"])
    held = load_predictions(folder / "held_out.safetensors")
    expected = {
        name: label for name, label, k in zip(folds.ids, folds.labels, folds.fold, strict=True) if k == result["fold"]
    }
    if set(held.ids) != set(expected) or held.names != folds.names:
        raise UserError(
            f"{folder / 'held_out.safetensors'}: its rows are not those that {folder.parent / 'folds.json'} holds out"
        )
    return count_correct(held.logits.argmax(1), np.array([expected[name] for name in held.ids]))


def out_of_fold_table(folders: Sequence[Path]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the members' out-of-fold accuracy, per fold and pooled for each run."""
    selected = any(result_of(folder)["selected"] for folder in folders)
    columns = ("member", "accuracy [95 %]", *(("the same at the last epoch",) if selected else ()))
    rows: list[tuple[str, ...]] = []
    for run in dict.fromkeys(folder.parent for folder in folders):
        own = [folder for folder in folders if folder.parent == run]
        lines = [(str(folder), [folder]) for folder in own] + [(f"{run}, {len(own)} folds pooled", own)]
        for name, of in lines[: None if len(own) > 1 else 1]:
            mark = " selected" if any(result_of(folder)["selected"] for folder in of) else ""
            last = [str(pooled(out_of_fold(folder, last=True) for folder in of))] if selected else []
            rows.append((name, f"{pooled(out_of_fold(folder) for folder in of)}{mark}", *last))
    return columns, rows


def pooled(counts: Iterator[Count]) -> Count:
    """The count of all rows together; folds hold out different rows."""
    every = list(counts)
    return Count(sum(count.correct for count in every), sum(count.n for count in every))


class Tally:
    """Right and wrong answers to labelled pictures, apart for those that a member was trained on or selected on."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = folders
        self.correct: Counter[str] = Counter()
        self.n: Counter[str] = Counter()
        self.unread = self.unlabelled = 0

    def add(self, row: Row, content: str, label: str | None) -> None:
        """Count one answer."""
        if label is None or row.status != "ok":
            self.unlabelled += label is None
            self.unread += row.status != "ok"
            return
        known = relation(self.folders, content)
        self.n[known] += 1
        self.correct[known] += row.labels[0] == label

    def watch(self, answers: Iterable[tuple[Row, str]], labels: Mapping[str, str]) -> Iterator[Row]:
        """The rows of the answers as they pass, counted."""
        for row, content in answers:
            self.add(row, content, labels.get(row.id))
            yield row

    def lines(self, title: str) -> list[tuple[str, str]]:
        """Rows of a table; where a member was trained on the picture there is the word `seen`, and no accuracy."""
        rows = [(title, str(Count(self.correct["unseen"], self.n["unseen"])))] if self.n["unseen"] else []
        if self.n["selected"]:
            rows.append((title, f"{Count(self.correct['selected'], self.n['selected'])} selected"))
        if self.n["seen"]:
            rows.append((f"{title}: {self.n['seen']} images, trained on", "seen"))
        left_out = ((self.unlabelled, "no label"), (self.unread, "not readable"))
        return rows + [(f"{title}: {n} images, {why}", "not scored") for n, why in left_out if n]

    def figures(self) -> dict[str, Any]:
        """The same, for JSON."""
        counted = {k: Count(self.correct[k], self.n[k]).figures() for k in ("unseen", "selected") if self.n[k]}
        return {**counted, "seen": self.n["seen"], "unlabelled": self.unlabelled, "unread": self.unread}


def tally_holdout(
    folders: Sequence[Path], members: Sequence[Member], strategy: str, weights: np.ndarray, batch_size: int
) -> Tally | None:
    """The ensemble's answers to the images.holdout of its recipe; None where no recipe has one."""
    recipes = [load_recipe(run / "recipe.yaml") for run in dict.fromkeys(folder.parent for folder in folders)]
    images = next((recipe.images for recipe in recipes if recipe.images.holdout), None)
    if images is None:
        return None
    names = members[0].names
    columns = Columns(images.image_column, images.label_column, images.labels)
    try:
        dataset = read_images(images.holdout, columns, "images.holdout", names)
    except UserError as error:
        warn(f"the holdout is not scored: {error}")
        return None
    tally, labels, ids = Tally(folders), list(dataset["label"]), list(dataset["id"])
    for batch in ask(members, lambda row: dataset[row]["image"], len(dataset), batch_size, "holdout"):
        for at, (row, best) in enumerate(
            zip(batch.rows, blend(batch.logits, strategy, weights).argmax(1), strict=True)
        ):
            answer = Row(ids[row], batch.broken.get(at, "ok"), (names[best],), ())
            tally.add(answer, batch.hashes[at], names[labels[row]])
    return tally


def match_labels(path: str, listed: Sequence[Input], inputs: Sequence[Input], names: Sequence[str]) -> dict[str, str]:
    """Id -> label of a CSV, which names pictures as they were `listed`, whatever the ids of the arranged `inputs`.

    Raises UserError for a label that is no class, or where no picture has one.
    """
    table = read_labels(path)
    if unknown := sorted(set(table.values()) - set(names)):
        raise UserError(f"--labels: {path} has labels that are no class of the model: {', '.join(unknown[:10])}")
    by_path = {item.path: label for item in listed if (label := label_of(table, item.id)) is not None}
    if not by_path:
        raise UserError(f"--labels: {path} names none of the pictures; its first is {next(iter(table), 'missing')}")
    return {item.id: by_path[item.path] for item in inputs if item.path in by_path}


def summary(
    folders: Sequence[Path], weights: np.ndarray, strategy: str, tallies: Mapping[str, Tally]
) -> dict[str, Any]:
    """What ensemble/result.json says: members, weights and scores."""
    return {
        "strategy": strategy,
        "members": [
            {"fold": folder.name, "weight": weight, "out_of_fold": out_of_fold(folder).figures(), **_marks(folder)}
            for folder, weight in zip(folders, (weights / weights.sum()).tolist(), strict=True)
        ],
        "out_of_fold": pooled(out_of_fold(folder) for folder in folders).figures(),
        "out_of_fold_last": pooled(out_of_fold(folder, last=True) for folder in folders).figures(),
        "ensemble": {name: tally.figures() for name, tally in tallies.items()},
    }


def _marks(folder: Path) -> dict[str, Any]:
    return {"selected": result_of(folder)["selected"], "sha256": result_of(folder)["sha256"]["model.safetensors"]}
