"""Predictions: the one table of a model's logits by image, saved as safetensors. N rows, K classes.

Labels and content hashes stand beside the logits, so that nobody joins them by an id again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from creature.errors import BrokenError
from creature.metrics.accuracy import Count, count_correct
from creature.storage import readable_by_umask

HASH_BYTES = 16  # of a content hash


@dataclass(frozen=True)
class Predictions:
    """The logits of a model by image: complete and unique."""

    ids: tuple[str, ...]
    content_hashes: tuple[str, ...]  # in hex; empty where an image could not be read
    labels: np.ndarray  # (N,) class indices, -1 where a label is not known
    logits: np.ndarray  # float32 (N, K)
    class_names: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Predictions of {len(self.ids)} images, {len(self.class_names)} classes>"

    def __post_init__(self) -> None:
        rows = len(self.ids)
        if self.logits.shape != (rows, len(self.class_names)):
            raise ValueError(f"logits of shape {self.logits.shape} for {rows} ids and {len(self.class_names)} classes")
        if len(self.content_hashes) != rows or self.labels.shape != (rows,):
            raise ValueError(f"{len(self.content_hashes)} hashes and {len(self.labels)} labels for {rows} ids")
        if len(set(self.ids)) != rows:
            raise ValueError("an id has two rows")
        if any("\n" in name or not name for name in self.ids):
            raise ValueError("an id is empty or holds a line break")

    @property
    def predicted(self) -> np.ndarray:
        """The class index (N,) of the largest logit."""
        return self.logits.argmax(1)

    @property
    def score(self) -> Count:
        """How many of the labelled rows are right."""
        labelled = self.labels >= 0
        return count_correct(self.predicted[labelled], self.labels[labelled])

    def take(self, rows: np.ndarray) -> "Predictions":
        """The given rows, by their indices, in that order."""
        chosen = rows.tolist()
        ids, hashes = (tuple(column[row] for row in chosen) for column in (self.ids, self.content_hashes))
        return Predictions(ids, hashes, self.labels[rows], logits=self.logits[rows], class_names=self.class_names)


def concatenate(tables: Sequence[Predictions]) -> Predictions:
    """The rows of several tables, one after another; they must not share an id."""
    return Predictions(
        ids=tuple(name for table in tables for name in table.ids),
        content_hashes=tuple(content for table in tables for content in table.content_hashes),
        labels=np.concatenate([table.labels for table in tables]),
        logits=np.concatenate([table.logits for table in tables]),
        class_names=tables[0].class_names,
    )


def hashes_to_bytes(content_hashes: Sequence[str]) -> np.ndarray:
    """Content hashes as bytes (N, 16); zeros where there is none."""
    joined = b"".join(bytes.fromhex(content or "00" * HASH_BYTES) for content in content_hashes)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, HASH_BYTES)


def bytes_to_hashes(rows: np.ndarray) -> tuple[str, ...]:
    """The reverse of hashes_to_bytes."""
    return tuple("" if not row.any() else row.tobytes().hex() for row in rows)


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write the table; ids are a byte tensor of lines, for a header has no room for a million of them."""
    tensors = {
        "logits": np.ascontiguousarray(predictions.logits),
        "ids": np.frombuffer("\n".join(predictions.ids).encode(), dtype=np.uint8),
        "labels": predictions.labels.astype(np.int64),
        "content_hashes": hashes_to_bytes(predictions.content_hashes),
    }
    with readable_by_umask(path):
        save_file(tensors, path, metadata={"names": json.dumps(predictions.class_names)})


def load_predictions(path: Path) -> Predictions:
    """Read a table; one of an older version has neither labels nor hashes, which are then unknown.

    Raises BrokenError where the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            lines = file.get_tensor("ids").tobytes().decode()
            ids = tuple(lines.split("\n")) if lines else ()
            older = "labels" not in file.keys()  # noqa: SIM118 - it is no dict
            labels = np.full(len(ids), -1) if older else file.get_tensor("labels")
            hashes = ("",) * len(ids) if older else bytes_to_hashes(file.get_tensor("content_hashes"))
            return Predictions(
                ids,
                hashes,
                labels,
                logits=file.get_tensor("logits"),
                class_names=tuple(json.loads(file.metadata()["names"])),
            )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BrokenError(f"{path}: cannot be read as predictions: {error}") from error
