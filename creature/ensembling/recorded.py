"""What an ensemble and each of its members said of images, kept so that scores and tables need no image again.

N images, M members, K classes, D deciders: the strategies and the members.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from creature.console import warn
from creature.data.files import label_of, read_labels
from creature.errors import UserError
from creature.inference.members import relation
from creature.inference.predictor import LogitsBatch
from creature.metrics.accuracy import Count, count_correct
from creature.metrics.blend import STRATEGIES, blend, log


@dataclass(frozen=True)
class RecordedPredictions:
    """Images with the class that each decider gave them."""

    ids: tuple[str, ...]
    hashes: tuple[str, ...]  # of the content; empty where an image could not be read
    labels: np.ndarray  # (N,), -1 where none is known
    decisions: dict[str, np.ndarray]  # decider -> (N,)
    strategy: str  # the decider that the ensemble went by
    class_names: tuple[str, ...]
    mirror: bool = False  # whether mirror images were asked about, too
    models: tuple[str, ...] = ()  # SHA-256 of the members' weights
    weights: tuple[float, ...] = ()  # of the members
    scores: np.ndarray | None = None  # (N, K), logs of the ensemble's probabilities, where they were kept

    @property
    def how(self) -> str:
        """The way in which the ensemble, or one model, was asked; its weights apart."""
        return ("one model" if len(self.members) == 1 else self.strategy) + ", with mirror images" * self.mirror

    def blended_by(self, weights: np.ndarray, strategy: str, mirror: bool) -> bool:
        """Whether the ensemble's answers are by these weights (M,) and in this way; older tables have no weights."""
        own = np.array(self.weights or weights)
        same = len(own) == len(weights) and np.allclose(own / own.sum(), weights / weights.sum())
        return bool(same) and (self.strategy, self.mirror) == (strategy, mirror)

    def asked_as(self, other: "RecordedPredictions") -> bool:
        """Whether another ensemble, or one model, was asked in the same way, so that the models alone are compared."""
        alone = min(len(self.members), len(other.members)) == 1
        return self.mirror == other.mirror and (alone or self.strategy == other.strategy)

    @property
    def members(self) -> list[str]:
        """The deciders that are no strategy."""
        return [decider for decider in self.decisions if decider not in STRATEGIES]


@dataclass
class Recorder:
    """Decisions as they are made, of the strategies and of `members`; of `keep`, a strategy, the probabilities, too."""

    members: Sequence[str]
    weights: np.ndarray  # (M,)
    mirror: bool = False
    keep: str | None = None
    hashes: list[str] = field(default_factory=list)
    decisions: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    def watch(self, answers: Iterable[LogitsBatch]) -> Iterator[LogitsBatch]:
        """Pass the answers on."""
        for batch in answers:
            blends = {strategy: blend(batch.logits, strategy, self.weights) for strategy in STRATEGIES}
            self.decisions.append(np.stack([*(p.argmax(1) for p in blends.values()), *batch.logits.argmax(2)]))
            if self.keep:
                self.scores.append(log(blends[self.keep]).astype(np.float32))
            self.hashes += ["" if at in batch.broken else content for at, content in enumerate(batch.hashes)]
            yield batch

    def answered(
        self,
        ids: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        strategy: str,
        names: Sequence[str],
        models: Sequence[str] = (),
    ) -> RecordedPredictions:
        """The table, once all answers have passed; `models` are the hashes of the members' weights."""
        return RecordedPredictions(
            ids=tuple(ids),
            hashes=tuple(self.hashes),
            labels=np.asarray(labels),
            decisions=dict(zip((*STRATEGIES, *self.members), np.concatenate(self.decisions, axis=1), strict=True)),
            strategy=strategy,
            class_names=tuple(names),
            mirror=self.mirror,
            models=tuple(models),
            weights=tuple(self.weights.tolist()),
            scores=np.concatenate(self.scores) if self.keep else None,
        )


def save_recorded(path: Path, answered: RecordedPredictions) -> None:
    """Write the table as safetensors."""
    hashes = np.frombuffer(b"".join(bytes.fromhex(content or "00" * 16) for content in answered.hashes), dtype=np.uint8)
    tensors = {
        "ids": np.frombuffer("\n".join(answered.ids).encode(), dtype=np.uint8),
        "hashes": hashes.reshape(-1, 16),
        "read": np.array([bool(content) for content in answered.hashes]),
        "labels": answered.labels.astype(np.int64),
        "decisions": np.stack(list(answered.decisions.values())).astype(np.int32),
    }
    words = {"deciders": list(answered.decisions), "names": answered.class_names, "strategy": answered.strategy}
    words |= {"mirror": answered.mirror, "models": answered.models, "weights": answered.weights}
    if answered.scores is not None:
        tensors["scores"] = answered.scores
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in words.items()})


def warn_of_lost_labels(path: Path, answered: RecordedPredictions) -> None:
    """Warn where answers with fewer labels take the place of answers with more."""
    before = int((load_recorded(path).labels >= 0).sum()) if path.exists() else 0
    now = int((answered.labels >= 0).sum())
    if now < before:
        warn(
            f"{path}: these answers, {now or 'none'} with a label, replace {before} with one, on which a score and "
            "--coverage rest; to have them again, run creature ensemble with the same --images and --labels again"
        )


def load_recorded(path: Path) -> RecordedPredictions:
    """Read a table; raises UserError where it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
            words = {key: json.loads(value) for key, value in file.metadata().items()}
        hashes = tuple(
            row.tobytes().hex() if read else "" for row, read in zip(tensors["hashes"], tensors["read"], strict=True)
        )
        ids = tuple(tensors["ids"].tobytes().decode().split("\n"))
        decisions = dict(zip(words["deciders"], tensors["decisions"], strict=True))
        answered = RecordedPredictions(
            ids=ids,
            hashes=hashes,
            labels=tensors["labels"],
            decisions=decisions,
            strategy=words["strategy"],
            class_names=tuple(words["names"]),
            mirror=bool(words.get("mirror", False)),  # older tables do not say, nor what follows
            models=tuple(words.get("models", ())),
            weights=tuple(words.get("weights", ())),
            scores=tensors.get("scores"),
        )
        if {len(hashes), len(answered.labels), *map(len, decisions.values())} != {len(ids)}:
            raise ValueError("its columns differ in length")
        if answered.scores is not None and answered.scores.shape != (len(ids), len(answered.class_names)):
            raise ValueError("its scores are not of its classes")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run creature ensemble with --images again") from error
    return answered


def read_truth(path: str, ids: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Labels (N,) of the images from a CSV (image name, label), -1 where it has none.

    Raises UserError for a label that is no class, or where no image has one.
    """
    table, index = read_labels(path), {name: k for k, name in enumerate(names)}
    if unknown := sorted(set(table.values()) - set(names)):
        shown = ", ".join(label or "an empty one" for label in unknown[:10])
        raise UserError(f"--labels: {path} has labels that are no class of the model: {shown}")
    labels = np.array([index.get(label_of(table, name) or "", -1) for name in ids], dtype=np.int64)
    if (labels < 0).all():
        raise UserError(f"--labels: {path} names none of the images; its first is {next(iter(table), 'missing')}")
    return labels


def exposure_of(answered: RecordedPredictions, folders: Sequence[Path]) -> np.ndarray:
    """How each image (N,) may be scored: `unseen`, `selected`, `seen`, or not at all: `unread`, `unlabelled`."""
    return np.array(
        [
            "unread" if not content else "unlabelled" if label < 0 else relation(folders, content)
            for content, label in zip(answered.hashes, answered.labels, strict=True)
        ]
    )


@dataclass(frozen=True)
class Tally:
    """Right answers to labelled images, apart for those that an epoch was selected on; and those not scored."""

    scored: dict[str, Count]  # unseen, selected
    left_out: dict[str, int]  # seen, unlabelled, unread

    def lines(self, title: str) -> list[tuple[str, str]]:
        """Rows of a table; where a member was trained on the image there is the word `seen`, and no accuracy."""
        rows = [(title, f"{count}{' selected' * (k == 'selected')}") for k, count in self.scored.items()]
        why = {"seen": "trained on", "unlabelled": "no label", "unread": "not readable"}
        said = {"seen": "seen"}
        return rows + [
            (f"{title}: {n} images, {why[k]}", said.get(k, "not scored")) for k, n in self.left_out.items() if n
        ]

    def figures(self) -> dict[str, object]:
        """The same, for JSON."""
        return {**{k: count.figures() for k, count in self.scored.items()}, **self.left_out}


def tally(answered: RecordedPredictions, stands: np.ndarray, decider: str | None = None) -> Tally:
    """The score of a decider, the ensemble's strategy if none is named, given the images' standing (N,)."""
    predicted = answered.decisions[decider or answered.strategy]
    counts = {
        k: count_correct(predicted[stands == k], answered.labels[stands == k])
        for k in ("unseen", "selected")
        if (stands == k).any()
    }
    return Tally(counts, {k: int((stands == k).sum()) for k in ("seen", "unlabelled", "unread")})
