"""Combine trained folds: their out-of-fold score, and one prediction for each picture.

python ensemble.py runs/all --images data/test --out prediction.csv
python ensemble.py runs/all --images data/test --labels labels.csv --compare
python ensemble.py runs/all runs/other --strategy softmax --weights 2 1 --images data/test --out prediction.csv
"""

import argparse
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from creature.judging import output
from creature.terminal import UserError, run

if TYPE_CHECKING:
    import numpy as np

    from creature.judging.answers import Answered


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
        "--weights",
        nargs="*",
        type=float,
        metavar="W",
        help="one weight for each of the given members; without numbers, chosen for runs on out-of-fold predictions",
    )
    parser.add_argument("--compare", action="store_true", help="score every strategy and member beside each other")
    output.add_options(parser, "submission")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Score the members on what they never saw, and predict with all of them."""
    args = parse(argv)
    output.check_options(args)
    if (args.out or args.labels) and not args.images:
        raise UserError("--out and --labels need --images FOLDER")
    if args.images and not (args.out or args.labels or args.compare):
        raise UserError("--images needs --out FILE.csv for predictions, or --labels FILE.csv for a score")

    from creature.judging import honest, members
    from creature.judging.greedy import weigh_runs
    from creature.terminal import say, show_table

    folds, weights = members.weigh(args.members, args.weights or None)
    members.check_members(folds)
    columns, lines = honest.out_of_fold_table(folds, args.strategy)
    show_table("Out of fold: each image scored by the member that never saw it", columns, lines)
    for sentence in honest.stand_ins(folds, args.strategy):
        say(sentence, style="dim")
    if args.weights == []:
        weights, head, lines = weigh_runs(folds, args.strategy)
        show_table("Weights, chosen greedily on the out-of-fold predictions", head, lines)
    found, rows, code = answer(args, folds, weights)
    conclude(args, folds, weights, found)
    if args.out:
        say(f"{rows} rows are in {args.out}; next: hand it in, or python predict.py {folds[0]} PHOTO --top 5")
    else:
        where = " ".join(args.members)
        say(f"{len(folds)} members scored; next: python ensemble.py {where} --images DIR --out FILE.csv")
    return code


def answer(
    args: argparse.Namespace, folds: Sequence[Path], weights: "np.ndarray"
) -> "tuple[dict[str, Answered], int, int]":
    """What all members say of the holdout and of --images, whose rows are written; their number, and the exit code."""
    from creature.judging import answers, honest, inputs, members, tables
    from creature.judging.asking import ask, mirrored
    from creature.learning.device import keep_memory, share_cores

    listed = inputs.list_inputs(args.images) if args.images else []
    wanted, columns = output.arrange(args, listed)
    names = members.folds_of(folds[0].parent).names
    full = {item.path: item.id for item in listed}  # a submission's ids are shorter
    ids = [full[item.path] for item in wanted]
    labels = answers.read_truth(args.labels, ids, names) if args.labels else [-1] * len(ids)
    holdout = honest.read_holdout(folds, names)
    if args.compare and not wanted and holdout is None:
        raise UserError("--compare needs pictures: --images DIR --labels FILE.csv, or a recipe with images.holdout")
    device = members.choose_device(args.device)
    share_cores()
    keep_memory(device)
    loaded = [members.load_member(fold, device, fused=True) for fold in folds] if wanted or holdout else []
    called, see = members.short_names(folds), mirrored if args.mirror else lambda predictor: predictor
    code, found = 0, {}
    if holdout is not None:
        record = answers.Record(called, weights, args.mirror)
        predictor = see(members.predictor(loaded))
        asked = ask(predictor, inputs.rows_of(holdout), args.batch_size, "holdout", len(holdout))
        deque(record.watch(asked), maxlen=0)
        found["holdout"] = record.answered(holdout["id"], holdout["label"], args.strategy, names)
    if wanted:
        record, top = answers.Record(called, weights, args.mirror), min(args.top, len(names))
        predictor = see(members.predictor(loaded, weights, args.strategy))
        asked = ask(predictor, inputs.pictures_of(wanted), args.batch_size, "predicting", len(wanted))
        rows = tables.answer_rows(record.watch(asked), predictor, top)
        if args.out:
            code = output.write(args, columns, rows, top, members.most_frequent(folds))
        else:
            deque(rows, maxlen=0)
        found["images"] = record.answered(ids, labels, args.strategy, names)
    return found, len(wanted), code


def conclude(
    args: argparse.Namespace, folds: Sequence[Path], weights: "np.ndarray", found: "Mapping[str, Answered]"
) -> None:
    """Show the scores and comparisons; what all folds of a run said is kept in its folder."""
    from creature.disk import write_json
    from creature.judging import answers, compare, honest, members
    from creature.terminal import show_table

    stands = {name: answers.standing(answered, folds) for name, answered in found.items()}
    titles = {"holdout": "images.holdout", "images": args.labels or "images"}
    scores = {
        titles[name]: answers.tally(found[name], stands[name]) for name in found if name == "holdout" or args.labels
    }
    if scores:
        title = f"Ensemble of {len(folds)} by {args.strategy}, on images that no member was trained on"
        lines = [line for name, tally in scores.items() for line in tally.lines(name)]
        show_table(title, ("images", "accuracy [95 %]"), lines)
    store = folds[0].parent / "ensemble" if members.is_whole_run(folds) else None
    if args.compare:
        for name, answered in found.items():
            compare.show(titles[name], answered, stands[name], store and store / f"disagreements-{name}.csv")
    if store:
        store.mkdir(exist_ok=True)
        for name, answered in found.items():
            answers.save_answers(store / f"{name}.safetensors", answered)
        write_json(store / "result.json", honest.summary(folds, weights, args.strategy, scores, args.mirror))


if __name__ == "__main__":
    run(main)
