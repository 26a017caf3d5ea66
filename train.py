"""Train the folds of a recipe: one checkpoint folder per fold, with the predictions of the rows it never saw.

accelerate launch train.py --recipe recipes/all.yaml
python train.py --recipe recipes/all.yaml --set 'folds.train=[2]' --set schedule.epochs=5
creature train --recipe laptop      # this script, wherever creature is installed; creature recipes lists the names
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from creature.console import run
from creature.publishing.terms import add_terms

if TYPE_CHECKING:
    from creature.recipe import Recipe
    from creature.results import FoldResult
    from creature.training.signals import Stop
    from creature.training.start import Training


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help="a YAML file, or a name of `creature recipes`")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of `creature schema`"
    )
    parser.add_argument("--out", type=Path, help="the run's folder; runs/NAME if not given")
    parser.add_argument("--resume", action="store_true", help="go on with folds that exist")
    parser.add_argument("--push", metavar="USER/NAME", help="publish the run at the end, privately, on the Hub")
    add_terms(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train every fold that the recipe lists, and publish the run if asked to."""
    args = parse(argv)
    from creature.recipe_file import load_recipe
    from creature.shipped import find_recipe
    from creature.training.signals import listen

    recipe = load_recipe(find_recipe(args.recipe), args.set)
    out = args.out or Path("runs") / recipe.name
    with listen() as stop:  # before the imports, which take seconds
        from creature.console import say
        from creature.publishing.hub import publish
        from creature.publishing.publish import build, prepare_push

        push = args.push if os.environ.get("RANK", "0") == "0" else None
        terms = prepare_push(push, out, args.license, data=args.data) if push else None
        results = train(recipe, out, resume=args.resume, stop=stop, own_process=True)

    from creature.training.finish import show_results

    show_results(out, recipe, results)
    if terms:
        say(f"{publish(args.push, build(out, args.push, terms), public=False)} is published")
    say(f"{out} holds weights and held-out predictions; next: creature ensemble {out} --images DIR --out FILE.csv")
    return 0


def train(
    recipe: "Recipe", out: Path, *, resume: bool = False, stop: "Stop | None" = None, own_process: bool = False
) -> "list[FoldResult]":
    """Train the recipe's folds, one after another, into the run's folder; the results of all of them.

    `own_process`: the process does nothing else, so its threads, memory and progress bars may be set for the training.
    """
    from creature.console import say
    from creature.run import Fold
    from creature.training import distributed, run_folder, signals
    from creature.training.start import open_training

    stop, results, targets = stop or signals.Stop(), [], None
    if recipe.loss.teacher:
        from creature.ensembling.distill import soft_targets

        targets = partial(soft_targets, Path(recipe.loss.teacher))
    with open_training(recipe, out, resume=resume, own_process=own_process, make_targets=targets) as training:
        accelerator = training.accelerator
        for fold in recipe.train_folds:
            folder = out / f"fold-{fold}"
            if run_folder.fold_state(folder) == "finished":  # guard: finished-fold
                say(f"{folder} is finished")
            else:
                with run_folder.lock_fold(folder) if accelerator.is_main_process else nullcontext():
                    stop.leave_at_once()
                    with distributed.wait_limit(accelerator, distributed.WAIT_IN_FOLD, after=distributed.WAIT):
                        train_fold(training, recipe, fold=fold, folder=folder, stop=stop)
            accelerator.wait_for_everyone()
            results.append(Fold(folder).result)
    return results


def train_fold(training: "Training", recipe: "Recipe", *, fold: int, folder: Path, stop: "Stop") -> None:
    """Train one fold from where it stands, and leave its finished folder."""
    from creature.console import say
    from creature.training import checkpoint, loop
    from creature.training.finish import finish_fold
    from creature.training.learner import build_learner, start_at_probe
    from creature.training.saver import Saver
    from creature.training.training_state import TABLE_HEADER, remarks

    accelerator, data = training.accelerator, training.data
    learner = build_learner(accelerator, recipe, data, fold=fold)
    learner.state.micro_batches = training.micro_batches
    resumed = checkpoint.load_state(folder, learner, accelerator, settings=recipe.optimizer)
    if recipe.backbone.head_start == "probe" and not resumed:
        start_at_probe(learner, data)
    learner.model = accelerator.prepare(learner.model)
    state = learner.state

    say(f"fold {fold}: {sum(learner.batch_sizes)} images to train on, {data.folds.held_out(fold).sum()} held out")
    if resumed:
        say(f"it goes on after step {state.batch} of epoch {state.epoch + 1}")
    if state.start:
        say(f"the classifier starts at a probe of the features: {state.start} held out")
    say(TABLE_HEADER)
    batches = loop.fold_batches(accelerator, learner, data, make_batches=training.make_batches)
    with Saver(accelerator, learner, folder, settings=recipe.checkpoint) as saver:
        while state.epoch < learner.epochs:
            title = f"fold {fold} epoch {state.epoch + 1}/{learner.epochs}"
            loop.train_epoch(accelerator, learner, batches, stop=stop, saver=saver, title=title)
            with stop.saving(saver.save_now):
                predictions = loop.predict_held_out(accelerator, learner, data, batches=batches)
            by = loop.selected_by(predictions, recipe.checkpoint.metric)
            result = learner.end_epoch(predictions.score, by)
            say(result)
            for remark in remarks(state, recipe, learner.epochs):
                say(remark)
            accelerator.log(result.tracked(fold), step=state.epoch)
            saver.save_epoch(predictions)
    training.micro_batches = state.micro_batches
    if accelerator.is_main_process:
        finish_fold(accelerator, recipe, data.folds, learner=learner, folder=folder)


if __name__ == "__main__":
    run(main)
