"""Predict images with a trained fold, a published model, or all members of an ensemble.

creature predict runs/all/fold-0 photo.jpg more/ --top 5
creature predict hf-hub:USER/NAME photos/ --out predictions.csv
creature predict model.onnx 'photos/**/*.jpg' --out predictions.parquet
accelerate launch -m creature predict runs/all --members archive.parquet --out parts/

`python predict.py` is the same, in a checkout.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from creature.console import BROKEN_IMAGES, run
from creature.errors import UserError
from creature.inference import options

if TYPE_CHECKING:
    from creature.inference.inputs import Shard
    from creature.inference.prediction_files import Prediction
    from creature.metrics.calibration import Calibration


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a fold (runs/NAME/fold-0), hf-hub:USER/NAME, an exported folder, or FILE.onnx")
    parser.add_argument(
        "images",
        nargs="+",
        help="images, folders, patterns, - for a list on the standard input, .parquet files, hub:USER/DATASET:SPLIT",
    )
    parser.add_argument("--members", action="store_true", help="ask every member of the run or repository, as ensemble")
    parser.add_argument("--embed", action="store_true", help="add the features before the classifier to --out")
    parser.add_argument(
        "--explain", type=Path, metavar="DIR", help="draw into DIR what in each image speaks for its label"
    )
    parser.add_argument("--urls", action="store_true", help="fetch images that are given as http(s)://")
    parser.add_argument("--image-column", default="image", metavar="NAME", help="of tables (%(default)s)")
    options.add_promises(parser)
    options.add_options(parser, "full", parts=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, and show or write the answers."""
    args = parse(argv)
    options.check_options(args, args.images)
    if args.embed and not (args.parts or (args.out and args.out.suffix in (".jsonl", ".parquet"))):
        raise UserError("--embed needs --out FILE.parquet, FILE.jsonl or DIR/")
    if args.explain and (args.members or args.embed or args.mirror):
        raise UserError("--explain shows what one answer rests on; leave out --members, --embed and --mirror")

    from creature.console import say, show_table
    from creature.inference import inputs, overlays, prediction_files, shards
    from creature.inference.load import load_predictor
    from creature.inference.predictor import predict_batches, with_mirroring

    if shards.process()[1] > 1 and not args.parts:
        raise UserError("several processes write parts into one folder: --out DIR/")
    calibration = promise(args)
    predictor = load_predictor(args.model, args.members, args.device, args.embed, bool(args.explain))
    predictor = with_mirroring(predictor) if args.mirror else predictor
    columns = ("", "")
    if args.format == "submission":
        listed, columns = options.arrange(args, inputs.list_inputs(args.images, args.urls))
        pieces = [inputs.Shard("all", len(listed), partial(inputs.read_inputs, listed))]
    else:
        pieces = inputs.find_shards(args.images, args.image_column, args.urls)
    top = min(args.top, len(predictor.class_names))

    def answered(some: "Sequence[Shard]") -> "Iterator[Prediction]":
        total = None if any(piece.size is None for piece in some) else sum(piece.size or 0 for piece in some)
        pictures = chain.from_iterable(piece.pictures() for piece in some)
        asked = predict_batches(predictor, pictures, args.batch_size, "predicting", total)
        rows = prediction_files.to_predictions(asked, predictor, top, calibration)
        return overlays.save(rows, args.explain) if args.explain else rows

    if args.explain:
        say(f"{args.explain} gets each image: what speaks for its first label in orange, against it in blue")

    if args.parts:
        broken = shards.write_shards(args.out, pieces, answered, predictor, top)
        return BROKEN_IMAGES if broken else 0
    if args.out:
        code = options.write(
            args, columns, answered(pieces), top, predictor.fallback, predictor.features, bool(args.coverage)
        )
        words = f"{args.model} --members" if args.members else args.model
        say(f"the predictions are in {args.out}; next: creature predict {words} PHOTO --top 5")
        return code
    rows = list(answered(pieces))
    heads = ("image", *(f"{k}." for k in range(1, top + 1)), *([f"may be, {args.coverage:g}"] if args.coverage else []))
    show_table(f"{predictor.title}: labels and probabilities", heads, (cells(row, top) for row in rows))
    say(f"{len(rows)} image{'s' * (len(rows) != 1)}; next: --out FILE.csv writes them to a file")
    return BROKEN_IMAGES if any(row.broken for row in rows) else 0


def promise(args: argparse.Namespace) -> "Calibration | None":
    """What --coverage and --min-precision ask for, fitted on rows that the model never saw."""
    if not args.coverage and not args.min_precision:
        return None
    if args.parts or args.format == "submission":
        raise UserError(
            "--coverage and --min-precision are for a full file or the terminal, not for submissions or parts"
        )
    if args.model.endswith(".onnx"):
        raise UserError(f"--coverage and --min-precision need the trained fold, and {args.model} is an ONNX file")

    from creature.console import warn
    from creature.ensembling import calibrate
    from creature.inference.load import find_model
    from creature.metrics import calibration

    found = find_model(args.model, args.members)
    if len(found.folders) > 1:
        words = (found.folders, found.weights, found.strategy, args.mirror)
        fitted = calibrate.ensemble_calibration(found.home, *words)
    else:
        fitted = calibrate.member_calibration(found.folders[0])
    if fitted.mirror != args.mirror:
        raise UserError(f"--mirror: calibration was made {'with' if fitted.mirror else 'without'} it; ask as that did")
    if fitted.selected:
        warn(
            f"{args.model}: its epoch was chosen on the images that this is fitted on, so it promises a little too much"
        )
    return calibration.choose_thresholds(fitted, args.coverage, args.min_precision)


def cells(row: "Prediction", top: int) -> list[str]:
    """A row of the terminal's table."""
    if row.broken:
        return [row.id, f"not read: {row.status}"]
    answers = [f"{label} {p:.3f}" for label, p in zip(row.labels, row.probabilities, strict=True)] or ["unsure"]
    return [row.id, *answers, *[""] * (top - len(answers)), *([", ".join(row.set)] if row.set else [])]


if __name__ == "__main__":
    run(main)
