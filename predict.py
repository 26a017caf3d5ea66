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
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from creature.console import BROKEN_IMAGES, run, say, show_table, warn
from creature.errors import UserError
from creature.inference import options

if TYPE_CHECKING:
    from creature.inference.inputs import Shard
    from creature.inference.prediction import Prediction
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
    parser.add_argument(
        "--members", action="store_true", help="predict with every member of the run or repository, as an ensemble"
    )
    parser.add_argument("--embed", action="store_true", help="add the features before the classifier to --out")
    parser.add_argument(
        "--explain", type=Path, metavar="DIR", help="draw into DIR what in each image speaks for its label"
    )
    parser.add_argument("--urls", action="store_true", help="fetch images that are given as http(s)://")
    parser.add_argument("--image-column", default="image", metavar="NAME", help="of tables (%(default)s)")
    options.add_promises(parser)
    options.add_options(parser, "full", shards=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, and show or write the predictions."""
    args = parse(argv)
    output = options.check_options(args, args.images)
    check_arguments(args, output)

    from creature.inference import prediction_files, shards
    from creature.inference.classifier import load
    from creature.inference.prediction import to_predictions
    from creature.inference.predictor import predict_batches, with_mirroring

    if shards.process()[1] > 1 and not output.sharded:
        raise UserError("several processes write shards into one folder: --out DIR/")
    calibration = fit_calibration(args, output)
    if not args.model.endswith(".onnx"):
        from creature.inference.members import use_whole_machine

        use_whole_machine(args.device)
    classifier = load(args.model, device=args.device, members=args.members)
    predictor = classifier.feature_predictor if args.embed else classifier.predictor
    predictor = classifier.overlay_predictor if args.explain else predictor
    predictor = with_mirroring(predictor) if args.mirror else predictor
    sources, columns = find_sources(args, output)
    top = min(args.top, len(classifier.class_names))

    def predict(chosen: "Sequence[Shard]") -> "Iterator[Prediction]":
        total = None if any(shard.size is None for shard in chosen) else sum(shard.size or 0 for shard in chosen)
        images = chain.from_iterable(shard.images() for shard in chosen)
        batches = predict_batches(predictor, images, args.batch_size, title="predicting", total=total)
        predictions = to_predictions(batches, predictor, top, calibration=calibration)
        return save_overlays(predictions, args.explain) if args.explain else predictions

    if args.explain:
        from creature.inference.explain import save_overlays

        say(f"{args.explain} gets each image: what speaks for its first label in orange, against it in blue")
    if output.path and output.sharded:
        broken = shards.write_shards(output.path, sources, predict, predictor=predictor, top=top)
        return BROKEN_IMAGES if broken else 0
    if output.path:
        code = prediction_files.write_predictions(
            output,
            columns,
            predict(sources),
            top=top,
            fallback=predictor.fallback,
            features=predictor.features,
            sets=bool(args.coverage),
        )
        model = f"{args.model} --members" if args.members else args.model
        say(f"the predictions are in {output.path}; next: creature predict {model} PHOTO --top 5")
        return code
    return show(list(predict(sources)), predictor.title, top, coverage=args.coverage)


def show(predictions: "Sequence[Prediction]", title: str, top: int, *, coverage: float | None) -> int:
    """Predictions as a table in the terminal; the exit code."""
    heads = ("image", *(f"{k}." for k in range(1, top + 1)), *([f"may be, {coverage:g}"] if coverage else []))
    show_table(f"{title}: labels and probabilities", heads, (cells(prediction, top) for prediction in predictions))
    count = len(predictions)
    say(f"{count} image{'s' * (count != 1)}; next: --out FILE.csv writes them to a file")
    return BROKEN_IMAGES if any(prediction.broken for prediction in predictions) else 0


def check_arguments(args: argparse.Namespace, output: options.OutputOptions) -> None:
    """Raises UserError for arguments that do not go together."""
    if args.embed and not (output.sharded or (output.path and output.path.suffix in (".jsonl", ".parquet"))):
        raise UserError("--embed needs --out FILE.parquet, FILE.jsonl or DIR/")
    if args.explain and (args.members or args.embed or args.mirror):
        raise UserError("--explain shows what one prediction rests on; leave out --members, --embed and --mirror")
    if args.model.endswith(".onnx") and (args.members or args.embed or args.explain):
        raise UserError(
            f"{args.model} is one model without features; --members, --embed and --explain need the trained folder"
        )
    if args.embed and args.members:
        raise UserError("--embed needs one model, and --members are several; leave one of them out")


def find_sources(args: argparse.Namespace, output: options.OutputOptions) -> "tuple[list[Shard], tuple[str, str]]":
    """The images to predict, and a submission's columns, whose images are in the order of its template."""
    from creature.inference import inputs, prediction_files

    if not output.submission:
        return inputs.find_shards(args.images, args.image_column, args.urls), ("", "")
    listed = inputs.list_inputs(args.images, args.urls)
    listed, columns = prediction_files.order_for_submission(listed, output.template)
    return [inputs.Shard("all", len(listed), partial(inputs.read_inputs, listed))], columns


def fit_calibration(args: argparse.Namespace, output: options.OutputOptions) -> "Calibration | None":
    """The calibration that --coverage and --min-precision need, fitted on rows that the model never saw."""
    if not args.coverage and not args.min_precision:
        return None
    if output.sharded or output.submission:
        raise UserError(
            "--coverage and --min-precision are for a full file or the terminal, not for submissions or shards"
        )
    if args.model.endswith(".onnx"):
        raise UserError(f"--coverage and --min-precision need the trained fold, and {args.model} is an ONNX file")

    from creature.ensembling import calibrate
    from creature.inference.load import find_model
    from creature.metrics.calibration import choose_thresholds

    model = find_model(args.model, args.members)
    if len(model.folders) > 1:
        data = calibrate.ensemble_calibration(model.home, model.folders, replace(model.blending, mirror=args.mirror))
    else:
        data = calibrate.member_calibration(model.folders[0])
    if data.mirror != args.mirror:
        raise UserError(
            f"--mirror: calibration was made {'with' if data.mirror else 'without'} it; predict as that did"
        )
    if data.selected:
        warn(
            f"{args.model}: its epoch was chosen on the images that this is fitted on, so it promises a little too much"
        )
    return choose_thresholds(data, args.coverage, args.min_precision)


def cells(prediction: "Prediction", top: int) -> list[str]:
    """A row of the terminal's table."""
    if prediction.broken:
        return [prediction.id, f"not read: {prediction.status}"]
    labels = [f"{label} {probability:.3f}" for label, probability in prediction.top(top)] or ["unsure"]
    label_set = [", ".join(prediction.label_set)] if prediction.label_set else []
    return [prediction.id, *labels, *[""] * (top - len(labels)), *label_set]


if __name__ == "__main__":
    run(main)
