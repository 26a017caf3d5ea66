"""Combine trained folds: their out-of-fold score, and one prediction for each image.

python ensemble.py runs/all --images data/test --out prediction.csv
python ensemble.py runs/all --images data/test --labels labels.csv --compare
python ensemble.py runs/all runs/other --strategy softmax --weights 2 1 --images data/test --out prediction.csv
python ensemble.py runs/all --soup --images data/test --labels labels.csv
python ensemble.py runs/all --distill recipes/student.yaml      # of a run with images.holdout
"""

import argparse
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from creature.console import BROKEN_IMAGES, run
from creature.errors import UserError
from creature.inference import options

if TYPE_CHECKING:
    import numpy as np

    from creature.ensembling.acceptance import ImagesAt
    from creature.ensembling.recorded import RecordedPredictions
    from creature.recipe import Recipe


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        help="train RUN/student, one model that learns what the members said of images that they never saw",
    )
    options.add_options(parser, "submission")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Score the members on what they never saw, and predict with all of them."""
    args = parse(argv)
    options.check_options(args, [*(args.images or []), args.labels])
    if args.parts:
        raise UserError(
            f"--out: writes one file, such as predictions.csv, got the folder {args.out}; parts are written by "
            "python predict.py RUN PHOTOS --members --out DIR/"
        )
    if (args.out or args.labels) and not args.images:
        raise UserError("--out and --labels need --images FOLDER")
    if args.images and not (args.out or args.labels or args.compare):
        raise UserError("--images needs --out FILE.csv for predictions, or --labels FILE.csv for a score")

    from creature.console import say, show_table
    from creature.ensembling import distill, out_of_fold
    from creature.ensembling.weights import weigh_runs
    from creature.inference import members

    folds, weights = members.weigh(args.members, args.weights or None)
    members.check_members(folds)
    one = args.soup or args.distill
    if one and (len(args.members) > 1 or not members.is_whole_run(folds) or args.weights is not None):
        raise UserError(
            "--soup and --distill are of all finished folds of one run, which count the same: ensemble.py RUN --soup"
        )
    if one and len(folds) < 2:
        raise UserError(f"--soup and --distill make one model of several, and {folds[0].parent} has one finished fold")
    student = distill.student_recipe(args.distill, folds[0].parent) if args.distill else None
    columns, lines = out_of_fold.out_of_fold_table(folds, args.strategy)
    show_table("Out of fold: each image scored by the member that never saw it", columns, lines)
    for sentence in out_of_fold.stand_ins(folds, args.strategy):
        say(sentence, style="dim")
    if args.weights == []:
        weights, head, lines = weigh_runs(folds, args.strategy)
        show_table("Weights, chosen greedily on the out-of-fold predictions", head, lines)
    found, sources, code = answer(args, folds, weights)
    stands = conclude(args, folds, weights, found)
    if one:
        make_one(args, student, folds, found, stands, sources)
    if args.out:
        rows = len(found["images"].ids)
        say(f"{rows} rows are in {args.out}; next: hand it in, or python predict.py {folds[0]} PHOTO --top 5")
    elif not one:
        where, scored = " ".join(args.members), f"{len(folds)} member{'s' * (len(folds) != 1)} scored"
        say(f"{scored}; next: python ensemble.py {where} --images DIR --out FILE.csv")
    return code


def answer(
    args: argparse.Namespace, folds: Sequence[Path], weights: "np.ndarray"
) -> "tuple[dict[str, RecordedPredictions], dict[str, ImagesAt], int]":
    """What all members say of the holdout and of --images, whose rows are written; the images, and the exit code."""
    from creature.ensembling import out_of_fold, recorded
    from creature.inference import inputs, members, prediction_files
    from creature.inference.predictor import predict_batches, with_mirroring
    from creature.device import keep_memory, share_cores

    listed = inputs.list_inputs(args.images) if args.images else []
    wanted, columns = options.arrange(args, listed)
    names = members.folds_of(folds[0].parent).class_names
    full = {item.path: item.id for item in listed}  # a submission's ids are shorter
    ids = [full[item.path] for item in wanted]
    labels = recorded.read_truth(args.labels, ids, names) if args.labels else [-1] * len(ids)
    holdout = out_of_fold.read_holdout(folds, names)
    if args.compare and not wanted and holdout is None:
        raise UserError("--compare needs images: --images DIR --labels FILE.csv, or a recipe with images.holdout")
    if (args.soup == "greedy" or args.distill) and not args.labels and holdout is None:
        raise UserError(
            "--soup and --distill are scored on labelled images that no fold saw, and there are none: --images DIR "
            "--labels FILE.csv, or a recipe with images.holdout; --soup uniform makes a soup without a score"
        )
    device = members.choose_device(args.device)
    share_cores()
    keep_memory(device)
    loaded = [members.load_member(fold, device, fused=True) for fold in folds] if wanted or holdout else []
    called, see = members.short_names(folds), with_mirroring if args.mirror else lambda predictor: predictor
    models = [members.result_of(fold)["sha256"]["model.safetensors"] for fold in folds]
    kept = None if args.strategy == "vote" else args.strategy  # for calibration, which votes have no use for
    code, found, sources = 0, {}, {}
    if holdout is not None:
        sources["holdout"] = lambda rows: inputs.read_rows(holdout.select(rows))
        record = recorded.Recorder(called, weights, args.mirror, kept)
        predictor = see(members.predictor(loaded))
        asked = predict_batches(predictor, inputs.read_rows(holdout), args.batch_size, "holdout", len(holdout))
        deque(record.watch(asked), maxlen=0)
        found["holdout"] = record.answered(holdout["id"], holdout["label"], args.strategy, names, models)
    if wanted:
        sources["images"] = lambda rows: inputs.read_inputs([wanted[row] for row in rows])
        record = recorded.Recorder(called, weights, args.mirror, kept if args.labels else None)
        top = min(args.top, len(names))
        predictor = see(members.predictor(loaded, weights, args.strategy))
        asked = predict_batches(predictor, inputs.read_inputs(wanted), args.batch_size, "predicting", len(wanted))
        rows = prediction_files.to_predictions(record.watch(asked), predictor, top)
        if args.out:
            code = options.write(args, columns, rows, top, members.most_frequent(folds))
        else:
            deque(rows, maxlen=0)
            code = BROKEN_IMAGES if "" in record.hashes else 0
        found["images"] = record.answered(ids, labels, args.strategy, names, models)
    return found, sources, code


def conclude(
    args: argparse.Namespace, folds: Sequence[Path], weights: "np.ndarray", found: "Mapping[str, RecordedPredictions]"
) -> "dict[str, np.ndarray]":
    """Show the scores and comparisons, and keep what all folds of a run said; how each image may be scored."""
    from creature.console import show_table
    from creature.ensembling import compare, out_of_fold, recorded
    from creature.inference import members
    from creature.storage import write_json

    stands = {name: recorded.exposure_of(answered, folds) for name, answered in found.items()}
    titles = {"holdout": "images.holdout", "images": args.labels or "images"}
    scores = {
        titles[name]: recorded.tally(found[name], stands[name]) for name in found if name == "holdout" or args.labels
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
            recorded.warn_of_lost_labels(store / f"{name}.safetensors", answered)
            recorded.save_recorded(store / f"{name}.safetensors", answered)
        write_json(store / "result.json", out_of_fold.summary(folds, weights, args.strategy, scores, args.mirror))
    return stands


def make_one(
    args: argparse.Namespace,
    student: "Recipe | None",
    folds: Sequence[Path],
    found: "Mapping[str, RecordedPredictions]",
    stands: "Mapping[str, np.ndarray]",
    sources: "Mapping[str, ImagesAt]",
) -> None:
    """Make one model of the members, or several, and show each beside them and the ensemble."""
    from creature.ensembling import acceptance
    from creature.ensembling.distill import judge_student
    from creature.ensembling.soup import make_soup
    from creature.inference import members
    from creature.inference.predictor import with_mirroring

    run, kind, title = folds[0].parent, "holdout", "images.holdout"
    if args.labels:
        kind, title = "images", args.labels
    unseen = acceptance.find_unseen(title, found[kind], stands[kind], sources[kind], folds) if kind in found else None
    see = with_mirroring if args.mirror else lambda predictor: predictor
    device, models, made = members.choose_device(args.device), [], {}
    if args.soup:
        models, made[run / "soup"] = make_soup(folds, args.soup, unseen, device, args.batch_size, see)
    if student:
        train_student(args.distill, student, run)
        assert unseen  # distillation is refused without
        model, made[run / "student/fold-0"] = judge_student(run / "student", unseen, device, args.batch_size, see)
        models.append(model)
    if unseen:
        acceptance.show(unseen, models)
    for folder, accepted in made.items():
        acceptance.advise(folder, run, accepted)


def train_student(path: str, recipe: "Recipe", run: Path) -> None:
    """Train a run's student, or go on with it; as train.py does."""
    import train
    from creature.console import say
    from creature.training.signals import listen

    say(f"a student of {run}, by {path}, on all of its images")
    with listen() as stop:
        out = run / "student"
        args = train.parse(["--recipe", path, *["--resume"] * (out / "recipe.yaml").exists()])
        accelerator, *_ = train.train(args, recipe, out, stop)
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
