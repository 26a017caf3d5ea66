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
from pathlib import Path
from typing import TYPE_CHECKING

from creature.console import BROKEN_IMAGES, run, say
from creature.errors import UserError
from creature.inference import options

if TYPE_CHECKING:
    from creature.inference.inputs import Shard
    from creature.inference.prediction import Prediction


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
    parser.add_argument("--members", action="store_true", help="predict with every member of the run or repository")
    parser.add_argument("--embed", action="store_true", help="add the features before the classifier to --out")
    parser.add_argument("--explain", type=Path, metavar="DIR", help="draw into DIR what speaks for each image's label")
    parser.add_argument("--urls", action="store_true", help="fetch images that are given as http(s)://")
    parser.add_argument("--image-column", default="image", metavar="NAME", help="of tables (%(default)s)")
    options.add_promises(parser)
    options.add_options(parser, "full", shards=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, and show or write the predictions."""
    args = parse(argv)
    output = options.check_prediction(args)

    from creature.device import choose_decoders
    from creature.inference import prediction_files, shards
    from creature.inference.classifier import load
    from creature.inference.prediction import show_predictions, to_predictions
    from creature.inference.predictor import predict_batches

    if shards.process()[1] > 1 and not output.sharded:
        raise UserError("several processes write shards into one folder: --out DIR/")
    device = None
    if not args.model.endswith(".onnx"):
        from creature.inference.members import use_whole_machine

        device = use_whole_machine(args.device)
    classifier = load(args.model, device=args.device, members=args.members)
    predictor = classifier.choose_predictor(features=args.embed, overlays=args.explain, tta=args.mirror)
    if args.coverage or args.min_precision:
        from creature.ensembling.calibrate import calibration_of

        promised = {"coverage": args.coverage, "min_precision": args.min_precision}
        calibration = calibration_of(args.model, args.members, args.mirror, **promised)
        predictor = replace(predictor, calibrations={args.mirror: calibration})
    sources, columns = prediction_files.find_sources(args.images, output, args.image_column, urls=args.urls)
    top = min(args.top, len(classifier.class_names))

    def predict(chosen: "Sequence[Shard]") -> "Iterator[Prediction]":
        images, total = shards.images_of(chosen)
        decoders = choose_decoders(device, total) if device else 0
        size, title = args.batch_size, "predicting"
        batches = predict_batches(predictor, images, size, total=total, processes=decoders, title=title)
        predictions = to_predictions(batches, predictor, top)
        if args.explain:
            from creature.inference.explain import save_overlays

            return save_overlays(predictions, args.explain)
        return predictions

    if output.path and output.sharded:
        broken = shards.write_shards(output.path, sources, predict, predictor=predictor, top=top)
        return BROKEN_IMAGES if broken else 0
    if output.path:
        rows, sets = predict(sources), bool(args.coverage)
        code = prediction_files.write_predictions(output, columns, rows, predictor=predictor, top=top, sets=sets)
        model = args.model + " --members" * args.members
        say(f"the predictions are in {output.path}; next: creature predict {model} PHOTO --top 5")
        return code
    return show_predictions(list(predict(sources)), predictor, top, coverage=args.coverage)


if __name__ == "__main__":
    run(main)
