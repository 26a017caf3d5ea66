"""Weights of runs, chosen greedily on out-of-fold predictions. R runs, N rows, K classes.

A run whose folds were drawn several times speaks for a row by the ensemble of the members that never saw it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from creature.console import warn
from creature.ensembling.compare import PairedComparison, compare_paired, shown_p
from creature.ensembling.out_of_fold import never_saw
from creature.errors import UserError
from creature.inference.members import folds_of, result_of
from creature.metrics.accuracy import Count
from creature.metrics.blend import blend

ROUNDS = 50  # weights are multiples of 1 / ROUNDS or coarser


def choose_weights(logits: np.ndarray, labels: np.ndarray, strategy: str) -> np.ndarray:
    """Weights (R,) of logits (R, N, K): the run that helps most is added again and again (Caruana et al. 2004).

    What helps is accuracy, and among equals a lower mean log loss.
    """
    chosen = np.zeros(len(logits))
    best, best_worth = chosen, (-1.0, -np.inf)
    for _ in range(ROUNDS):
        candidates = [chosen + row for row in np.eye(len(logits))]
        worths = [_worth(blend(logits, strategy, weights), labels) for weights in candidates]
        worth = max(worths)
        chosen = candidates[worths.index(worth)]
        if worth > best_worth:
            best, best_worth = chosen, worth
    return best / best.sum()


def _worth(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    likelihood = np.log(probabilities[np.arange(len(labels)), labels].clip(1e-12)).mean()
    return float((probabilities.argmax(1) == labels).mean()), round(float(likelihood), 9)


def out_of_fold_logits(folders: Sequence[Path], strategy: str) -> tuple[list[Path], np.ndarray, np.ndarray, np.ndarray]:
    """Runs, and of the rows that each of them held out: logits (R, N, K), labels (N,) and first folds (N,)."""
    runs = list(dict.fromkeys(folder.parent for folder in folders))
    tables: list[dict[str, np.ndarray]] = []
    for run in runs:
        rows, logits = never_saw([folder for folder in folders if folder.parent == run])
        said = logits[0] if len(logits) == 1 else np.log(blend(logits, strategy).clip(np.finfo(np.float32).tiny))
        tables.append(dict(zip(folds_of(run).ids.take(rows).to_pylist(), said, strict=True)))
    folds = folds_of(runs[0])
    ids = folds.ids.to_pylist()
    shared = [row for row, name in enumerate(ids) if all(name in table for table in tables)]
    if not shared:
        raise UserError("--weights: the runs have no finished fold in common; train the same folds of each")
    logits = np.stack([[table[ids[row]] for row in shared] for table in tables])
    return runs, logits, folds.labels[shared], folds.partitions[0][shared]


def weigh_runs(folders: Sequence[Path], strategy: str) -> tuple[np.ndarray, tuple[str, ...], list[tuple[str, ...]]]:
    """Weights of the folders (M,) by the greedy choice, and a table of what they are and what they are worth.

    The blend is scored with weights that were chosen on the other folds' rows.
    """
    runs, logits, labels, fold = out_of_fold_logits(folders, strategy)
    if len(runs) < 2:
        raise UserError("--weights: weights are chosen among runs; name two or more, or give a number for each member")
    if strategy == "vote":
        raise UserError("--weights: the choice goes by probabilities, which votes have none of; give numbers")
    weights = choose_weights(logits, labels, strategy)
    predicted = np.full(len(labels), -1)
    for k in np.unique(fold):
        others = fold != k
        fitted = choose_weights(logits[:, others], labels[others], strategy) if others.any() else weights
        predicted[fold == k] = blend(logits[:, fold == k], strategy, fitted).argmax(1)
    equal = blend(logits, strategy).argmax(1) == labels
    scores = [*((row.argmax(1) == labels) for row in logits), equal, predicted == labels]
    alone = len(np.unique(fold)) < 2
    if alone:
        warn("--weights: the runs share one fold only, so the weights are scored on the rows that chose them")
    names = [*map(str, runs), "equal weights", f"these weights{'' if alone else ', chosen on the other folds'}"]
    shown = [*(f"{weight:.2f}" for weight in weights), "", ""]
    chose = [any(result_of(folder)["selected"] for folder in folders if folder.parent == run) for run in runs]
    marks = [*chose, any(chose), any(chose) or alone]  # an epoch, or the weights, was chosen on the rows scored here
    cells = [
        (
            name,
            weight,
            f"{Count(int(right.sum()), len(right))}{' selected' * mark}",
            "" if right is equal else _difference(compare_paired(right, equal)),
        )
        for name, weight, right, mark in zip(names, shown, scores, marks, strict=True)
    ]
    share = {
        run: weight / sum(folder.parent == run for folder in folders) for run, weight in zip(runs, weights, strict=True)
    }
    return (
        np.array([share[folder.parent] for folder in folders]),
        ("run", "weight", "out of fold [95 %]", "against equal weights"),
        cells,
    )


def _difference(against: PairedComparison) -> str:
    return f"{100 * against.difference:+.2f} points ({against.first} : {against.second}, p {shown_p(against.p)})"
