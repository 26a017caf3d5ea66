"""Weights of runs, chosen greedily on out-of-fold predictions. R runs, N rows, K classes.

A run whose folds were drawn several times predicts a row by the ensemble of the members that never saw it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from creature.console import show_table, warn
from creature.data.arrow_tables import arrow_compute
from creature.ensembling.out_of_fold import unseen_rows
from creature.errors import UserError
from creature.member_folds import by_run
from creature.metrics.accuracy import Count
from creature.metrics.blend import blend
from creature.metrics.significance import compare_paired, shown_p
from creature.run import Fold, Run

ROUNDS = 50  # weights are multiples of 1 / ROUNDS or coarser


def choose_weights(logits: np.ndarray, labels: np.ndarray, strategy: str) -> np.ndarray:
    """Weights (R,) of logits (R, N, K): the run that helps most is added again and again (Caruana et al. 2004).

    What counts is accuracy, and among equals a lower mean log loss.
    """
    chosen = np.zeros(len(logits))
    best, best_score = chosen, (-1.0, -np.inf)
    for _ in range(ROUNDS):
        candidates = [chosen + row for row in np.eye(len(logits))]
        scores = [_accuracy_and_likelihood(blend(logits, strategy, weights), labels) for weights in candidates]
        score = max(scores)
        chosen = candidates[scores.index(score)]
        if score > best_score:
            best, best_score = chosen, score
    return best / best.sum()


def _accuracy_and_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
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
    shared = [id_ for id_ in table.ids.to_pylist() if all(id_ in logits for logits in tables)]
    if not shared:
        raise UserError("--weights: the runs have no finished fold in common; train the same folds of each")
    rows = arrow_compute().index_in(shared, table.ids).to_numpy()
    logits = np.stack([[logits_of[id_] for id_ in shared] for logits_of in tables])
    return SharedRows(runs, logits, table.labels[rows], fold=table.partitions[0][rows])


def weigh_runs(members: Sequence[Fold], strategy: str) -> np.ndarray:
    """Weights (M,) of all members by the greedy choice among their runs; prints the scores of runs and of both blends.

    The blend is scored with weights that were chosen on the other folds' rows. Raises UserError for one run, or votes.
    """
    shared = shared_rows(members, strategy)
    if len(shared.runs) < 2:
        raise UserError("--weights: weights are chosen among runs; name two or more, or give a number for each member")
    if strategy == "vote":
        raise UserError("--weights: the choice goes by probabilities, which votes have none of; give numbers")
    weights = choose_weights(shared.logits, shared.labels, strategy)
    shares = {
        run.folder: weight / len(inside)
        for (run, inside), weight in zip(by_run(members), weights.tolist(), strict=True)
    }
    selected = [any(member.result.selected for member in inside) for _, inside in by_run(members)]
    rows = _score_rows(shared, weights, strategy, selected=selected)
    columns = ("run", "weight", "out of fold [95 %]", "against equal weights")
    show_table("Weights, chosen greedily on the out-of-fold predictions", columns, rows)
    return np.array([shares[member.run.folder] for member in members])


def _score_rows(
    shared: SharedRows, weights: np.ndarray, strategy: str, *, selected: Sequence[bool]
) -> list[tuple[str, ...]]:
    """Scores of each run, and of the blends with equal and with the chosen weights, by `selected` runs marked so."""
    one_fold = len(np.unique(shared.fold)) < 2
    if one_fold:
        warn("--weights: the runs share one fold only, so the weights are scored on the rows that chose them")
    equal = blend(shared.logits, strategy).argmax(1) == shared.labels
    weighed = _predict_cross_fitted(shared, weights, strategy) == shared.labels
    name = f"these weights{'' if one_fold else ', chosen on the other folds'}"

    def row(name: str, weight: str, right: np.ndarray, *, mark: bool) -> tuple[str, ...]:
        pair, difference = compare_paired(right, equal), ""
        if right is not equal:
            difference = f"{100 * pair.difference:+.2f} points ({pair.first} : {pair.second}, p {shown_p(pair.p)})"
        return name, weight, f"{Count(int(right.sum()), len(right))}{' selected' * mark}", difference

    rows = [
        row(str(run), f"{weight:.2f}", logits.argmax(1) == shared.labels, mark=mark)
        for run, weight, logits, mark in zip(shared.runs, weights, shared.logits, selected, strict=True)
    ]
    return [
        *rows,
        row("equal weights", "", equal, mark=any(selected)),
        row(name, "", weighed, mark=any(selected) or one_fold),
    ]


def _predict_cross_fitted(shared: SharedRows, weights: np.ndarray, strategy: str) -> np.ndarray:
    """The classes (N,) by weights chosen on the other folds' rows; by the given ones where there are no others."""
    predicted = np.full(len(shared.labels), -1)
    for k in np.unique(shared.fold):
        others = shared.fold != k
        fitted = choose_weights(shared.logits[:, others], shared.labels[others], strategy) if others.any() else weights
        predicted[~others] = blend(shared.logits[:, ~others], strategy, fitted).argmax(1)
    return predicted
