"""Asking a predictor about pictures, in order, a batch being decoded while the last is computed. No torch here.

M members, B batch, K classes, D features, S side of the evaluation view.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from creature.images.decode import BadImage, content_hash, decode
from creature.images.evaluation import evaluation_view
from creature.terminal import UserError, progress

Sees = tuple[int, str, tuple[float, ...]]  # size, fit, mean: what makes an evaluation view


class Picture(NamedTuple):
    """A picture to ask about; `read` gives its encoded bytes, or raises BadImage."""

    id: str
    read: Callable[[], bytes]


class Answers(NamedTuple):
    """What all members say to a batch of pictures; `broken`: why, by position, where none could see."""

    ids: Sequence[str]
    hashes: list[str]  # of the content, empty where there was none
    broken: dict[int, str]
    logits: np.ndarray  # (M, B, K)
    features: np.ndarray | None = None  # (B, D)


@dataclass(frozen=True)
class Predictor:
    """Models that answer together: `compute` takes the pixels uint8 (B, 3, S, S) of each view."""

    title: str
    names: tuple[str, ...]
    members: tuple[str, ...]
    views: tuple[Sees, ...]
    compute: Callable[[Mapping[Sees, np.ndarray]], tuple[np.ndarray, np.ndarray | None]]
    weights: np.ndarray
    strategy: str
    features: int | None = None  # how many `compute` gives; None where it was not asked for any
    fallback: str = ""  # what a submission says of a picture that cannot be read
    files: tuple[Path, ...] = ()  # of the weights
    at_once: int = 1  # threads that may call `compute` at the same time


def ask(
    predictor: Predictor, pictures: Iterable[Picture], batch_size: int, title: str, total: int | None = None
) -> Iterator[Answers]:
    """Answers to the pictures, in order; two batches of them are in memory, however many there are.

    A batch is parted among the threads that compute at once; each part is decoded while those before are computed.
    A picture that cannot be decoded keeps its place in the batch, black, so that it changes no other answer. Raises
    UserError for answers that are no finite numbers.
    """
    views = {sees: evaluation_view(*sees) for sees in predictor.views}

    def prepare(picture: Picture) -> tuple[str, str, list[np.ndarray]]:
        data, reason, pixels = b"", "", np.zeros((1, 1, 3), dtype=np.uint8)
        try:
            data = picture.read()
            pixels = decode(data)
        except BadImage as error:
            reason = str(error)
        return content_hash(data) if data else "", reason, [view(Image.fromarray(pixels)) for view in views.values()]

    def answer(batch: Sequence[Picture], prepared: Sequence[Future[tuple[str, str, list[np.ndarray]]]]) -> Answers:
        hashes, reasons, seen = zip(*(future.result() for future in prepared), strict=True)
        pixels = {sees: np.stack(of_view) for sees, of_view in zip(views, zip(*seen, strict=True), strict=True)}
        logits, features = predictor.compute(pixels)
        if not np.isfinite(logits).all():
            raise UserError(f"{predictor.title}: its answers are no finite numbers; its weights are damaged")
        broken = {at: reason for at, reason in enumerate(reasons) if reason}
        return Answers([picture.id for picture in batch], list(hashes), broken, logits, features)

    part = -(-batch_size // predictor.at_once)
    with progress() as bar, ThreadPoolExecutor() as decoding, ThreadPoolExecutor(predictor.at_once) as computing:
        task = bar.add_task(title, total=total, speed="")

        def begin(batch: Sequence[Picture]) -> Future[Answers]:
            return computing.submit(answer, batch, [decoding.submit(prepare, picture) for picture in batch])

        coming = iter(pictures)
        begun = map(begin, iter(lambda: list(islice(coming, part)), []))
        ahead = list(islice(begun, 2 * predictor.at_once))
        while ahead:
            answers = ahead.pop(0).result()
            yield answers
            bar.update(task, advance=len(answers.ids), speed=f"{bar.tasks[task].speed or 0:.0f}")
            ahead += islice(begun, 1)
