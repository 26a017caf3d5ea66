"""Images to predict as pixels, in batches prepared ahead. No torch here, so that a model without it sees the same ones.

B batch, S side of the evaluation view.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image

from creature.data.decode import BLACK, BadImage, content_hash, decode, upright_rgb
from creature.data.eval_transform import EvalTransform

Pixels = Mapping[EvalTransform, np.ndarray]  # uint8 (B, 3, S, S) by the view that the members take


@dataclass(frozen=True)
class ImageInput:
    """An image to predict; `read` gives its encoded bytes, or the decoded image, or raises BadImage."""

    id: str
    read: Callable[[], bytes | Image.Image]


class ImageFacts(NamedTuple):
    """What is known of an image once it was decoded."""

    content_hash: str  # empty where it could not be read, or came decoded
    error: str  # why it could not be decoded


@dataclass(frozen=True)
class PreparedBatch:
    """Images as their views; an image that cannot be decoded keeps its place, black."""

    ids: Sequence[str]
    facts: Sequence[ImageFacts]
    pixels: Pixels


Prepared = Iterator[Callable[[], PreparedBatch | None]]  # batches in order, each when it is called; None: there is none


def prepare_image(image: ImageInput, places: Mapping[EvalTransform, np.ndarray]) -> ImageFacts:
    """Write an image's views (3, S, S) to their places; black ones where it cannot be decoded."""
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
    for transform, place in places.items():
        place[:] = transform(decoded)
    return ImageFacts(hashed, reason)


@contextmanager
def prepare_in_threads(
    images: Iterable[ImageInput], transforms: Sequence[EvalTransform], batch_size: int
) -> Iterator[Prepared]:
    """Batches of the images, which threads begin to prepare when the iterator moves on to them."""
    remaining = iter(images)
    with ThreadPoolExecutor() as pool:

        def begin(batch: Sequence[ImageInput]) -> Callable[[], PreparedBatch]:
            pixels = {view: np.empty((len(batch), 3, view.size, view.size), np.uint8) for view in transforms}
            futures = [
                pool.submit(prepare_image, image, {view: stack[row] for view, stack in pixels.items()})
                for row, image in enumerate(batch)
            ]
            ids = [image.id for image in batch]
            return lambda: PreparedBatch(ids, [future.result() for future in futures], pixels)

        yield map(begin, iter(lambda: list(islice(remaining, batch_size)), []))
