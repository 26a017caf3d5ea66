"""Predictions of images by an ensemble and its members, kept so that scores and tables need no image again.

N images, M members, K classes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from creature.errors import BrokenError
from creature.metrics.blend import STRATEGIES, Blending
from creature.metrics.predictions import bytes_to_hashes, hashes_to_bytes
from creature.storage import readable_by_umask


@dataclass(frozen=True)
class RecordedPredictions:
    """Images with the class that each strategy and each member gives them."""

    ids: tuple[str, ...]
    content_hashes: tuple[str, ...]  # empty where an image could not be read
    labels: np.ndarray  # (N,) class indices, -1 where a label is not known
    predicted: dict[str, np.ndarray]  # by strategy or member: class indices (N,)
    strategy: str  # by which the ensemble was blended
    class_names: tuple[str, ...]
    mirror: bool = False  # whether mirror images were predicted, too
    models: tuple[str, ...] = ()  # SHA-256 of the members' weights
    weights: tuple[float, ...] = ()  # of the members
    log_probabilities: np.ndarray | None = None  # (N, K) of the ensemble, where they were kept

    @property
    def members(self) -> list[str]:
        """The members' names."""
        return [name for name in self.predicted if name not in STRATEGIES]

    @property
    def how(self) -> str:
        """How the ensemble, or one model, was blended; its weights apart."""
        return ("one model" if len(self.members) == 1 else self.strategy) + ", with mirror images" * self.mirror

    def blended_by(self, blending: Blending) -> bool:
        """Whether the ensemble was blended in this way; older tables have no weights."""
        recorded = Blending(np.array(self.weights or blending.weights), self.strategy)
        return recorded.weighs_like(blending) and self.mirror == blending.mirror

    def comparable_with(self, other: "RecordedPredictions") -> bool:
        """Whether another ensemble, or one model, predicted in the same way, so that the models alone are compared."""
        alone = min(len(self.members), len(other.members)) == 1
        return self.mirror == other.mirror and (alone or self.strategy == other.strategy)


def save_recorded(path: Path, recorded: RecordedPredictions) -> None:
    """Write the table as safetensors."""
    tensors = {
        "ids": np.frombuffer("\n".join(recorded.ids).encode(), dtype=np.uint8),
        "hashes": hashes_to_bytes(recorded.content_hashes),
        "read": np.array([bool(content) for content in recorded.content_hashes]),
        "labels": recorded.labels.astype(np.int64),
        "decisions": np.stack(list(recorded.predicted.values())).astype(np.int32),
    }
    if recorded.log_probabilities is not None:
        tensors["scores"] = recorded.log_probabilities
    metadata = {
        "deciders": list(recorded.predicted),
        "names": recorded.class_names,
        "strategy": recorded.strategy,
        "mirror": recorded.mirror,
        "models": recorded.models,
        "weights": recorded.weights,
    }
    path.parent.mkdir(exist_ok=True)
    with readable_by_umask(path):
        save_file(tensors, path, metadata={key: json.dumps(value) for key, value in metadata.items()})


def load_recorded(path: Path) -> RecordedPredictions:
    """Read a table; raises BrokenError where it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
            metadata = {key: json.loads(value) for key, value in file.metadata().items()}
        hashes = bytes_to_hashes(tensors["hashes"] * tensors["read"][:, None])
        recorded = RecordedPredictions(
            ids=tuple(tensors["ids"].tobytes().decode().split("\n")),
            content_hashes=hashes,
            labels=tensors["labels"],
            predicted=dict(zip(metadata["deciders"], tensors["decisions"], strict=True)),
            strategy=metadata["strategy"],
            class_names=tuple(metadata["names"]),
            mirror=bool(metadata.get("mirror", False)),  # older tables do not say, nor what follows
            models=tuple(metadata.get("models", ())),
            weights=tuple(metadata.get("weights", ())),
            log_probabilities=tensors.get("scores"),
        )
        rows, columns = len(recorded.ids), (recorded.content_hashes, recorded.labels, *recorded.predicted.values())
        if any(len(column) != rows for column in columns):
            raise ValueError("its columns differ in length")
        kept = recorded.log_probabilities
        if kept is not None and kept.shape != (rows, len(recorded.class_names)):
            raise ValueError("its scores are not of its classes")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BrokenError(f"{path}: cannot be read ({error}); run creature ensemble with --images again") from error
    return recorded
