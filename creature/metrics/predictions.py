"""Predictions: one table of ids and logits, saved as safetensors. N rows, K classes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from creature.errors import UserError


@dataclass(frozen=True)
class Predictions:
    """The logits of a model, by id: complete and unique."""

    ids: tuple[str, ...]
    logits: np.ndarray  # float32 (N, K)
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.logits.shape != (len(self.ids), len(self.names)):
            raise ValueError(
                f"logits of shape {self.logits.shape} for {len(self.ids)} ids and {len(self.names)} classes"
            )
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("an id has two rows")
        if any("\n" in name or not name for name in self.ids):
            raise ValueError("an id is empty or holds a line break")


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write the table; ids are a byte tensor of lines, for a header has no room for a million of them."""
    lines = np.frombuffer("\n".join(predictions.ids).encode(), dtype=np.uint8)
    tensors = {"logits": np.ascontiguousarray(predictions.logits), "ids": lines}
    save_file(tensors, path, metadata={"names": json.dumps(predictions.names)})


def load_predictions(path: Path) -> Predictions:
    """Read a table; raises UserError where the file is missing or damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            lines = file.get_tensor("ids").tobytes().decode()
            ids = tuple(lines.split("\n")) if lines else ()
            return Predictions(ids, file.get_tensor("logits"), tuple(json.loads(file.metadata()["names"])))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as predictions: {error}") from error
