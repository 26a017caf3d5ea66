"""Calibration of one model's answers: temperature, sets with a stated coverage, answers with a stated precision.

N rows that the model never saw, K classes. Logits are those of a member, or logs of an ensemble's probabilities.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from creature.errors import BrokenError, UserError
from creature.metrics.accuracy import Count
from creature.metrics.blend import blend

MODEL_CALIBRATION = "calibration.safetensors"  # of a published model
ENSEMBLE_CALIBRATION = "ensemble_calibration.safetensors"  # of a published ensemble
BINS = 10
FEWEST = 30  # rows
PARTS = 5  # of the rows, each judged by what the others gave


@dataclass(frozen=True)
class CalibrationData:
    """A temperature, and what the calibrated model says of rows that it never saw: what any promise rests on."""

    temperature: float
    of_label: np.ndarray  # (N,) probability of the right label
    sure: np.ndarray  # (N,) probability of the answer
    right: np.ndarray  # (N,) whether that is the right label
    selected: bool = False  # an epoch was chosen on these rows
    mirror: bool = False  # the model was asked about mirror images, too


@dataclass(frozen=True)
class Calibration:
    """What was fitted on held-out rows: a temperature, and the probabilities from which on a label counts."""

    temperature: float
    member: float | None = None  # in a set, whose coverage was asked for
    answer: float | None = None  # as an answer, whose precision was asked for

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (N, K) of logits (N, K)."""
        return blend(logits[None] / self.temperature)

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Whether each label is in the row's set (N, K); the most probable one always is."""
        assert self.member is not None
        return (probabilities >= self.member) | np.eye(probabilities.shape[1], dtype=bool)[probabilities.argmax(1)]

    def sure(self, probabilities: np.ndarray) -> np.ndarray:
        """Whether each row's answer counts (N,)."""
        assert self.answer is not None
        return probabilities.max(1) >= self.answer


def calibrate(
    logits: np.ndarray, labels: np.ndarray, coverage: float | None = None, precision: float | None = None
) -> Calibration:
    """Fit on logits (N, K) with their labels (N,); raises what `fit` and `promise` do."""
    return choose_thresholds(fit(logits, labels), coverage, precision)


def fit(logits: np.ndarray, labels: np.ndarray, selected: bool = False, mirror: bool = False) -> CalibrationData:
    """The temperature for logits (N, K) with labels (N,), and what promises rest on.

    Raises UserError for too few rows.
    """
    if len(labels) < FEWEST:
        raise UserError(f"calibration needs {FEWEST} held-out images or more, there are {len(labels)}")
    temperature = fit_temperature(logits, labels)
    found = blend(logits[None] / temperature)
    own = found[np.arange(len(labels)), labels]
    return CalibrationData(temperature, own, found.max(1), found.argmax(1) == labels, selected, mirror)


def cross_fit(
    logits: np.ndarray, labels: np.ndarray, coverage: float | None = None, precision: float | None = None
) -> Iterator[tuple[np.ndarray, Calibration]]:
    """Each part of the rows (N,), with what the other parts give, to be judged by; raises what `calibrate` does."""
    part = np.random.default_rng(0).permutation(len(labels)) % PARTS
    for k in range(PARTS):
        yield part == k, calibrate(logits[part != k], labels[part != k], coverage, precision)


def enough_to_cross_fit(n: int) -> bool:
    """Whether what is left of n rows without a part suffices for a calibration."""
    return n - math.ceil(n / PARTS) >= FEWEST


def choose_thresholds(
    fitted: CalibrationData, coverage: float | None = None, precision: float | None = None
) -> Calibration:
    """What a coverage and a precision ask for.

    Raises UserError where the rows are too few for the coverage, or no threshold reaches the precision.
    """
    return Calibration(
        fitted.temperature,
        None if coverage is None else threshold_of_sets(fitted.of_label, coverage),
        None if precision is None else threshold_of_answers(fitted.sure, fitted.right, precision),
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of least log loss (Guo et al. 2017), from 0.05 to 20."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        probabilities = blend(logits[None] / math.exp(log_temperature))
        return -float(np.log(probabilities[np.arange(len(labels)), labels].clip(1e-300)).mean())

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return math.exp(found.x)  # type: ignore[attr-defined]


def threshold_of_sets(of_label: np.ndarray, coverage: float) -> float:
    """The probability from which on labels are in the set, by those (N,) that the true labels had.

    Split conformal prediction with the least ambiguous sets (Sadinle et al. 2019): a new image's label, from the same
    source, is in its set with at least that probability. Raises UserError where the rows are too few to promise it.
    """
    n = len(of_label)
    rank = math.ceil(round((n + 1) * coverage, 9))  # one more than rows, for the new image is one of n + 1
    if rank > n:
        needed = math.ceil(round(coverage / (1 - coverage), 9))
        raise UserError(
            f"--coverage: {coverage:g} needs {needed} held-out images, there are {n}; take a lower coverage"
        )
    return float(np.sort(of_label)[n - rank])


def threshold_of_answers(sure: np.ndarray, right: np.ndarray, precision: float) -> float:
    """The lowest probability from which on answers are right so often, by the lower end of the 95 % interval.

    Given each answer's probability (N,) and whether it is right (N,). Raises UserError where no threshold reaches it.
    """
    order = np.argsort(-sure, kind="stable")
    correct, best = np.cumsum(right[order]), None
    for n in range(1, len(order) + 1):
        if n < len(order) and sure[order[n]] == sure[order[n - 1]]:
            continue  # equal ones count together
        if Count(int(correct[n - 1]), n).interval[0] >= precision:
            best = float(sure[order[n - 1]])
    if best is None:
        highest = max(Count(int(correct[n - 1]), n).interval[0] for n in range(1, len(order) + 1))
        raise UserError(
            f"--min-precision: {precision:g} is not reached by any threshold on {len(right)} held-out images; the "
            f"lower end of the 95 % interval is {highest:.4f} at most, so ask for less, or judge by more labelled "
            "images"
        )
    return best


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: how far how sure answers are is from how often right, in bins of equal size."""
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.array_split(np.argsort(sure, kind="stable"), min(BINS, len(sure)))
    return float(sum(len(rows) * abs(sure[rows].mean() - right[rows].mean()) for rows in bins) / len(sure))


def save_calibration(path: Path, fitted: CalibrationData) -> None:
    """Write it as safetensors; it names no image."""
    metadata = {name: getattr(fitted, name) for name in ("temperature", "selected", "mirror")}
    tensors = {name: getattr(fitted, name) for name in ("of_label", "sure", "right")}
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in metadata.items()})


def load_calibration(path: Path) -> CalibrationData:
    """Read it; raises BrokenError where the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = {key: json.loads(value) for key, value in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in ("of_label", "sure", "right")}
        fitted = CalibrationData(**metadata, **tensors)
        if {array.shape for array in tensors.values()} != {(len(fitted.right),)} or fitted.right.dtype != bool:
            raise ValueError("its rows are no columns")
        probabilities = (fitted.of_label, fitted.sure)
        if not (0 < fitted.temperature < 1000 and all(((p >= 0) & (p <= 1)).all() for p in probabilities)):
            raise ValueError("its numbers are no probabilities")
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenError(f"{path}: cannot be read as a calibration ({error}); fetch it again") from error
    return fitted
