"""Images that are decoded ahead, by threads or processes: the same batches, in order, and none is lost."""

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from creature.data.decode import read
from creature.data.eval_transform import EvalTransform
from creature.device import choose_decoders
from creature.errors import BrokenError
from creature.inference.predictor import Computed, Predictor, predict_batches
from creature.inference.prepare import ImageInput, Pixels
from creature.metrics.blend import Blending

VIEWS = (EvalTransform(32, "squash", (0.5,) * 3), EvalTransform(48, "center", (0.5,) * 3))


def sums(pixels: Pixels) -> Computed:
    """Logits that tell images apart: the sums of their views, one a member."""
    return Computed(np.stack([pixels[view].reshape(len(pixels[view]), -1).sum(1)[:, None] for view in VIEWS]) / 1e6)


PREDICTOR = Predictor("sums", ("one",), ("small", "large"), VIEWS, sums, Blending(np.ones(2)))


def file_inputs(paths: Sequence[Path]) -> list[ImageInput]:
    return [ImageInput(path.name, partial(read, {"bytes": None, "path": str(path)})) for path in paths]


def die(number: signal.Signals) -> bytes:
    os.kill(os.getpid(), number)
    return b""


def rows(images: Sequence[ImageInput], batch_size: int, processes: int) -> list[tuple[Any, ...]]:
    predicted = []
    for batch in predict_batches(PREDICTOR, images, batch_size, processes=processes):
        assert len(batch.ids) == batch_size or len(predicted) + len(batch.ids) == len(images)
        reasons = [batch.broken.get(row, "") for row in range(len(batch.ids))]
        logits = batch.logits[:, :, 0].T.tolist()
        predicted += list(zip(batch.ids, batch.content_hashes, reasons, map(tuple, logits), strict=True))
    return predicted


@pytest.mark.parametrize("batch_size", [1, 5, 16, 40])
def test_processes_prepare_what_threads_do(drawn, tmp_path, batch_size):
    paths = sorted((drawn / "train").rglob("*.jpg"))
    (tmp_path / "broken.jpg").write_bytes(paths[0].read_bytes()[:200])
    images = file_inputs([*paths[:20], tmp_path / "broken.jpg", *paths[20:]])
    by_threads = rows(images, batch_size, 0)
    assert [id_ for id_, *_ in by_threads] == [image.id for image in images]
    assert [reason != "" for _, _, reason, _ in by_threads].index(True) == 20
    assert rows(images, batch_size, 2) == by_threads


def test_a_picture_that_kills_its_process_is_named(drawn):
    images = file_inputs(sorted((drawn / "train").rglob("*.jpg"))[:40])
    images[30] = ImageInput("the fatal one", partial(die, signal.SIGKILL))
    with pytest.raises(BrokenError, match=r"^the fatal one: a process that decodes died; remove or mend it, or leave"):
        rows(images, 8, 2)


def test_images_are_taken_as_they_are_needed():
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield ImageInput("grey", lambda: Image.new("RGB", (8, 8), "grey"))

    batches: Any = predict_batches(PREDICTOR, endless(), 4)
    next(batches)
    assert len(taken) == 8
    batches.close()


def test_processes_decode_for_a_gpu_and_many_images_alone(monkeypatch):
    monkeypatch.setattr("creature.device.process_cores", lambda: 8)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [choose_decoders(gpu, images) for images in (1, 499, 500, None)] == [0, 0, 7, 7]
    assert choose_decoders(cpu, 10**6) == choose_decoders(cpu, None) == 0
