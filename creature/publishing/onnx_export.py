"""A model as one ONNX file: pixels uint8 in, probabilities out; creature predict FILE.onnx needs no torch.

creature export runs/all/fold-0 model.onnx
creature export hf-hub:USER/NAME model.onnx --quantize photos/

B batch, K classes, S side of the evaluation view.
"""

import argparse
import copy
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from creature.console import say, show_table
from creature.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from creature.inference.members import Member
    from creature.inference.predictor import Predictor

TOLERANCE = 1e-4
FASTER, AGREEMENT = 1.3, 0.995  # what a quantized model must reach
CALIBRATION, JUDGED = 64, 200  # images; the judged ones are at least so many, and others


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a fold (runs/NAME/fold-0), hf-hub:USER/NAME, or an exported folder")
    parser.add_argument("out", type=Path, metavar="FILE.onnx", help="the file to write")
    parser.add_argument(
        "--quantize",
        metavar="DIR",
        help=f"write FILE.int8.onnx, too, calibrated and judged on this folder of at least {CALIBRATION + JUDGED} "
        f"images, if it is {FASTER} times faster and agrees on {100 * AGREEMENT:.1f} %% of them",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Export, and quantize where that pays."""
    args = parse(argv)
    if args.out.suffix != ".onnx":
        raise UserError(f"the file to write must end in .onnx, got {args.out}")
    from creature.inference.load import find_model

    export_onnx(find_model(args.model, all_members=False).folders[0], args.out)
    say(f"{args.out} is written ({args.out.stat().st_size / 2**20:.1f} MiB); next: creature predict {args.out} PHOTO")
    if args.quantize:
        quantize(args.out, args.quantize)
    return 0


def export_onnx(folder: Path, out: Path) -> None:
    """Write a folder's model as ONNX with a dynamic batch, its class names and evaluation view in the metadata.

    Raises UserError where the packages are missing, the backbone cannot be exported, or probabilities differ.
    """
    _need("onnx", "onnxscript", "onnxruntime")
    import numpy as np
    import onnx
    import torch

    from creature.inference.members import load_member
    from creature.inference.onnx import KEY, open_session
    from creature.run import most_frequent_class

    member = load_member(folder, torch.device("cpu"))
    size = member.transform.size
    served = _serve(member)
    noise = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = out.with_name(f".{out.name}.{os.getpid()}.onnx")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _quiet():
            torch.onnx.export(
                served,
                (noise[:2],),
                part,
                input_names=["pixels"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
                dynamo=True,
                external_data=False,
            )
        said = {"names": member.class_names, "size": size, "fit": member.transform.crop_mode}
        said["mean"] = member.transform.mean
        said["fallback"] = most_frequent_class(folder) if (folder / "result.json").exists() else ""
        model = onnx.load(part)
        _forget_places(model)
        model.metadata_props.add(key=KEY, value=json.dumps(said))
        onnx.save(model, part)
        with torch.inference_mode():
            expected = served(noise).numpy()
        predictor = open_session(str(part))
        for count in (1, 3):
            logits, _ = predictor.compute({member.transform: noise[:count].numpy()})
            if (worst := float(np.abs(np.exp(logits[0]) - expected[:count]).max())) > TOLERANCE:
                raise UserError(f"{folder}: the ONNX model's probabilities differ by {worst:.2g}, over {TOLERANCE:g}")
        os.replace(part, out)
    except (torch.onnx.errors.OnnxExporterError, OSError) as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} cannot be exported to {out}: {reason}") from error
    finally:
        part.unlink(missing_ok=True)


def _serve(member: "Member") -> Any:
    """uint8 (B, 3, S, S) -> probabilities (B, K)."""
    import torch
    from torch import nn

    normalize = copy.deepcopy(member.normalize)
    normalize.layout = torch.contiguous_format
    return nn.Sequential(normalize, member.model.to(memory_format=torch.contiguous_format), nn.Softmax(-1)).eval()  # type: ignore[call-overload]


def _need(*packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise UserError(f"ONNX needs {package}, which is not installed: pip install 'creature[export]'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks about torch's own inner parts are kept from the terminal."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _forget_places(model: Any) -> None:
    """Remove what the exporter notes of source files, with paths of this machine."""
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        for item in (
            graph,
            *graph.node,
            *graph.value_info,
            *getattr(graph, "input", ()),
            *getattr(graph, "output", ()),
        ):
            if hasattr(item, "doc_string"):
                item.doc_string = ""
            if hasattr(item, "metadata_props"):
                del item.metadata_props[:]
    del model.metadata_props[:]


def quantize(path: Path, pictures: str) -> Path | None:
    """Write an int8 model beside `path` if it is faster enough and agrees enough on the images; says so either way.

    Weights and activations are calibrated on the first images (ONNX Runtime's static quantization), speed and
    agreement measured on the others. Raises UserError for too few images.
    """
    _need("onnx", "onnxruntime")
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from creature.inference.inputs import list_inputs, read_inputs
    from creature.inference.onnx import open_session

    inputs = list_inputs([pictures])
    if len(inputs) < CALIBRATION + JUDGED:
        raise UserError(
            f"--quantize: {pictures} has {len(inputs)} images; {CALIBRATION} calibrate and at least {JUDGED} others "
            "judge, or 99.5 % could not be told from 99 %"
        )
    order = np.random.default_rng(0).permutation(len(inputs))
    whole = open_session(str(path))
    seen = list(_see(whole, read_inputs([inputs[at] for at in order])))

    class Reader(CalibrationDataReader):
        """Hands the calibration images over."""

        def __init__(self) -> None:
            self.rest: Iterator[np.ndarray] = iter(seen[:CALIBRATION])

        def get_next(self) -> Any:
            pixels = next(self.rest, None)
            return None if pixels is None else {"pixels": pixels[None]}

    small = path.with_suffix(".int8.onnx")
    part, ready = (path.with_name(f".{path.name}.{step}.{os.getpid()}.onnx") for step in ("int8", "ready"))
    try:
        with _quiet():
            quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
            quantize_static(
                str(ready),
                str(part),
                Reader(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        ratio, agreement = _judge(whole, open_session(str(part)), seen[CALIBRATION:])
        wanted = ratio >= FASTER and agreement >= AGREEMENT
        rows = [
            ("times as fast, one image at once", f"{ratio:.2f}", f"{FASTER}"),
            (f"same label (n = {len(seen) - CALIBRATION})", f"{agreement:.2%}", f"{AGREEMENT:.1%}"),
        ]
        show_table(f"{small.name} against {path.name}", ("", "measured", "asked for"), rows)
        if wanted:
            os.replace(part, small)
        say(f"{small} is written" if wanted else f"{small} is not written: it would not pay on this machine")
        return small if wanted else None
    finally:
        part.unlink(missing_ok=True)
        ready.unlink(missing_ok=True)


def _see(predictor: "Predictor", pictures: Any) -> Iterator["np.ndarray"]:
    from creature.data.decode import BadImage, decode

    view = predictor.transforms[0]
    for picture in pictures:
        try:
            yield view(decode(picture.read()))
        except BadImage as error:
            raise UserError(f"--quantize: {picture.id}: {error}; remove it from the folder") from error


def _judge(whole: "Predictor", small: "Predictor", seen: Sequence["np.ndarray"]) -> tuple[float, float]:
    """Median of the ratios of times, measured side by side, and the share of images that get the same label."""
    transform = whole.transforms[0]

    def timed(compute: Callable[..., Any], pixels: "np.ndarray") -> tuple[float, int]:
        began = time.perf_counter()
        logits, _ = compute({transform: pixels[None]})
        return time.perf_counter() - began, int(logits[0, 0].argmax())

    for each in (whole, small):  # the first answer is slower
        timed(each.compute, seen[0])
    pairs = [(timed(whole.compute, pixels), timed(small.compute, pixels)) for pixels in seen]
    ratio = statistics.median(slow / fast for (slow, _), (fast, _) in pairs)
    return ratio, statistics.fmean(one == other for (_, one), (_, other) in pairs)
