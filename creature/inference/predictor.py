"""Predictions of a stream of images, in order: a batch is decoded while the one before it is computed. No torch here.

M members, B batch, K classes, D features, S side of the evaluation view.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from creature.console import progress
from creature.data.decode import BLACK, BadImage, content_hash, decode, upright_rgb
from creature.data.eval_transform import EvalTransform
from creature.errors import BrokenError
from creature.metrics.blend import Blending

Pixels = Mapping[EvalTransform, np.ndarray]  # uint8 (B, 3, S, S) by the view that the members take


@dataclass(frozen=True)
class ImageInput:
    """An image to predict; `read` gives its encoded bytes, or the decoded image, or raises BadImage."""

    id: str
    read: Callable[[], bytes | Image.Image]


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


def with_mirroring(predictor: Predictor) -> Predictor:
    """The predictor with the mean of the logits of an image and of its mirror image; features are of the image."""

    def compute(pixels: Pixels) -> Computed:
        computed = predictor.compute(pixels)
        flipped = {transform: np.ascontiguousarray(view[..., ::-1]) for transform, view in pixels.items()}
        return replace(computed, logits=(computed.logits + predictor.compute(flipped).logits) / 2)

    title, blending = f"{predictor.title}, with mirror images", replace(predictor.blending, mirror=True)
    return replace(predictor, title=title, compute=compute, blending=blending)


@dataclass(frozen=True)
class _PreparedImage:
    content_hash: str
    error: str  # why the image could not be decoded
    views: list[np.ndarray]  # uint8 (3, S, S), one a transform


def _prepare(image: ImageInput, transforms: Sequence[EvalTransform]) -> _PreparedImage:
    """An image's views; black ones, with the reason, where it cannot be decoded."""
    hashed, reason, decoded = "", "", BLACK.image()
    try:
        data = image.read()
        if isinstance(data, Image.Image):
            decoded = upright_rgb(data)
        else:
            hashed = content_hash(data)
            decoded = decode(data)
    except BadImage as error:
        reason = str(error)
    return _PreparedImage(hashed, reason, [transform(decoded) for transform in transforms])


def predict_batches(
    predictor: Predictor, images: Iterable[ImageInput], batch_size: int, *, title: str = "", total: int | None = None
) -> Iterator[LogitsBatch]:
    """The logits of the images, in order; two batches of them are in memory, however many there are.

    An image that cannot be decoded keeps its place in the batch, black, so that it changes no other prediction. A
    progress bar is shown where there is a `title`. Raises BrokenError for logits that are no finite numbers.
    """
    transforms, remaining = predictor.transforms, iter(images)
    with progress(shown=bool(title)) as bar, ThreadPoolExecutor() as pool:
        task = bar.add_task(title, total=total, speed="")

        def begin(batch: Sequence[ImageInput]) -> tuple[Sequence[ImageInput], list[Future[_PreparedImage]]]:
            return batch, [pool.submit(_prepare, image, transforms) for image in batch]

        begun = map(begin, iter(lambda: list(islice(remaining, batch_size)), []))
        ahead = deque(islice(begun, 2))
        while ahead:
            batch, futures = ahead.popleft()
            prepared = [future.result() for future in futures]
            views = zip(*(image.views for image in prepared), strict=True)
            pixels = {transform: np.stack(view) for transform, view in zip(transforms, views, strict=True)}
            computed = predictor.compute(pixels)
            if not np.isfinite(computed.logits).all():
                raise BrokenError(f"{predictor.title}: its logits are no finite numbers; its weights are damaged")
            yield LogitsBatch(
                ids=[image.id for image in batch],
                content_hashes=[image.content_hash for image in prepared],
                broken={row: image.error for row, image in enumerate(prepared) if image.error},  # guard: broken-rows
                logits=computed.logits,
                features=computed.features,
            )
            bar.update(task, advance=len(batch), speed=f"{bar.tasks[task].speed or 0:.0f}")
            ahead += islice(begun, 1)
