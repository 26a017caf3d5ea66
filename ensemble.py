"""Combine trained folds: their out-of-fold score, and one prediction for each picture.

python ensemble.py runs/all --images data/test --out prediction.csv
python ensemble.py runs/all runs/other --strategy softmax --weights 2 1 --images data/test --labels labels.csv
"""

import argparse
from collections import deque
from collections.abc import Sequence

from creature.judging import output
from creature.terminal import UserError, run


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("members", nargs="+", help="run folders (all their folds) and fold folders")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="pictures, and folders of pictures, to predict")
    parser.add_argument(
        "--labels", metavar="FILE.csv", help="labels (image_name,label) of --images, to score the ensemble"
    )
    parser.add_argument("--strategy", choices=("logits", "softmax", "vote"), default="logits", help="(%(default)s)")
    parser.add_argument(
        "--weights", nargs="+", type=float, metavar="W", help="one weight for each of the given members"
    )
    output.add_options(parser, "submission")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Score the members on what they never saw, and predict with all of them."""
    args = parse(argv)
    output.check_options(args)
    if (args.out or args.labels) and not args.images:
        raise UserError("--out and --labels need --images FOLDER")
    if args.images and not (args.out or args.labels):
        raise UserError("--images needs --out FILE.csv for predictions, or --labels FILE.csv for a score")

    from creature.judging import honest, members, tables
    from creature.learning.runs import write_json
    from creature.terminal import say, show_table

    folds, weights = members.weigh(args.members, args.weights)
    members.check_members(folds)
    show_table("Out of fold: each image scored by the member that never saw it", *honest.out_of_fold_table(folds))
    listed = tables.list_inputs(args.images) if args.images else []
    inputs, columns = output.arrange(args, listed)
    device = members.choose_device(args.device)
    loaded = [members.load_member(fold, device) for fold in folds]
    names = loaded[0].names
    labels = honest.match_labels(args.labels, listed, inputs, names) if args.labels else {}
    holdout = honest.tally_holdout(folds, loaded, args.strategy, weights, args.batch_size)
    tallies = {"images.holdout": holdout} if holdout else {}
    code, done = (
        0,
        f"{len(folds)} members scored; next: python ensemble.py {' '.join(args.members)} --images DIR --out FILE.csv",
    )
    if inputs:
        tally, top = honest.Tally(folds), min(args.top, len(names))
        rows = tally.watch(tables.answer_rows(loaded, inputs, top, args.batch_size, args.strategy, weights), labels)
        if args.out:
            code = output.write(args, columns, rows, top, members.most_frequent(folds))
            done = (
                f"{len(inputs)} rows are in {args.out}; next: hand it in, or python predict.py {folds[0]} PHOTO --top 5"
            )
        else:
            deque(rows, maxlen=0)
        if labels:
            tallies[args.labels] = tally
    if tallies:
        title = f"Ensemble of {len(folds)} by {args.strategy}, on images that no member was trained on"
        show_table(
            title, ("images", "accuracy [95 %]"), [line for name in tallies for line in tallies[name].lines(name)]
        )
    if len({fold.parent for fold in folds}) == 1:
        (folds[0].parent / "ensemble").mkdir(exist_ok=True)
        summary = honest.summary(folds, weights, args.strategy, tallies)
        write_json(folds[0].parent / "ensemble" / "result.json", summary)
    say(done)
    return code


if __name__ == "__main__":
    run(main)
