"""One image's prediction: what people and files get. K classes, D features."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from creature.inference.predictor import LogitsBatch, Predictor
from creature.metrics.blend import blend, log

if TYPE_CHECKING:
    from creature.metrics.calibration import Calibration

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


def to_predictions(
    batches: Iterable[LogitsBatch], predictor: Predictor, top: int, calibration: "Calibration | None" = None
) -> Iterator[Prediction]:
    """Each image's prediction, with the `top` labels of the blended members, calibrated where that is asked for."""
    for batch in batches:
        probabilities = blend(batch.logits, predictor.strategy, predictor.weights)
        if calibration:
            probabilities = calibration.probabilities(log(probabilities))
        sets = calibration.sets(probabilities) if calibration and calibration.member is not None else None
        sure = calibration.sure(probabilities) if calibration and calibration.answer is not None else None
        order = np.argsort(-probabilities, axis=1, kind="stable")
        for at, name in enumerate(batch.ids):
            if at in batch.broken:
                yield Prediction(name, batch.broken[at])
                continue
            best = order[at, :top]
            prediction = Prediction(
                id=name,
                status=OK,
                labels=tuple(predictor.class_names[k] for k in best),
                probabilities=tuple(map(float, probabilities[at, best])),
                features=None if batch.features is None else batch.features[at],
            )
            if sets is not None:
                members = tuple(predictor.class_names[k] for k in order[at] if sets[at, k])
                prediction = replace(prediction, label_set=members)
            if sure is not None and not sure[at]:
                prediction = replace(prediction, status=UNSURE, labels=(), probabilities=())
            yield prediction
