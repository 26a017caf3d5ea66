"""Predictions of a stream of images, in order: decoded ahead, computed by a thread. No torch here.

M members, B batch, K classes, D features.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from creature.console import progress
from creature.data.eval_transform import EvalTransform
from creature.errors import BrokenError
from creature.inference.prepare import ImageInput, Pixels, Prepared, PreparedBatch, prepare_in_threads
from creature.metrics.blend import Blending, blend, log_probabilities

if TYPE_CHECKING:
    from creature.metrics.calibration import Calibration

AHEAD = 2  # batches that are being prepared and computed while the results of the one before them are used


@dataclass(frozen=True)
class Computed:
    """The members' output for a batch."""

    logits: np.ndarray  # (M, B, K)
    features: np.ndarray | None = None  # (B, D)


@dataclass(frozen=True)
class LogitsBatch:
    """The logits of all members for a batch of images."""

    ids: Sequence[str]
    content_hashes: Sequence[str]  # empty where an image could not be read
    broken: Mapping[int, str]  # row -> why its image could not be decoded
    logits: np.ndarray  # (M, B, K)
    features: np.ndarray | None = None  # (B, D)


@dataclass(frozen=True)
class Predictor:
    """Models that predict together; `compute` takes the pixels of each view."""

    title: str
    class_names: tuple[str, ...]
    members: tuple[str, ...]
    transforms: tuple[EvalTransform, ...]
    compute: Callable[[Pixels], Computed]
    blending: Blending
    features: int | None = None  # D; None where features were not asked for
    fallback: str = ""  # the class that a submission gives an image that cannot be read
    files: tuple[Path, ...] = ()  # of the weights
    calibrations: Mapping[bool, "Calibration"] = field(default_factory=dict)  # by whether mirror images are predicted

    @property
    def calibration(self) -> "Calibration | None":
        """That of the blended members, where there is one."""
        return self.calibrations.get(self.blending.mirror)

    @property
    def calibrated(self) -> str:
        """Whether its probabilities are calibrated, in words to show beside them."""
        return "calibrated" if self.calibration else "not calibrated"

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """The probabilities (B, K) of the members' logits (M, B, K): blended, and calibrated as far as it can be."""
        blended = blend(logits, self.blending.strategy, self.blending.weights)
        return self.calibration.probabilities(log_probabilities(blended)) if self.calibration else blended


def with_mirroring(predictor: Predictor) -> Predictor:
    """The predictor with the mean of the logits of an image and of its mirror image; features are of the image."""

    def compute(pixels: Pixels) -> Computed:
        computed = predictor.compute(pixels)
        flipped = {transform: np.ascontiguousarray(view[..., ::-1]) for transform, view in pixels.items()}
        return replace(computed, logits=(computed.logits + predictor.compute(flipped).logits) / 2)

    title, blending = f"{predictor.title}, with mirror images", replace(predictor.blending, mirror=True)
    return replace(predictor, title=title, compute=compute, blending=blending)


def predict_batches(
    predictor: Predictor,
    images: Iterable[ImageInput],
    batch_size: int,
    *,
    title: str = "",
    total: int | None = None,
    processes: int = 0,
) -> Iterator[LogitsBatch]:
    """The logits of the images, in order; few batches of them are in memory, however many there are.

    Images are decoded ahead by threads or, for a device that is faster than one interpreter's threads, by so many
    `processes`; a thread computes. An image that cannot be decoded keeps its place in the batch, black, so that it
    changes no other prediction. A progress bar is shown where there is a `title`. Raises BrokenError for logits that
    are no finite numbers.
    """
    with (
        progress(shown=bool(title)) as bar,
        _prepare(images, predictor.transforms, batch_size, processes=processes) as prepared,
        ThreadPoolExecutor(1) as computing,
    ):
        task = bar.add_task(title, total=total, speed="")
        computed = (computing.submit(_compute, predictor, batch) for batch in prepared)
        ahead = deque(islice(computed, AHEAD))
        try:
            while ahead and (batch := ahead.popleft().result()):
                yield batch
                bar.update(task, advance=len(batch.ids), speed=f"{bar.tasks[task].speed or 0:.0f}")
                ahead += islice(computed, 1)
        finally:
            computing.shutdown(cancel_futures=True)


def _prepare(
    images: Iterable[ImageInput], transforms: Sequence[EvalTransform], batch_size: int, *, processes: int
) -> AbstractContextManager[Prepared]:
    if not processes:
        return prepare_in_threads(images, transforms, batch_size)
    from creature.inference.prepare_in_processes import prepare_in_processes  # which needs torch

    return prepare_in_processes(images, transforms, batch_size, processes=processes)


def _compute(predictor: Predictor, prepare: Callable[[], PreparedBatch | None]) -> LogitsBatch | None:
    """The logits of a batch once it is prepared; None behind the last one."""
    if (batch := prepare()) is None:
        return None
    computed = predictor.compute(batch.pixels)
    if not np.isfinite(computed.logits).all():
        raise BrokenError(f"{predictor.title}: its logits are no finite numbers; its weights are damaged")
    return LogitsBatch(
        ids=batch.ids,
        content_hashes=[image.content_hash for image in batch.facts],
        broken={row: image.error for row, image in enumerate(batch.facts) if image.error},  # guard: broken-rows
        logits=computed.logits,
        features=computed.features,
    )
