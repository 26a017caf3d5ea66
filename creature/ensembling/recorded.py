"""An ensemble's predictions, recorded as they are made, and how each image may be scored.

N images, M members, K classes.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from creature.console import warn
from creature.data.files import names_of, read_labels, warn_of_absent
from creature.errors import UserError
from creature.inference.predictor import LogitsBatch
from creature.inference.prepare import ImageInput
from creature.member_folds import exposure, member_names
from creature.metrics.accuracy import Count, count_correct
from creature.metrics.blend import STRATEGIES, Blending, blend, log_probabilities
from creature.metrics.recorded import RecordedPredictions, load_recorded, save_recorded
from creature.results import Accuracy
from creature.run import Fold

ImagesAt = Callable[[np.ndarray], Iterable[ImageInput]]  # the images of some rows, each time from the beginning


@dataclass(frozen=True)
class PredictedImages:
    """Images with what the ensemble and its members predict of them."""

    title: str
    recorded: RecordedPredictions
    exposed: np.ndarray  # (N,) how each image may be scored
    images: ImagesAt

    @property
    def labelled(self) -> bool:
        """Whether any image has a label."""
        return bool((self.recorded.labels >= 0).any())


@dataclass
class Recorder:
    """Collects the classes that all strategies and members predict, and where asked the ensemble's probabilities."""

    members: Sequence[Fold]
    blending: Blending
    keep_probabilities: bool = False
    content_hashes: list[str] = field(default_factory=list)
    _predicted: list[np.ndarray] = field(default_factory=list)
    _log_probabilities: list[np.ndarray] = field(default_factory=list)

    def watch(self, batches: Iterable[LogitsBatch]) -> Iterator[LogitsBatch]:
        """Pass the batches on."""
        for batch in batches:
            blended = {strategy: blend(batch.logits, strategy, self.blending.weights) for strategy in STRATEGIES}
            strategies = (probabilities.argmax(1) for probabilities in blended.values())
            self._predicted.append(np.stack([*strategies, *batch.logits.argmax(2)]))
            if self.keep_probabilities:
                probabilities = blended[self.blending.strategy]
                self._log_probabilities.append(log_probabilities(probabilities).astype(np.float32))
            self.content_hashes += [
                "" if row in batch.broken else hashed for row, hashed in enumerate(batch.content_hashes)
            ]
            yield batch

    def recorded(self, ids: Sequence[str], labels: np.ndarray) -> RecordedPredictions:
        """The table of the images, once all batches have passed."""
        names = (*STRATEGIES, *member_names(self.members))
        return RecordedPredictions(
            ids=tuple(ids),
            content_hashes=tuple(self.content_hashes),
            labels=labels,
            predicted=dict(zip(names, np.concatenate(self._predicted, axis=1), strict=True)),
            strategy=self.blending.strategy,
            class_names=self.members[0].run.classes,
            mirror=self.blending.mirror,
            models=tuple(member.result.sha256.weights for member in self.members),
            weights=tuple(self.blending.weights.tolist()),
            log_probabilities=np.concatenate(self._log_probabilities) if self.keep_probabilities else None,
        )


def keep_recorded(path: Path, recorded: RecordedPredictions) -> None:
    """Write predictions as `path`, unless those of the same images with more labels lie there, or these have none.

    Labelled predictions of other images that lie there are kept beside it, under a name of their own.
    """
    before = load_recorded(path) if path.exists() else None
    labelled, labelled_before = (int((table.labels >= 0).sum()) if table else 0 for table in (recorded, before))
    same = before is not None and set(before.content_hashes) == set(recorded.content_hashes)
    if labelled < labelled_before and (same or not labelled):
        warn(
            f"{path} keeps its {labelled_before} predictions with a label, on which a score and --coverage rest; of "
            f"these here, {labelled or 'none'} ha{'s' if labelled == 1 else 've'} one, so they are in --out alone"
        )
        return
    if before and labelled_before and not same:
        path.rename(_name_of_set(path, before))
    save_recorded(path, recorded)
    _name_of_set(path, recorded).unlink(missing_ok=True)


def _name_of_set(path: Path, recorded: RecordedPredictions) -> Path:
    """Beside `path`, by the images' contents."""
    contents = "\n".join(sorted(set(recorded.content_hashes)))
    return path.with_stem(f"{path.stem}-{hashlib.sha256(contents.encode()).hexdigest()[:8]}")


def read_truth(path: str, ids: Sequence[str], class_names: Sequence[str]) -> np.ndarray:
    """Labels (N,) of the images from a CSV (image name, label), -1 where it has none.

    Raises UserError for a label that is no class, or where no image has one.
    """
    table, index = read_labels(path), {name: k for k, name in enumerate(class_names)}
    if unknown := sorted(set(table.values()) - set(class_names)):
        shown = ", ".join(label or "an empty one" for label in unknown[:10])
        raise UserError(f"--labels: {path} has labels that are no class of the model: {shown}")
    names = names_of(table, ids)
    labels = np.array([index.get(table[names[id]], -1) if id in names else -1 for id in ids], dtype=np.int64)
    if (labels < 0).all():
        raise UserError(f"--labels: {path} names none of the images; its first is {next(iter(table), 'missing')}")
    warn_of_absent(path, table.keys() - names.values())
    return labels


def exposures(recorded: RecordedPredictions, members: Sequence[Fold]) -> np.ndarray:
    """How each image (N,) may be scored: `unseen`, `selected`, `seen`, or not at all: `unread`, `unlabelled`."""
    return np.array(
        [
            "unread" if not content else "unlabelled" if label < 0 else exposure(members, content)
            for content, label in zip(recorded.content_hashes, recorded.labels, strict=True)
        ]
    )


@dataclass(frozen=True)
class Tally:
    """Correct predictions of labelled images, counted apart where an epoch was selected on them; and those left out."""

    scored: dict[str, Count]  # unseen, selected
    left_out: dict[str, int]  # seen, unlabelled, unread

    def lines(self, title: str) -> list[tuple[str, str]]:
        """Rows of a table; where a member was trained on the image there is the word `seen`, and no accuracy."""
        rows = [(title, f"{count}{' selected' * (kind == 'selected')}") for kind, count in self.scored.items()]
        reasons = {"seen": "trained on", "unlabelled": "no label", "unread": "not readable"}
        return rows + [
            (f"{title}: {n} images, {reasons[kind]}", "seen" if kind == "seen" else "not scored")
            for kind, n in self.left_out.items()
            if n
        ]

    @property
    def result(self) -> dict[str, Accuracy | int]:
        """The same, for a result.json."""
        return {**{kind: Accuracy.of(count) for kind, count in self.scored.items()}, **self.left_out}


def tally(recorded: RecordedPredictions, exposed: np.ndarray, by: str | None = None) -> Tally:
    """The score of a strategy or member, the ensemble's strategy if none is named, given the images' exposure (N,)."""
    predicted = recorded.predicted[by or recorded.strategy]
    counts = {
        kind: count_correct(predicted[exposed == kind], recorded.labels[exposed == kind])
        for kind in ("unseen", "selected")
        if (exposed == kind).any()
    }
    return Tally(counts, {kind: int((exposed == kind).sum()) for kind in ("seen", "unlabelled", "unread")})
