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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    from creature.inference.predictor import Predictor
    from creature.metrics.blend import Blending
    from creature.metrics.recorded import RecordedPredictions
    from creature.recipe import Recipe
    from creature.run import Fold


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

    from creature.console import say, show_table
    from creature.ensembling import distill, out_of_fold
    from creature.ensembling.weights import weigh_runs
    from creature.metrics.blend import Blending
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


@dataclass(frozen=True)
class GivenImages:
    """--images in the order of the output, with their labels."""

    inputs: "list[InputPath]"
    columns: tuple[str, str]  # of a submission
    ids: list[str]  # in full; a submission shortens them
    labels: "np.ndarray"  # (N,) -1 where there is none


@dataclass(frozen=True)
class PredictedImages:
    """Images with what the ensemble and its members predict of them."""

    title: str
    recorded: "RecordedPredictions"
    exposed: "np.ndarray"  # (N,) how each image may be scored
    images: "ImagesAt"
    scored: bool  # there are labels


def predict(
    args: argparse.Namespace, output: options.OutputOptions, members: "Sequence[Fold]", *, blending: "Blending"
) -> tuple[dict[str, PredictedImages], int]:
    """Predict the holdout and --images, whose rows are written; by `holdout` and `images`, and the exit code."""
    from creature.device import keep_memory, share_cores
    from creature.ensembling.out_of_fold import read_holdout
    from creature.ensembling.recorded import Recorder
    from creature.inference.members import choose_device, load_member, predictor

    class_names = members[0].run.classes
    given, holdout = find_images(args, output, class_names), read_holdout(members, class_names)
    check_needed_images(args, given, holdout)
    device = choose_device(args.device)
    share_cores()
    keep_memory(device)
    tables, code = {}, 0
    if not given.inputs and not holdout:
        return tables, code
    ensemble = predictor([load_member(member.folder, device, fused=True) for member in members], blending)
    if holdout:
        recorder = Recorder(members, blending, keep_probabilities=blending.strategy != "vote")
        tables["holdout"] = predict_holdout(holdout, recorder, ensemble, batch_size=args.batch_size)
    if given.inputs:
        recorder = Recorder(members, blending, keep_probabilities=bool(args.labels) and blending.strategy != "vote")
        tables["images"], code = predict_images(args, output, given, recorder=recorder, ensemble=ensemble)
    return tables, code


def find_images(args: argparse.Namespace, output: options.OutputOptions, class_names: Sequence[str]) -> GivenImages:
    """The images that --images names, with their --labels."""
    import numpy as np

    from creature.ensembling.recorded import read_truth
    from creature.inference.inputs import list_inputs

    listed = list_inputs(args.images) if args.images else []
    inputs, columns = options.arrange(output, listed)
    full_id = {item.path: item.id for item in listed}
    ids = [full_id[item.path] for item in inputs]
    labels = read_truth(args.labels, ids, class_names) if args.labels else np.full(len(ids), -1)
    return GivenImages(inputs, columns, ids, labels=labels)


def check_needed_images(args: argparse.Namespace, given: GivenImages, holdout: "Dataset | None") -> None:
    """Raises UserError where there are no images for what is asked for."""
    if args.compare and not given.inputs and holdout is None:
        raise UserError("--compare needs images: --images DIR --labels FILE.csv, or a recipe with images.holdout")
    if (args.soup == "greedy" or args.distill) and not args.labels and holdout is None:
        raise UserError(
            "--soup and --distill are scored on labelled images that no fold saw, and there are none: --images DIR "
            "--labels FILE.csv, or a recipe with images.holdout; --soup uniform makes a soup without a score"
        )


def predict_holdout(
    holdout: "Dataset", recorder: "Recorder", ensemble: "Predictor", *, batch_size: int
) -> PredictedImages:
    """Predict the holdout of the recipe."""
    import numpy as np

    from creature.ensembling.recorded import exposures
    from creature.inference.inputs import read_rows
    from creature.inference.predictor import predict_batches

    batches = predict_batches(ensemble, read_rows(holdout), batch_size, title="holdout", total=len(holdout))
    deque(recorder.watch(batches), maxlen=0)
    recorded = recorder.recorded(holdout["id"], np.asarray(holdout["label"]))
    return PredictedImages(
        title="images.holdout",
        recorded=recorded,
        exposed=exposures(recorded, recorder.members),
        images=lambda rows: read_rows(holdout.select(rows)),
        scored=True,
    )


def predict_images(
    args: argparse.Namespace,
    output: options.OutputOptions,
    given: GivenImages,
    *,
    recorder: "Recorder",
    ensemble: "Predictor",
) -> tuple[PredictedImages, int]:
    """Predict --images and write their rows; with the exit code."""
    from creature.ensembling.recorded import exposures
    from creature.inference.inputs import read_inputs
    from creature.inference.prediction import to_predictions
    from creature.inference.predictor import predict_batches
    from creature.run import most_frequent_class

    images, total, top = read_inputs(given.inputs), len(given.inputs), min(args.top, len(ensemble.class_names))
    batches = predict_batches(ensemble, images, args.batch_size, title="predicting", total=total)
    rows = to_predictions(recorder.watch(batches), ensemble, top)
    if output.path:
        fallback = most_frequent_class(recorder.members[0].folder)
        code = options.write(output, given.columns, rows, top=top, fallback=fallback)
    else:
        deque(rows, maxlen=0)
        code = BROKEN_IMAGES if "" in recorder.content_hashes else 0
    recorded = recorder.recorded(given.ids, given.labels)
    table = PredictedImages(
        title=args.labels or "images",
        recorded=recorded,
        exposed=exposures(recorded, recorder.members),
        images=lambda chosen: read_inputs([given.inputs[row] for row in chosen]),
        scored=bool(args.labels),
    )
    return table, code


def show_and_keep(
    args: argparse.Namespace, members: "Sequence[Fold]", blending: "Blending", *, tables: Mapping[str, PredictedImages]
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
        title = f"Ensemble of {len(members)} by {blending.strategy}, on images that no member was trained on"
        lines = [line for name, counts in tallies.items() for line in counts.lines(name)]
        show_table(title, ("images", "accuracy [95 %]"), lines)
    folder = members[0].run.folder / "ensemble" if is_whole_run(members) else None
    if args.compare:
        for kind, table in tables.items():
            file = folder and folder / f"disagreements-{kind}.csv"
            show_comparison(table.title, table.recorded, table.exposed, file=file)
    if folder:
        folder.mkdir(exist_ok=True)
        for kind, table in tables.items():
            warn_of_lost_labels(folder / f"{kind}.safetensors", table.recorded)
            save_recorded(folder / f"{kind}.safetensors", table.recorded)
        write_json(folder / "result.json", ensemble_summary(members, blending, tallies))


def make_one(
    args: argparse.Namespace,
    student: "Recipe | None",
    members: "Sequence[Fold]",
    *,
    tables: Mapping[str, PredictedImages],
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
    device, batch_size, made = choose_device(args.device), args.batch_size, {}
    if args.soup:
        made[run / "soup"] = make_soup(members, args.soup, unseen=unseen, device=device, batch_size=batch_size)
    if student:
        train_student(args.distill, student, run)
        assert unseen  # distillation is refused without
        scored = score_student(run / "student", unseen, device=device, batch_size=batch_size)
        made[run / "student/fold-0"] = scored
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
