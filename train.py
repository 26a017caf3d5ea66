"""Train the folds of a recipe: one checkpoint folder per fold, with the predictions of the rows it never saw.

accelerate launch train.py --recipe recipes/all.yaml
python train.py --recipe recipes/all.yaml --set 'folds.train=[2]' --set schedule.epochs=5
creature train --recipe laptop      # this script, wherever creature is installed; creature recipes lists the names
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from creature.console import run
from creature.publishing.terms import add_terms

if TYPE_CHECKING:
    from accelerate import Accelerator

    from creature.publishing.terms import Terms
    from creature.recipe import Recipe
    from creature.training.signals import Stop
    from creature.training.train_data import Data

LINE = "{:>7}  {:>8}  {:>8}  {:>8}  {}"  # an epoch of a fold's table
FORMATS = {"loss": ".4f", "learning_rate": ".1e", "seconds": ".1f"}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--recipe",
        required=True,
        help="YAML file, or a name of `creature recipes`; `creature schema` explains all settings",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; repeatable"
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
        accelerator, terms, results = train(args, recipe, out, stop)

    from creature.console import say, show_table
    from creature.metrics.accuracy import scored
    from creature.publishing.hub import publish
    from creature.publishing.publish import build

    cells = [(r["fold"], scored(r), r["epoch"], f"{r['seconds'] / 60:.1f}") for r in results]
    title = f"{recipe.name}: {len(results)} of {recipe.folds.members} folds"
    show_table(title, ("fold", "held-out accuracy [95 %]", "epoch", "minutes"), cells)
    accelerator.end_training()
    if terms:
        say(f"{publish(args.push, build(out, args.push, terms), public=False)} is published")
    say(f"{out} holds weights and held-out predictions; next: creature ensemble {out} --images DIR --out FILE.csv")
    return 0


def train(
    args: argparse.Namespace, recipe: "Recipe", out: Path, stop: "Stop"
) -> "tuple[Accelerator, Terms | None, list[dict[str, Any]]]":
    """The folds, one after another; with the terms of publication (on the main process) and the folds' results."""
    from creature.console import say, warn
    from creature.publishing.publish import prepare_push
    from creature.recipe import recipe_warnings
    from creature.storage import naming_disk_errors
    from creature.training import distributed, run_folder, train_data

    accelerator = train_data.start(recipe, out)
    push = args.push if accelerator.is_main_process else None
    terms = prepare_push(push, out, args.license, args.data) if push else None
    for warning in recipe_warnings(recipe):
        warn(warning)
    results = []
    with distributed.noticing_loss(accelerator), naming_disk_errors(out):
        data = train_data.prepare_run(accelerator, recipe, out, args.resume or distributed.attempt() > 0)
        if train_data.needs_features(recipe, out):
            data = train_data.embed(accelerator, recipe, data)
        if recipe.loss.teacher:
            from creature.ensembling.distill import soft_targets

            data.training.targets = soft_targets(Path(recipe.loss.teacher), data.folds)
        for fold in recipe.train_folds:
            folder = out / f"fold-{fold}"
            if run_folder.fold_state(folder) == "finished":
                say(f"{folder} is finished")
            else:
                with run_folder.lock_fold(folder) if accelerator.is_main_process else nullcontext():
                    stop.begin()
                    with distributed.waiting(accelerator, distributed.WAIT_IN_FOLD, distributed.WAIT):
                        train_fold(accelerator, recipe, data, fold, folder, stop)
            accelerator.wait_for_everyone()
            results.append(run_folder.read_result(folder))
    return accelerator, terms, results


def train_fold(
    accelerator: "Accelerator", recipe: "Recipe", data: "Data", fold: int, folder: Path, stop: "Stop"
) -> None:
    """Train one fold from where it stands, and leave its finished folder."""
    import numpy as np

    from creature.console import say
    from creature.data.loader import epoch_batches, training_order
    from creature.data.workers import load_batches
    from creature.metrics.accuracy import Count
    from creature.metrics.scores import score
    from creature.run import held_out_predictions
    from creature.training import checkpoint, loop, train_data

    folds, epochs, main = data.folds, recipe.schedule.epochs, accelerator.is_main_process
    parts = (~folds.held_out(fold), folds.held_out(fold))
    rows, held_out = (np.flatnonzero(part).astype(np.int32) for part in parts)  # of which there may be millions
    learner = train_data.build_learner(accelerator, recipe, data, fold, folder)
    model, position = learner.model, learner.position
    sizes = [len(batch) for batch in epoch_batches(rows, recipe.batch_size)]
    share = (accelerator.process_index, accelerator.num_processes)
    order = training_order(rows, recipe.batch_size, learner.seed, epochs, (position.epoch, position.batch), *share)

    def save() -> None:
        if main:
            checkpoint.save_state(folder, len(sizes), accelerator, model, learner.optimizer, position, learner.average)

    say(f"fold {fold}: {len(rows)} images to train on, {len(held_out)} held out")
    if position.start:
        say(f"the classifier starts at a probe of the features: {Count(**position.start)} held out")
    say(LINE.format("epoch", "loss", "rate", "seconds", "held-out accuracy [95 %]"))
    with load_batches(data.training, order, data.workers) as batches:
        while position.epoch < epochs:
            title = f"fold {fold} epoch {position.epoch + 1}/{epochs}"
            loop.train_epoch(accelerator, learner, batches, sizes, stop, save, title)
            with stop.saving(save):
                words = (data.evaluation, held_out, recipe.batch_size, data.workers)
                logits = loop.predict(accelerator, learner.judged, learner.normalize, *words)
            held = held_out_predictions(folds, held_out, logits)
            count = held.score
            lr = learner.rate(position.epoch + 1 - 1 / len(sizes))
            seconds, loss = position.seconds, position.loss_sum / max(1, position.rows)
            figures = {
                "loss": loss,
                "learning_rate": lr,
                "seconds": round(seconds, 3),
                "skipped_steps": position.skipped,
            }
            position.end_epoch({**figures, "images_per_second": round(len(rows) / seconds, 1), **count.figures()})
            say(LINE.format(position.epoch, *(f"{figures[k]:{f}}" for k, f in FORMATS.items()), count))
            accelerator.log(
                {f"fold {fold} {name}": value for name, value in position.history[-1].items()}, position.epoch
            )
            if main:
                checkpoint.keep_epoch(folder, learner.whole, held, position, recipe.checkpoint, epochs)
                save()
                checkpoint.prune_epochs(folder, position, recipe.checkpoint)
    if main:
        train_data.finish(accelerator, recipe, data, learner, fold, folder, score)


if __name__ == "__main__":
    run(main)
