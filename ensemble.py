"""Combine trained folds: their out-of-fold score, and one prediction for each image.

creature ensemble runs/all --images data/test --out prediction.csv
creature ensemble runs/all --images data/test --labels labels.csv --compare
creature ensemble runs/all runs/other --strategy softmax --weights 2 1 --images data/test --out prediction.csv
creature ensemble runs/all --soup --images data/test --labels labels.csv
creature ensemble runs/all --distill recipes/student.yaml      # of a run with images.holdout

`python ensemble.py` is the same, in a checkout.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from creature.console import run, say
from creature.errors import UserError
from creature.inference import options


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("members", nargs="+", help="run folders (all their folds) and fold folders")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="images, and folders of images, to predict")
    parser.add_argument(
        "--labels", metavar="FILE.csv", help="labels (image_name,label) of --images, to score the ensemble"
    )
    parser.add_argument("--strategy", choices=("logits", "softmax", "vote"), default="logits", help="(%(default)s)")
    parser.add_argument(
        "--weights",
        nargs="*",
        type=float,
        metavar="W",
        help="one weight for each of the given members; without numbers, chosen for runs on out-of-fold predictions",
    )
    parser.add_argument("--compare", action="store_true", help="score every strategy and member beside each other")
    parser.add_argument(
        "--soup",
        nargs="?",
        const="greedy",
        choices=("greedy", "uniform"),
        help="make RUN/soup, one model with the mean of the members' weights, and score it beside them (%(const)s)",
    )
    parser.add_argument(
        "--distill",
        metavar="RECIPE",
        help="train RUN/student, one model that learns what the members predict of images that they never saw",
    )
    options.add_options(parser, "submission")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Score the members on what they never saw, and predict with all of them."""
    args = parse(argv)
    output = options.check_options(args, [*(args.images or []), args.labels])
    if output.sharded:
        raise UserError(
            f"--out: writes one file, such as predictions.csv, got the folder {output.path}; shards are written by "
            "creature predict RUN PHOTOS --members --out DIR/"
        )
    if (args.out or args.labels) and not args.images:
        raise UserError("--out and --labels need --images FOLDER")
    if args.images and not (args.out or args.labels or args.compare):
        raise UserError("--images needs --out FILE.csv for predictions, or --labels FILE.csv for a score")

    from creature.ensembling.distill import student_recipe
    from creature.ensembling.new_images import predict, show_and_keep
    from creature.ensembling.one_model import make_one
    from creature.ensembling.out_of_fold import show_out_of_fold
    from creature.ensembling.weights import weigh_runs
    from creature.member_folds import check_members, is_whole_run, weigh_members
    from creature.metrics.blend import Blending

    members, weights = weigh_members(args.members, args.weights or None)
    check_members(members)
    run, one_model = members[0].run, args.soup or args.distill
    if one_model and (len(args.members) > 1 or not is_whole_run(members) or args.weights is not None):
        raise UserError(
            "--soup and --distill are of all finished folds of one run, which count the same: "
            "creature ensemble RUN --soup"
        )
    if one_model and len(members) < 2:
        raise UserError(f"--soup and --distill make one model of several, and {run} has one finished fold")
    student = student_recipe(args.distill, run) if args.distill else None
    show_out_of_fold(members, args.strategy)
    if args.weights == []:
        weights = weigh_runs(members, args.strategy)
    blending = Blending(weights, args.strategy, args.mirror)
    tables, code = predict(args, output, members, blending=blending)
    show_and_keep(args, members, blending, tables=tables)
    if one_model:
        make_one(args, student, members, tables=tables)
    if output.path:
        rows = len(tables["images"].recorded.ids)
        say(f"{rows} rows are in {output.path}; next: hand it in, or creature predict {members[0]} PHOTO --top 5")
    elif not one_model:
        where, scored = " ".join(args.members), f"{len(members)} member{'s' * (len(members) != 1)} scored"
        say(f"{scored}; next: creature ensemble {where} --images DIR --out FILE.csv")
    return code


if __name__ == "__main__":
    run(main)
