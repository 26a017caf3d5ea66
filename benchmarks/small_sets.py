"""Small sets: a recipe's folds on few images a class, as it is and without its least steps, beside a probe.

python benchmarks/small_sets.py DIR --weights FILE.safetensors --images 6 20 100

DIR holds a folder a class, of which so many images are taken. The probe is scikit-learn's logistic regression on
standardized features of the recipe's backbone, on its starting weights, in the same folds. Accuracies are out of fold;
a difference has Newcombe's paired interval.
"""

import argparse
import random
import tempfile
from pathlib import Path

import numpy as np
from sides import ROOT, say, show_table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import train
from creature.console import run
from creature.metrics.accuracy import Count
from creature.metrics.significance import difference_interval
from creature.recipe_file import load_recipe
from creature.reporting.study import read_runs
from creature.training.start import open_training

FROZEN = ("backbone.frozen=true", "backbone.freeze_batch_stats=false", "augment={}", "schedule.min_steps=0")


def choose(data: Path, out: Path, images: int) -> None:
    """Links to so many images of each class, the same ones in every larger choice."""
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        (out / folder.name).mkdir(parents=True)
        for path in random.Random(0).sample(files := sorted(folder.iterdir()), len(files))[:images]:
            (out / folder.name / path.name).symlink_to(path.resolve())


def right_of_recipe(recipe: Path, out: Path, settings: list[str]) -> np.ndarray:
    """Which images (N,), in the order of their ids, a run's held-out predictions have right."""
    train.main(["--recipe", str(recipe), "--out", str(out), *(word for each in settings for word in ("--set", each))])
    rows = read_runs([str(out)], None)[0].unseen.rows
    return np.asarray(rows.right)[np.argsort(rows.ids)]


def right_of_probe(recipe: Path, out: Path, settings: list[str]) -> np.ndarray:
    """The same of a logistic regression on features."""
    with open_training(load_recipe(recipe, [*settings, *FROZEN]), out, resume=False, own_process=False) as training:
        folds, features = training.data.folds, training.data.features
    assert features is not None
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    right = np.zeros(len(folds.labels), dtype=bool)
    for fold in range(folds.count):
        held = folds.held_out(fold)
        probe.fit(features[~held].numpy(), folds.labels[~held])
        right[held] = probe.predict(features[held].numpy()) == folds.labels[held]
    return right[np.argsort(folds.ids.to_pylist())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with a folder a class")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors of the recipe's backbone")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/laptop.yaml", help="(recipes/laptop.yaml)")
    parser.add_argument("--images", type=int, nargs="+", default=[6, 20, 100], help="of a class (6 20 100)")
    args = parser.parse_args()
    table = []
    for images in args.images:
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            choose(args.data, work / "data", images)
            settings = [f"images.train=[{work}/data]", f"backbone.weights={args.weights.resolve()}"]
            before = right_of_recipe(args.recipe, work / "before", [*settings, "schedule.min_steps=0"])
            after = right_of_recipe(args.recipe, work / "after", settings)
            probe = right_of_probe(args.recipe, work / "probe", settings)
        low, high = (100 * end for end in difference_interval(after, probe))
        scores = [str(Count(int(right.sum()), len(right))) for right in (before, after, probe)]
        table.append((images, *scores, f"{100 * (after.mean() - probe.mean()):+.1f} [{low:+.1f}, {high:+.1f}]"))
        say(f"{images} images a class: {' | '.join(table[-1][1:])}")
    heads = ("images a class", "epochs alone", "as it is", "probe", "as it is, above the probe [95 %]")
    show_table(f"{args.recipe.stem}.yaml on {args.data}, out of fold", heads, table)
    return 0


if __name__ == "__main__":
    run(main)
