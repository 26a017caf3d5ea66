"""A model as one ONNX file: pixels uint8 in, probabilities out; creature predict FILE.onnx needs no torch.

creature export runs/all/fold-0 model.onnx
creature export hf-hub:USER/NAME model.onnx --quantize photos/

B batch, K classes, S side of the evaluation view.
"""

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from creature.console import say
from creature.errors import UserError, check_installed, first_line
from creature.publishing.quantize import AGREEMENT, CALIBRATION, FASTER, JUDGED, quantize, quiet
from creature.storage import write_atomically

if TYPE_CHECKING:
    import onnx
    import torch

    from creature.inference.members import Member

TOLERANCE = 1e-4  # of a probability


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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

    one_of_all = f"or make one of all: creature ensemble {args.model} --soup --images DIR --labels FILE.csv"
    export_onnx(find_model(args.model, all_members=False, of_several=one_of_all).folders[0], args.out)
    say(f"{args.out} is written ({args.out.stat().st_size / 2**20:.1f} MiB); next: creature predict {args.out} PHOTO")
    if args.quantize:
        quantize(args.out, args.quantize)
    return 0


def export_onnx(folder: Path, out: Path) -> None:
    """Write a folder's model as ONNX with a dynamic batch, its class names and evaluation view in the metadata.

    Raises UserError where the packages are missing, the backbone cannot be exported, or probabilities differ.
    """
    check_installed("export", "ONNX", "onnx", "onnxscript", "onnxruntime")
    import torch

    from creature.inference.members import load_member

    member = load_member(folder, torch.device("cpu"))
    model = _from_uint8(member)
    size = member.transform.size
    noise = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with write_atomically(out) as unfinished:
            _write(model, noise[:2], unfinished)
            _add_metadata(unfinished, folder, member)
            if (difference := _largest_difference(model, noise, unfinished)) > TOLERANCE:
                raise UserError(
                    f"{folder}: the ONNX model's probabilities differ by {difference:.2g}, over {TOLERANCE:g}"
                )
    except (torch.onnx.errors.OnnxExporterError, OSError) as error:
        raise UserError(f"{folder} cannot be exported to {out}: {first_line(error.__cause__ or error)}") from error


def _from_uint8(member: "Member") -> "torch.nn.Module":
    """A module from uint8 (B, 3, S, S) to probabilities (B, K)."""
    import torch
    from torch import nn

    normalize = copy.deepcopy(member.normalize)
    normalize.layout = torch.contiguous_format
    return nn.Sequential(normalize, member.model.to(memory_format=torch.contiguous_format), nn.Softmax(-1)).eval()  # type: ignore[call-overload]


def _write(model: "torch.nn.Module", example: "torch.Tensor", path: Path) -> None:
    import torch

    with quiet():
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
            dynamo=True,
            external_data=False,
        )


def _add_metadata(path: Path, folder: Path, member: "Member") -> None:
    """Put into a file what creature.inference.onnx reads of it, and take out what names this machine."""
    import onnx

    from creature.inference.load import temperature_of
    from creature.inference.onnx import KEY
    from creature.run import most_frequent_class

    metadata = {
        "names": member.class_names,
        "size": member.transform.size,
        "fit": member.transform.crop_mode,
        "mean": member.transform.mean,
        "fallback": most_frequent_class(folder, member.class_names),
        "temperature": temperature_of(folder),
    }
    model = onnx.load(path)
    _remove_source_places(model)
    model.metadata_props.add(key=KEY, value=json.dumps(metadata))
    onnx.save(model, path)


def _remove_source_places(model: "onnx.ModelProto") -> None:
    """Remove the exporter's notes on source files, which have paths of this machine."""
    for graph in (model.graph, *model.functions):
        values = (*getattr(graph, "input", ()), *getattr(graph, "output", ()))  # a function has names there
        for item in (graph, *graph.node, *graph.value_info, *values):
            if hasattr(item, "doc_string"):
                item.doc_string = ""
            if hasattr(item, "metadata_props"):
                del item.metadata_props[:]
    del model.metadata_props[:]


def _largest_difference(model: "torch.nn.Module", noise: "torch.Tensor", path: Path) -> float:
    """Between the probabilities of the file and of the module, for batches of one and of several images."""
    import numpy as np
    import torch

    from creature.inference.onnx import open_session

    with torch.inference_mode():
        expected = model(noise).numpy()
    predictor = open_session(str(path))
    differences = []
    for count in (1, len(noise)):
        log_probabilities = predictor.compute({predictor.transforms[0]: noise[:count].numpy()}).logits[0]
        differences.append(np.abs(np.exp(log_probabilities) - expected[:count]).max())
    return float(max(differences))
