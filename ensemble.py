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
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from creature.console import BROKEN_IMAGES, run
from creature.errors import UserError
from creature.inference import options

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from creature.ensembling.acceptance import ImagesAt
    from creature.ensembling.recorded import Recorder
    from creature.inference.inputs import InputPath
    from creature.inference.predictor import ImageInput, Predictor
    from creature.metrics.recorded import RecordedPredictions
    from creature.recipe import Recipe
    from creature.run import Fold

    Labels = Sequence[int] | np.ndarray


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
            "creature predict RUN PHOTOS --members --out DIR/"
        )
    if (args.out or args.labels) and not args.images:
        raise UserError("--out and --labels need --images FOLDER")
    if args.images and not (args.out or args.labels or args.compare):
        raise UserError("--images needs --out FILE.csv for predictions, or --labels FILE.csv for a score")

    from creature.console import say, show_table
    from creature.ensembling import distill, out_of_fold
    from creature.ensembling.weights import weigh_runs
    from creature.run import check_members, is_whole_run, weigh_members

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
    student = distill.student_recipe(args.distill, run) if args.distill else None
    columns, lines = out_of_fold.out_of_fold_table(members, args.strategy)
    show_table("Out of fold: each image scored by the member that never saw it", columns, lines)
    for sentence in out_of_fold.stand_ins(members, args.strategy):
        say(sentence, style="dim")
    if args.weights == []:
        weighed = weigh_runs(members, args.strategy)
        weights = weighed.weights
        show_table("Weights, chosen greedily on the out-of-fold predictions", weighed.columns, weighed.rows)
    tables, code = predict(args, members, weights)
    show_and_keep(args, members, weights, tables)
    if one_model:
        make_one(args, student, members, tables)
    if args.out:
        rows = len(tables["images"].recorded.ids)
        say(f"{rows} rows are in {args.out}; next: hand it in, or creature predict {members[0]} PHOTO --top 5")
    elif not one_model:
        where, scored = " ".join(args.members), f"{len(members)} member{'s' * (len(members) != 1)} scored"
        say(f"{scored}; next: creature ensemble {where} --images DIR --out FILE.csv")
    return code


@dataclass(frozen=True)
class PredictedImages:
    """Images with what the ensemble and its members predict of them."""

    title: str
    recorded: "RecordedPredictions"
    exposed: "np.ndarray"  # (N,) how each image may be scored
    images: "ImagesAt"
    scored: bool  # there are labels


def predict(
    args: argparse.Namespace, members: "Sequence[Fold]", weights: "np.ndarray"
) -> "tuple[dict[str, PredictedImages], int]":
    """Predict the holdout and --images, whose rows are written; by `holdout` and `images`, and the exit code."""
    from creature.device import keep_memory, share_cores
    from creature.ensembling import out_of_fold, recorded
    from creature.inference import inputs
    from creature.inference.members import choose_device, load_member, predictor
    from creature.inference.prediction import to_predictions
    from creature.inference.predictor import predict_batches
    from creature.run import member_names, most_frequent_class

    listed = inputs.list_inputs(args.images) if args.images else []
    ordered, columns = options.arrange(args, listed)
    class_names = members[0].run.classes
    full_id = {item.path: item.id for item in listed}  # a submission's ids are shorter
    ids = [full_id[item.path] for item in ordered]
    labels = recorded.read_truth(args.labels, ids, class_names) if args.labels else [-1] * len(ids)
    holdout = out_of_fold.read_holdout(members, class_names)
    if args.compare and not ordered and holdout is None:
        raise UserError("--compare needs images: --images DIR --labels FILE.csv, or a recipe with images.holdout")
    if (args.soup == "greedy" or args.distill) and not args.labels and holdout is None:
        raise UserError(
            "--soup and --distill are scored on labelled images that no fold saw, and there are none: --images DIR "
            "--labels FILE.csv, or a recipe with images.holdout; --soup uniform makes a soup without a score"
        )
    device = choose_device(args.device)
    share_cores()
    keep_memory(device)
    needed = members if ordered or holdout else []
    loaded = [load_member(member.folder, device, fused=True) for member in needed]
    names, adapt = member_names(members), adapter(args)
    models = [member.result.sha256.weights for member in members]
    # For calibration, which votes have no use for.
    keep = {"holdout": None if args.strategy == "vote" else args.strategy}
    keep["images"] = keep["holdout"] if args.labels else None
    code, tables = 0, {}

    def table(title: str, recorder: "Recorder", ids: "Sequence[str]", labels: "Labels", images: "ImagesAt") -> None:
        kind = "holdout" if title == "images.holdout" else "images"
        made = recorder.recorded(ids, labels, strategy=args.strategy, class_names=class_names, models=models)
        scored = kind == "holdout" or bool(args.labels)
        tables[kind] = PredictedImages(title, made, recorded.exposures(made, members), images, scored)

    if holdout is not None:
        recorder = recorded.Recorder(names, weights, args.mirror, keep["holdout"])
        ensemble = adapt(predictor(loaded))
        images = inputs.read_rows(holdout)
        batches = predict_batches(ensemble, images, args.batch_size, title="holdout", total=len(holdout))
        deque(recorder.watch(batches), maxlen=0)
        rows_at = partial(rows_of_dataset, holdout)
        table("images.holdout", recorder, holdout["id"], holdout["label"], rows_at)
    if ordered:
        recorder = recorded.Recorder(names, weights, args.mirror, keep["images"])
        top = min(args.top, len(class_names))
        ensemble = adapt(predictor(loaded, weights, args.strategy))
        images = inputs.read_inputs(ordered)
        batches = predict_batches(ensemble, images, args.batch_size, title="predicting", total=len(ordered))
        rows = to_predictions(recorder.watch(batches), ensemble, top)
        if args.out:
            code = options.write(args, columns, rows, top=top, fallback=most_frequent_class(members[0].folder))
        else:
            deque(rows, maxlen=0)
            code = BROKEN_IMAGES if "" in recorder.content_hashes else 0
        rows_at = partial(inputs_at, ordered)
        table(args.labels or "images", recorder, ids, labels, rows_at)
    return tables, code


def adapter(args: argparse.Namespace) -> "Callable[[Predictor], Predictor]":
    """What --mirror makes of a predictor."""
    from creature.inference.predictor import with_mirroring

    return with_mirroring if args.mirror else lambda predictor: predictor


def rows_of_dataset(dataset: "Dataset", rows: "np.ndarray") -> "Iterator[ImageInput]":
    """Some rows of the holdout."""
    from creature.inference.inputs import read_rows

    return read_rows(dataset.select(rows))


def inputs_at(inputs: "Sequence[InputPath]", rows: "np.ndarray") -> "Iterator[ImageInput]":
    """Some of --images."""
    from creature.inference.inputs import read_inputs

    return read_inputs([inputs[row] for row in rows])


def show_and_keep(
    args: argparse.Namespace,
    members: "Sequence[Fold]",
    weights: "np.ndarray",
    tables: "Mapping[str, PredictedImages]",
) -> None:
    """Show the scores and comparisons, and keep what all folds of a run predict."""
    from creature.console import show_table
    from creature.ensembling.compare import show_comparison
    from creature.ensembling.out_of_fold import ensemble_summary
    from creature.ensembling.recorded import tally, warn_of_lost_labels
    from creature.metrics.recorded import save_recorded
    from creature.run import is_whole_run
    from creature.storage import write_json

    tallies = {table.title: tally(table.recorded, table.exposed) for table in tables.values() if table.scored}
    if tallies:
        title = f"Ensemble of {len(members)} by {args.strategy}, on images that no member was trained on"
        lines = [line for name, counts in tallies.items() for line in counts.lines(name)]
        show_table(title, ("images", "accuracy [95 %]"), lines)
    store = members[0].run.folder / "ensemble" if is_whole_run(members) else None
    if args.compare:
        for kind, table in tables.items():
            file = store and store / f"disagreements-{kind}.csv"
            show_comparison(table.title, table.recorded, table.exposed, file)
    if store:
        store.mkdir(exist_ok=True)
        for kind, table in tables.items():
            warn_of_lost_labels(store / f"{kind}.safetensors", table.recorded)
            save_recorded(store / f"{kind}.safetensors", table.recorded)
        summary = ensemble_summary(members, weights, strategy=args.strategy, tallies=tallies, mirror=args.mirror)
        write_json(store / "result.json", summary)


def make_one(
    args: argparse.Namespace,
    student: "Recipe | None",
    members: "Sequence[Fold]",
    tables: "Mapping[str, PredictedImages]",
) -> None:
    """Make one model of the members, or several, and show each beside them and the ensemble."""
    from creature.ensembling import acceptance
    from creature.ensembling.distill import score_student
    from creature.ensembling.soup import make_soup
    from creature.inference.members import choose_device

    run, table = members[0].run.folder, tables.get("images" if args.labels else "holdout")
    unseen = None
    if table:
        unseen = acceptance.find_unseen(
            table.title, table.recorded, exposed=table.exposed, images=table.images, members=members
        )
    how = {"device": choose_device(args.device), "batch_size": args.batch_size, "adapt": adapter(args)}
    made = {}
    if args.soup:
        made[run / "soup"] = make_soup(members, args.soup, unseen=unseen, **how)
    if student:
        train_student(args.distill, student, run)
        assert unseen  # distillation is refused without
        made[run / "student/fold-0"] = score_student(run / "student", unseen, **how)
    if unseen:
        acceptance.show_scores(unseen, [model for models in made.values() for model in models.models])
    for folder, models in made.items():
        acceptance.advise(folder, run, models.accepted)


def train_student(path: str, recipe: "Recipe", run: Path) -> None:
    """Train a run's student, or go on with it; as train.py does."""
    from creature.console import say
    from creature.shipped import load_script
    from creature.training.signals import listen

    say(f"a student of {run}, by {path}, on all of its images")
    train = load_script("train")
    out = run / "student"
    with listen() as stop:
        train.train(recipe, out, resume=(out / "recipe.yaml").exists(), stop=stop, own_process=True)


if __name__ == "__main__":
    run(main)
