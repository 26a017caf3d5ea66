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
from itertools import chain
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
    options.check_prediction(args, output)

    from creature.device import choose_decoders
    from creature.inference import prediction_files, shards
    from creature.inference.classifier import load
    from creature.inference.prediction import show_predictions, to_predictions
    from creature.inference.predictor import predict_batches, with_mirroring

    if shards.process()[1] > 1 and not output.sharded:
        raise UserError("several processes write shards into one folder: --out DIR/")
    calibration = device = None
    if args.coverage or args.min_precision:
        from creature.ensembling.calibrate import calibration_of
        from creature.metrics.calibration import choose_thresholds

        data = calibration_of(args.model, args.members, args.mirror)
        calibration = choose_thresholds(data, args.coverage, args.min_precision)
    if not args.model.endswith(".onnx"):
        from creature.inference.members import use_whole_machine

        device = use_whole_machine(args.device)
    classifier = load(args.model, device=args.device, members=args.members)
    predictor = classifier.feature_predictor if args.embed else classifier.predictor
    predictor = classifier.overlay_predictor if args.explain else predictor
    predictor = with_mirroring(predictor) if args.mirror else predictor
    sources, columns = prediction_files.find_sources(args.images, output, args.image_column, urls=args.urls)
    top = min(args.top, len(classifier.class_names))

    def predict(chosen: "Sequence[Shard]") -> "Iterator[Prediction]":
        total = None if any(shard.size is None for shard in chosen) else sum(shard.size or 0 for shard in chosen)
        images = chain.from_iterable(shard.images() for shard in chosen)
        processes = choose_decoders(device, total) if device else 0
        batches = predict_batches(
            predictor, images, args.batch_size, title="predicting", total=total, processes=processes
        )
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
    return show_predictions(list(predict(sources)), predictor.title, top, coverage=args.coverage)


if __name__ == "__main__":
    run(main)
