"""One image's prediction: what people and files get. K classes, D features."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from creature.console import BROKEN_IMAGES, say, show_table
from creature.inference.predictor import LogitsBatch, Predictor

OK, UNSURE = "ok", "unsure"


@dataclass(frozen=True)
class Prediction:
    """What a model predicts of one image: labels with their probabilities, the most probable first.

    `status` is `ok`, or `unsure` where a minimum precision was asked for and not reached, or else says why the image
    could not be read; there are no labels then.
    """

    id: str
    status: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    features: np.ndarray | None = None  # (D,), where they were asked for
    calibrated: bool = False  # whether the probabilities are; by predictions of images that the model never saw
    label_set: tuple[str, ...] = ()  # all labels that may be right, where a coverage was asked for

    @property
    def label(self) -> str | None:
        """The most probable label."""
        return self.labels[0] if self.labels else None

    @property
    def probability(self) -> float | None:
        """The probability of that label."""
        return self.probabilities[0] if self.probabilities else None

    @property
    def broken(self) -> bool:
        """Whether the image could not be read; `status` says why."""
        return self.status not in (OK, UNSURE)

    def top(self, k: int) -> list[tuple[str, float]]:
        """The k most probable labels, each with its probability; no more than were asked for."""
        return list(zip(self.labels, self.probabilities, strict=True))[:k]


def to_predictions(batches: Iterable[LogitsBatch], predictor: Predictor, top: int) -> Iterator[Prediction]:
    """Each image's prediction, with the `top` labels of the blended members."""
    names, calibration = predictor.class_names, predictor.calibration
    for batch in batches:
        probabilities = predictor.probabilities(batch.logits)
        order = np.argsort(-probabilities, axis=1, kind="stable")
        sets, sure = None, np.full(len(order), True)
        if calibration and calibration.set_threshold is not None:
            sets = calibration.label_sets(probabilities)
        if calibration and calibration.min_probability is not None:
            sure = calibration.sure(probabilities)
        for row, id_ in enumerate(batch.ids):
            if row in batch.broken:
                yield Prediction(id_, batch.broken[row])
                continue
            best = order[row, :top] if sure[row] else order[row, :0]
            yield Prediction(
                id=id_,
                status=OK if sure[row] else UNSURE,
                labels=tuple(names[k] for k in best),
                probabilities=tuple(probabilities[row, best].tolist()),
                calibrated=calibration is not None,
                features=None if batch.features is None else batch.features[row],
                label_set=() if sets is None else tuple(names[k] for k in order[row] if sets[row, k]),
            )


def show_predictions(
    predictions: Sequence[Prediction], predictor: Predictor, top: int, *, coverage: float | None
) -> int:
    """Predictions as a table in the terminal; the exit code."""
    heads = ("image", *(f"{k}." for k in range(1, top + 1)), *([f"may be, {coverage:g}"] if coverage else []))
    title = f"{predictor.title}: labels and probabilities, {predictor.calibrated}"
    show_table(title, heads, (_cells(prediction, top) for prediction in predictions))
    count = len(predictions)
    say(f"{count} image{'s' * (count != 1)}; next: --out FILE.csv writes them to a file")
    return BROKEN_IMAGES if any(prediction.broken for prediction in predictions) else 0


def _cells(prediction: Prediction, top: int) -> list[str]:
    """A row of the terminal's table."""
    if prediction.broken:
        return [prediction.id, f"not read: {prediction.status}"]
    labels = [f"{label} {probability:.3f}" for label, probability in prediction.top(top)] or ["unsure"]
    label_set = [", ".join(prediction.label_set)] if prediction.label_set else []
    return [prediction.id, *labels, *[""] * (top - len(labels)), *label_set]
