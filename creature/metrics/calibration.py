"""Calibration of a model's predictions: a temperature, label sets of a stated coverage, labels of a stated precision.

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
from creature.storage import readable_by_umask

MODEL_CALIBRATION = "calibration.safetensors"  # of a published model
ENSEMBLE_CALIBRATION = "ensemble_calibration.safetensors"  # of a published ensemble
BINS = 10
FEWEST = 30  # rows that a calibration is fitted on
MOST = 10_000  # rows that a temperature, which is one number, is fitted on, up to twice
SPLITS = 5  # of the rows, each scored with what the others give


@dataclass(frozen=True)
class CalibrationData:
    """A temperature, and the calibrated probabilities of unseen rows that thresholds are chosen on."""

    temperature: float
    label_probability: np.ndarray  # (N,) of each row's label
    top_probability: np.ndarray  # (N,) of each row's most probable class
    correct: np.ndarray  # (N,) whether that class is the label
    selected: bool = False  # an epoch was chosen on these rows
    mirror: bool = False  # mirror images were predicted, too


@dataclass(frozen=True)
class Calibration:
    """A temperature and thresholds of probability, fitted on held-out rows."""

    temperature: float
    set_threshold: float | None = None  # from which on a label is in the set, where a coverage was asked for
    min_probability: float | None = None  # of a label that is given, where a precision was asked for

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (N, K) of logits (N, K)."""
        return blend(logits[None] / self.temperature)

    def label_sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Whether each label is in the row's set (N, K); the most probable one always is."""
        assert self.set_threshold is not None
        most_probable = np.eye(probabilities.shape[1], dtype=bool)[probabilities.argmax(1)]
        return (probabilities >= self.set_threshold) | most_probable

    def sure(self, probabilities: np.ndarray) -> np.ndarray:
        """Whether each row's label is probable enough to be given (N,)."""
        assert self.min_probability is not None
        return probabilities.max(1) >= self.min_probability


def by_mirror(temperature: float | None, mirror: bool = False) -> dict[bool, Calibration]:
    """Calibrations by whether mirror images are predicted, too: that of a temperature, or none without it."""
    return {mirror: Calibration(temperature)} if temperature else {}


def calibrate(
    logits: np.ndarray, labels: np.ndarray, coverage: float | None = None, *, min_precision: float | None = None
) -> Calibration:
    """Fit on logits (N, K) with their labels (N,); raises what `fit` and `choose_thresholds` do."""
    return choose_thresholds(fit(logits, labels), coverage, min_precision)


def fit(logits: np.ndarray, labels: np.ndarray, selected: bool = False, *, mirror: bool = False) -> CalibrationData:
    """The temperature for logits (N, K) with labels (N,), and the probabilities that thresholds are chosen on.

    Raises UserError for too few rows.
    """
    if len(labels) < FEWEST:
        raise UserError(f"calibration needs {FEWEST} held-out images or more, there are {len(labels)}")
    temperature = fit_temperature(logits, labels)
    probabilities = blend(logits[None] / temperature)
    return CalibrationData(
        temperature=temperature,
        label_probability=probabilities[np.arange(len(labels)), labels],
        top_probability=probabilities.max(1),
        correct=probabilities.argmax(1) == labels,
        selected=selected,
        mirror=mirror,
    )


def cross_fit(
    logits: np.ndarray, labels: np.ndarray, coverage: float | None = None, *, min_precision: float | None = None
) -> Iterator[tuple[np.ndarray, Calibration]]:
    """For each split, its rows as a mask (N,) and the calibration by all other rows; raises what `calibrate` does."""
    split = np.random.default_rng(0).permutation(len(labels)) % SPLITS
    for k in range(SPLITS):
        yield split == k, calibrate(logits[split != k], labels[split != k], coverage, min_precision=min_precision)


def enough_to_cross_fit(n: int) -> bool:
    """Whether n rows without one split are enough for a calibration."""
    return n - math.ceil(n / SPLITS) >= FEWEST


def choose_thresholds(
    data: CalibrationData, coverage: float | None = None, min_precision: float | None = None
) -> Calibration:
    """The calibration that gives a coverage and a precision.

    Raises UserError where the rows are too few for the coverage, or no threshold reaches the precision.
    """
    return Calibration(
        data.temperature,
        None if coverage is None else coverage_threshold(data.label_probability, coverage),
        None if min_precision is None else precision_threshold(data.top_probability, data.correct, min_precision),
    )


def find_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The temperature for logits (N, K) with labels (N,), or None where these are too few."""
    return fit_temperature(logits, labels) if len(labels) >= FEWEST else None


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of least log loss (Guo et al. 2017), from 0.05 to 20; of many rows, on an even part of them."""
    from scipy.optimize import minimize_scalar

    step = max(1, len(labels) // MOST)
    logits, labels = logits[::step], labels[::step]

    def loss(log_temperature: float) -> float:
        probabilities = blend(logits[None] / math.exp(log_temperature))
        return -float(np.log(probabilities[np.arange(len(labels)), labels].clip(1e-300)).mean())

    minimum = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return math.exp(minimum.x)  # type: ignore[attr-defined]


def coverage_threshold(label_probability: np.ndarray, coverage: float) -> float:
    """The probability from which on a label is in the set, given the probabilities (N,) of the true labels.

    Split conformal prediction with the least ambiguous sets (Sadinle et al. 2019): the label of a new image from the
    same source is in its set with at least that probability. Raises UserError where the rows are too few for it.
    """
    n = len(label_probability)
    rank = math.ceil(round((n + 1) * coverage, 9))  # one more than rows, for the new image is one of n + 1
    if rank > n:
        needed = math.ceil(round(coverage / (1 - coverage), 9))
        raise UserError(
            f"--coverage: {coverage:g} needs {needed} held-out images, there are {n}; take a lower coverage"
        )
    return float(np.sort(label_probability)[n - rank])


def precision_threshold(top_probability: np.ndarray, correct: np.ndarray, min_precision: float) -> float:
    """The lowest probability from which on labels are correct so often, by the lower end of the 95 % interval.

    Given the probability (N,) of each row's most probable class and whether it is the label (N,). Raises UserError
    where no threshold reaches the precision.
    """
    order = np.argsort(-top_probability, kind="stable")
    descending, n_correct = top_probability[order], np.cumsum(correct[order])
    lower_ends = [Count(int(right), n).interval[0] for n, right in enumerate(n_correct, 1)]
    last_of_equals = np.append(descending[1:] != descending[:-1], True)  # equal ones count together
    reached = np.flatnonzero(last_of_equals & (np.array(lower_ends) >= min_precision))
    if not len(reached):
        raise UserError(
            f"--min-precision: {min_precision:g} is not reached by any threshold on {len(correct)} held-out images; "
            f"the lower end of the 95 % interval is {max(lower_ends):.4f} at most, so ask for less, or fit on more "
            "labelled images"
        )
    return float(descending[reached[-1]])


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: the mean difference of probability and accuracy, in bins of equally many rows."""
    top_probability, correct = probabilities.max(1), probabilities.argmax(1) == labels
    n = len(labels)
    bins = np.array_split(np.argsort(top_probability, kind="stable"), min(BINS, n))
    return float(sum(len(rows) * abs(top_probability[rows].mean() - correct[rows].mean()) for rows in bins) / n)


def save_calibration(path: Path, data: CalibrationData) -> None:
    """Write it as safetensors; it names no image."""
    metadata = {name: getattr(data, name) for name in ("temperature", "selected", "mirror")}
    tensors = {"of_label": data.label_probability, "sure": data.top_probability, "right": data.correct}
    with readable_by_umask(path):
        save_file(tensors, path, metadata={key: json.dumps(value) for key, value in metadata.items()})


def load_calibration(path: Path) -> CalibrationData:
    """Read it; raises BrokenError where the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = {key: json.loads(value) for key, value in file.metadata().items()}
            tensors = [file.get_tensor(name) for name in ("of_label", "sure", "right")]
        label_probability, top_probability, correct = tensors
        if {tensor.shape for tensor in tensors} != {(len(correct),)} or correct.dtype != bool:
            raise ValueError("its rows are no columns")
        probabilities = (label_probability, top_probability)
        if not (0 < metadata["temperature"] < 1000 and all(((p >= 0) & (p <= 1)).all() for p in probabilities)):
            raise ValueError("its numbers are no probabilities")
        return CalibrationData(
            label_probability=label_probability, top_probability=top_probability, correct=correct, **metadata
        )
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenError(f"{path}: cannot be read as a calibration ({error}); fetch it again") from error
