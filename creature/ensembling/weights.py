"""Weights of runs, chosen greedily on out-of-fold predictions. R runs, N rows, K classes.

A run whose folds were drawn several times predicts a row by the ensemble of the members that never saw it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from creature.console import warn
from creature.data.arrow_tables import arrow_compute
from creature.ensembling.out_of_fold import unseen_rows
from creature.errors import UserError
from creature.metrics.accuracy import Count
from creature.metrics.blend import blend
from creature.metrics.significance import PairedComparison, compare_paired, shown_p
from creature.run import Fold, Run, by_run

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


@dataclass(frozen=True)
class SharedRows:
    """The rows that each of several runs held out, with what the members that never saw them predict."""

    runs: list[Run]
    logits: np.ndarray  # (R, N, K)
    labels: np.ndarray  # (N,)
    fold: np.ndarray  # (N,) of the first partition


def shared_rows(members: Sequence[Fold], strategy: str) -> SharedRows:
    """The rows of several runs that share a fold table; raises UserError where no row was held out by all of them."""
    runs, tables = [], []
    for run, inside in by_run(members):
        rows = unseen_rows(inside)
        logits = rows.logits[0]
        if len(rows.logits) > 1:
            logits = np.log(blend(rows.logits, strategy).clip(np.finfo(np.float32).tiny))
        runs.append(run)
        tables.append(dict(zip(rows.ids, logits, strict=True)))
    table = runs[0].fold_table
    shared = [name for name in table.ids.to_pylist() if all(name in logits for logits in tables)]
    if not shared:
        raise UserError("--weights: the runs have no finished fold in common; train the same folds of each")
    rows = arrow_compute().index_in(shared, table.ids).to_numpy()
    logits = np.stack([[of_run[name] for name in shared] for of_run in tables])
    return SharedRows(runs, logits, table.labels[rows], table.partitions[0][rows])


@dataclass(frozen=True)
class WeighedRuns:
    """Weights of all members, and a table of what they are and what they are worth."""

    weights: np.ndarray  # (M,)
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def weigh_runs(members: Sequence[Fold], strategy: str) -> WeighedRuns:
    """Weights by the greedy choice; the blend is scored with weights that were chosen on the other folds' rows."""
    shared = shared_rows(members, strategy)
    runs, logits, labels = shared.runs, shared.logits, shared.labels
    if len(runs) < 2:
        raise UserError("--weights: weights are chosen among runs; name two or more, or give a number for each member")
    if strategy == "vote":
        raise UserError("--weights: the choice goes by probabilities, which votes have none of; give numbers")
    weights = choose_weights(logits, labels, strategy)
    predicted = np.full(len(labels), -1)
    for k in np.unique(shared.fold):
        others = shared.fold != k
        fitted = choose_weights(logits[:, others], labels[others], strategy) if others.any() else weights
        predicted[~others] = blend(logits[:, ~others], strategy, fitted).argmax(1)
    alone = len(np.unique(shared.fold)) < 2
    if alone:
        warn("--weights: the runs share one fold only, so the weights are scored on the rows that chose them")
    equal = blend(logits, strategy).argmax(1) == labels
    right = [*((of_run.argmax(1) == labels) for of_run in logits), equal, predicted == labels]
    names = [*map(str, runs), "equal weights", f"these weights{'' if alone else ', chosen on the other folds'}"]
    shown = [*(f"{weight:.2f}" for weight in weights), "", ""]
    inside = dict(by_run(members))
    chose = [any(member.result.selected for member in of_run) for of_run in inside.values()]
    marks = [*chose, any(chose), any(chose) or alone]  # an epoch, or the weights, was chosen on the rows scored here
    rows = [
        (
            name,
            weight,
            f"{Count(int(of.sum()), len(of))}{' selected' * mark}",
            "" if of is equal else _difference(compare_paired(of, equal)),
        )
        for name, weight, of, mark in zip(names, shown, right, marks, strict=True)
    ]
    share = {
        run.folder: weight / len(of_run) for (run, of_run), weight in zip(inside.items(), weights.tolist(), strict=True)
    }
    return WeighedRuns(
        np.array([share[member.run.folder] for member in members]),
        ("run", "weight", "out of fold [95 %]", "against equal weights"),
        rows,
    )


def _difference(against: PairedComparison) -> str:
    return f"{100 * against.difference:+.2f} points ({against.first} : {against.second}, p {shown_p(against.p)})"
