"""A run's folder, read: what its folds predicted of the images that they held out. N rows, K classes."""

from dataclasses import replace

import numpy as np

from creature.data.arrow_tables import arrow_compute
from creature.data.folds import FoldTable
from creature.metrics.predictions import Predictions


def held_out_predictions(folds: FoldTable, rows: np.ndarray, logits: np.ndarray) -> Predictions:
    """Logits (n, K) of some rows (n,) of the fold table, with what it says of these rows."""
    return Predictions(
        ids=tuple(folds.ids.take(rows).to_pylist()),
        content_hashes=tuple(folds.hashes.take(rows).to_pylist()),
        labels=folds.labels[rows].astype(np.int64),
        logits=logits,
        class_names=folds.class_names,
    )


def with_labels(predictions: Predictions, folds: FoldTable) -> Predictions:
    """The predictions as they are, or those of an older version with labels and hashes from the fold table, by id.

    Raises ValueError for an id that the fold table does not have.
    """
    if (predictions.labels >= 0).all():
        return predictions
    rows = arrow_compute().index_in(list(predictions.ids), folds.ids)
    if rows.null_count:
        raise ValueError("a row is none of the fold table's")
    rows = rows.to_numpy()
    hashes = tuple(folds.hashes.take(rows).to_pylist())
    return replace(predictions, labels=folds.labels[rows].astype(np.int64), content_hashes=hashes)
