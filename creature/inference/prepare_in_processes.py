"""Images to predict, decoded by processes: threads of one interpreter keep a GPU waiting. B batch, S side of a view."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice, repeat
from typing import NamedTuple

import numpy as np

from creature.data.eval_transform import EvalTransform
from creature.data.fork_server import START_METHOD, fork_server
from creature.data.shared_buffers import SharedBuffers
from creature.data.workers import AHEAD, note_decoding, start_workers
from creature.inference.prepare import ImageFacts, ImageInput, Prepared, PreparedBatch, prepare_image

CHUNK = 16  # images that a process decodes at once


class _Chunk(NamedTuple):
    """A request: images, and the number of the buffer that gets their views."""

    number: int
    images: list[ImageInput]


class _DecodedChunk(NamedTuple):
    """The answer to a request; the pixels are in the buffer."""

    number: int
    ids: list[str]
    facts: list[ImageFacts]


class _Decoder:
    """Makes views of chunks of images in shared buffers; `dataset` names an image by its position, if one kills."""

    def __init__(self, transforms: Sequence[EvalTransform], buffers: SharedBuffers):
        self.transforms, self.buffers, self.dataset = transforms, buffers, _Names()

    def __getitems__(self, chunk: _Chunk) -> _DecodedChunk:
        views, facts = self.views(chunk.number, len(chunk.images)), []
        for row, image in enumerate(chunk.images):
            note_decoding(chunk.number * CHUNK + row)
            facts.append(prepare_image(image, {view: stack[row] for view, stack in views.items()}))
        return _DecodedChunk(chunk.number, [image.id for image in chunk.images], facts)

    def views(self, number: int, count: int) -> dict[EvalTransform, np.ndarray]:
        """Where a chunk's views (count, 3, S, S) lie."""
        buffer, start, views = self.buffers[number % self.buffers.count].numpy(), 0, {}
        for transform in self.transforms:
            shape = (count, 3, transform.size, transform.size)
            views[transform] = buffer[start : start + np.prod(shape)].reshape(shape)
            start += CHUNK * 3 * transform.size**2
        return views


class _Names:
    """The ids of chunks that are being decoded, by the positions of their images."""

    def __init__(self) -> None:
        self.chunks: dict[int, list[str]] = {}

    def __getitem__(self, position: int) -> dict[str, str]:
        return {"id": self.chunks[position // CHUNK][position % CHUNK]}


@contextmanager
def prepare_in_processes(
    images: Iterable[ImageInput], transforms: Sequence[EvalTransform], batch_size: int, *, processes: int
) -> Iterator[Prepared]:
    """Batches of the images, as prepare_in_threads gives them; all are called by one thread, which reads `images`.

    Raises BrokenError within the block, naming the image, when a process dies.
    """
    chunk_bytes = sum(CHUNK * 3 * transform.size**2 for transform in transforms)
    buffers = SharedBuffers(AHEAD * processes + 1, chunk_bytes)
    decoder, remaining = _Decoder(transforms, buffers), iter(images)

    def requests() -> Iterator[_Chunk]:
        number = 0
        while batch := list(islice(remaining, batch_size)):
            for start in range(0, len(batch), CHUNK):
                chunk = _Chunk(number, batch[start : start + CHUNK])
                decoder.dataset.chunks[number] = [image.id for image in chunk.images]
                yield chunk
                number += 1

    with (
        closing(buffers),
        fork_server("creature.inference.prepare_in_processes"),
        start_workers(decoder, processes, method=START_METHOD, way_out="remove or mend it, or leave it out") as load,
    ):
        decoded = load(requests())
        yield repeat(lambda: _next_batch(decoded, decoder, batch_size))


def _next_batch(decoded: Iterator[_DecodedChunk], decoder: _Decoder, batch_size: int) -> PreparedBatch | None:
    """The next batch, copied together from its chunks."""
    ids, facts = [], []
    pixels = {view: np.empty((batch_size, 3, view.size, view.size), np.uint8) for view in decoder.transforms}
    while len(ids) < batch_size and (chunk := next(decoded, None)):
        rows = slice(len(ids), len(ids) + len(chunk.ids))
        for view, stack in decoder.views(chunk.number, len(chunk.ids)).items():
            pixels[view][rows] = stack
        del decoder.dataset.chunks[chunk.number]
        ids += chunk.ids
        facts += chunk.facts
    return PreparedBatch(ids, facts, {view: stack[: len(ids)] for view, stack in pixels.items()}) if ids else None
