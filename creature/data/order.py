"""Which rows each batch of a run holds: a pure function of the seed, the epoch and the position. N rows.

Nothing here depends on the number of workers, so that a run resumes from two integers: epoch and batch.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Share(NamedTuple):
    """The part of every batch that one process takes, where several train a model together."""

    process: int = 0
    processes: int = 1


class BatchRequest(NamedTuple):
    """A batch to be made: of items (row, epoch), in the training view or as held-out images."""

    items: list[tuple[int, int]]
    held_out: bool = False


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from its parts: equal on every machine, unlike Python's own hash."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_batches(rows: np.ndarray, batch_size: int, *seed: object) -> list[np.ndarray]:
    """The rows of one epoch, shuffled by the seed and cut into batches; a last batch of one joins the one before it.

    BatchNorm has no statistics of a single image, and dropping it would lose a row.
    """
    order = np.random.default_rng(derive_seed(*seed)).permutation(rows)
    return np.split(order, batch_size * np.arange(1, epoch_steps(len(rows), batch_size)))


def epoch_steps(rows: int, batch_size: int) -> int:
    """How many batches an epoch of so many rows has."""
    full, rest = divmod(rows, batch_size)
    # guard: no-batch-of-one
    return full if full and rest == 1 else full + (rest > 0)


def process_share(batch: np.ndarray, share: Share) -> np.ndarray:
    """The rows of a batch that one process sees; never none, for every process must take part in a step."""
    rows = batch[share.process :: share.processes]
    return rows if len(rows) else batch[:1]


def fold_requests(
    rows: np.ndarray,
    held_out: np.ndarray,
    batch_size: int,
    *,
    seed: tuple[object, ...],
    epochs: int,
    start: tuple[int, int],
    share: Share,
) -> Iterator[BatchRequest]:
    """A process's batches of a fold from `start` (epoch, batch) on: each epoch's steps, then its held-out rows."""
    first = start[1]
    for epoch in range(start[0], epochs):
        for batch in epoch_batches(rows, batch_size, *seed, epoch)[first:]:  # guard: first-batch
            yield BatchRequest([(int(row), epoch) for row in process_share(batch, share)])  # guard: process-share
        first = 0
        yield from held_out_requests(held_out, batch_size, share)


def held_out_requests(rows: np.ndarray, batch_size: int, share: Share) -> Iterator[BatchRequest]:
    """The held-out images that one process predicts."""
    for places in held_out_order(rows, batch_size, share):
        yield BatchRequest([(int(row), 0) for row in rows[places]], held_out=True)


def held_out_order(rows: np.ndarray, batch_size: int, share: Share) -> list[np.ndarray]:
    """Places in `rows` of the images of each of these batches."""
    mine = np.arange(len(rows))[share.process :: share.processes]  # guard: rows-of-process
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
