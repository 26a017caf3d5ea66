"""Asking a predictor about images, in order, a batch being decoded while the last is computed. No torch here.

M members, B batch, K classes, D features, S side of the evaluation view.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from creature.console import progress
from creature.data.decode import BLACK, BadImage, content_hash, decode
from creature.data.eval_transform import EvalTransform
from creature.errors import UserError


class ImageInput(NamedTuple):
    """An image to ask about; `read` gives its encoded bytes, or raises BadImage."""

    id: str
    read: Callable[[], bytes]


class LogitsBatch(NamedTuple):
    """What all members say to a batch of images; `broken`: why, by position, where none could see."""

    ids: Sequence[str]
    hashes: list[str]  # of the content, empty where there was none
    broken: dict[int, str]
    logits: np.ndarray  # (M, B, K)
    features: np.ndarray | None = None  # (B, D)


@dataclass(frozen=True)
class Predictor:
    """Models that answer together: `compute` takes the pixels uint8 (B, 3, S, S) of each view."""

    title: str
    class_names: tuple[str, ...]
    members: tuple[str, ...]
    transforms: tuple[EvalTransform, ...]
    compute: Callable[[Mapping[EvalTransform, np.ndarray]], tuple[np.ndarray, np.ndarray | None]]
    weights: np.ndarray
    strategy: str
    features: int | None = None  # how many `compute` gives; None where it was not asked for any
    fallback: str = ""  # what a submission says of an image that cannot be read
    files: tuple[Path, ...] = ()  # of the weights
    mirror: bool = False  # whether mirror images are asked about, too


def with_mirroring(predictor: Predictor) -> Predictor:
    """The predictor with the mean of the logits of an image and of its mirror image; features are of the image."""

    def compute(pixels: Mapping[EvalTransform, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        logits, features = predictor.compute(pixels)
        others, _ = predictor.compute(
            {transform: np.ascontiguousarray(view[..., ::-1]) for transform, view in pixels.items()}
        )
        return (logits + others) / 2, features

    return replace(predictor, title=f"{predictor.title}, with mirror images", compute=compute, mirror=True)


def predict_batches(
    predictor: Predictor, pictures: Iterable[ImageInput], batch_size: int, title: str, total: int | None = None
) -> Iterator[LogitsBatch]:
    """Answers to the images, in order; two batches of them are in memory, however many there are.

    An image that cannot be decoded keeps its place in the batch, black, so that it changes no other answer. Raises
    UserError for answers that are no finite numbers.
    """

    transforms = predictor.transforms

    def prepare(picture: ImageInput) -> tuple[str, str, list[np.ndarray]]:
        data, reason, image = b"", "", BLACK.image()
        try:
            data = picture.read()
            image = decode(data)
        except BadImage as error:
            reason = str(error)
        return content_hash(data) if data else "", reason, [transform(image) for transform in transforms]

    with progress() as bar, ThreadPoolExecutor() as pool:
        task = bar.add_task(title, total=total, speed="")

        def begin(batch: Sequence[ImageInput]) -> tuple[Sequence[ImageInput], list[Future[Any]]]:
            return batch, [pool.submit(prepare, picture) for picture in batch]

        coming = iter(pictures)
        begun = map(begin, iter(lambda: list(islice(coming, batch_size)), []))
        ahead = list(islice(begun, 2))
        while ahead:
            batch, prepared = ahead.pop(0)
            hashes, reasons, seen = zip(*(future.result() for future in prepared), strict=True)
            pixels = {t: np.stack(views) for t, views in zip(transforms, zip(*seen, strict=True), strict=True)}
            logits, features = predictor.compute(pixels)
            if not np.isfinite(logits).all():
                raise UserError(f"{predictor.title}: its answers are no finite numbers; its weights are damaged")
            broken = {at: reason for at, reason in enumerate(reasons) if reason}
            yield LogitsBatch([picture.id for picture in batch], list(hashes), broken, logits, features)
            bar.update(task, advance=len(batch), speed=f"{bar.tasks[task].speed or 0:.0f}")
            ahead += islice(begun, 1)
