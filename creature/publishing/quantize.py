"""An ONNX model in int8, where it is faster enough and agrees enough. N images, S side of the evaluation view."""

import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from creature.console import say, show_table
from creature.errors import UserError, check_installed

if TYPE_CHECKING:
    import numpy as np

    from creature.inference.predictor import Predictor

FASTER, AGREEMENT = 1.3, 0.995  # what a quantized model must reach
CALIBRATION, JUDGED = 64, 200  # images that calibrate, and at least so many others that judge


@dataclass(frozen=True)
class Judgement:
    """A quantized model beside the one that it was made of, on images that did not calibrate it."""

    speed: float  # times as fast, one image at once
    agreement: float  # share of images with the same label

    @property
    def lacks(self) -> list[str]:
        """What is too little for it to be kept."""
        speed = [f"it is {self.speed:.2f} times as fast, and {FASTER} is asked for"] if self.speed < FASTER else []
        agreement = f"it gives {self.agreement:.2%} of the images the same label, and {AGREEMENT:.1%} is asked for"
        return speed + ([agreement] if self.agreement < AGREEMENT else [])


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, warnings of exporters about their own internals are not shown."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def quantize(path: Path, images: str) -> Path | None:
    """Write an int8 model beside `path` if it is faster enough and agrees enough on the images; says so either way.

    Weights and activations are calibrated on some of the images (ONNX Runtime's static quantization), speed and
    agreement measured on the others. Raises UserError for too few images.
    """
    check_installed("export", "ONNX", "onnx", "onnxruntime")
    from creature.inference.onnx import open_session

    original = open_session(str(path))
    pixels = _read_pixels(original, images)
    calibration, others = pixels[:CALIBRATION], pixels[CALIBRATION:]
    small = path.with_suffix(".int8.onnx")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        unfinished = Path(folder) / small.name
        _write_int8(path, unfinished, calibration)
        judgement = _judge(original, open_session(str(unfinished)), others)
        rows = [
            ("times as fast, one image at once", f"{judgement.speed:.2f}", f"{FASTER}"),
            (f"same label (n = {len(others)})", f"{judgement.agreement:.2%}", f"{AGREEMENT:.1%}"),
        ]
        show_table(f"{small.name} against {path.name}", ("", "measured", "asked for"), rows)
        if not judgement.lacks:
            os.replace(unfinished, small)
    say(f"{small} is not written: {'; '.join(judgement.lacks)}" if judgement.lacks else f"{small} is written")
    return None if judgement.lacks else small


def _read_pixels(predictor: "Predictor", folder: str) -> list["np.ndarray"]:
    """The images of a folder as pixels (3, S, S), shuffled, always in the same order."""
    import numpy as np

    from creature.data.decode import BadImage, decode, read
    from creature.inference.inputs import list_inputs

    inputs = list_inputs([folder])
    if len(inputs) < CALIBRATION + JUDGED:
        raise UserError(
            f"--quantize: {folder} has {len(inputs)} images; {CALIBRATION} calibrate and at least {JUDGED} others "
            "judge, or 99.5 % could not be told from 99 %"
        )
    order = np.random.default_rng(0).permutation(len(inputs))
    pixels = []
    for image in (inputs[row] for row in order):
        try:
            pixels.append(predictor.transforms[0](decode(read({"bytes": None, "path": image.path}))))
        except BadImage as error:
            raise UserError(f"--quantize: {image.id}: {error}; remove it from the folder") from error
    return pixels


def _write_int8(path: Path, out: Path, calibration: Sequence["np.ndarray"]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """Hands the calibration images over."""

        def __init__(self) -> None:
            self.remaining = iter(calibration)

        def get_next(self) -> "dict[str, np.ndarray] | None":  # type: ignore[override]
            pixels = next(self.remaining, None)
            return None if pixels is None else {"pixels": pixels[None]}

    ready = out.with_suffix(".ready.onnx")
    with quiet():
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )


def _judge(original: "Predictor", small: "Predictor", images: Sequence["np.ndarray"]) -> Judgement:
    """Compare two models image by image; the speed is the median of the ratios of their times."""
    transform = original.transforms[0]

    def timed(predictor: "Predictor", pixels: "np.ndarray") -> tuple[float, int]:
        """Seconds, and the class index."""
        began = time.perf_counter()
        logits = predictor.compute({transform: pixels[None]}).logits
        return time.perf_counter() - began, int(logits[0, 0].argmax())

    for predictor in (original, small):  # the first prediction is slower
        timed(predictor, images[0])
    pairs = [(timed(original, pixels), timed(small, pixels)) for pixels in images]
    return Judgement(
        speed=statistics.median(slow / fast for (slow, _), (fast, _) in pairs),
        agreement=statistics.fmean(one == other for (_, one), (_, other) in pairs),
    )
