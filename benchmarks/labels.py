"""Wrong labels: how many of those flipped in secret stand first in a run's list; beside cleanlab's rankings.

python benchmarks/labels.py --data DIR --weights FILE.safetensors

DIR holds train/ and val/ with a folder a class. Each draw puts 5 % of the images into another class's folder, trains
the recipe's folds on all of them, and counts how many of as many rows as were flipped, from the top of
creature.reporting.labels' list, are flipped ones. cleanlab ranks the same out-of-fold predictions.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from cleanlab.rank import get_label_quality_scores
from sides import ROOT, say, show_table

import train
from creature.console import run
from creature.data.dataset import read_images
from creature.data.sources import SourceFormat
from creature.errors import UserError
from creature.metrics.accuracy import Count
from creature.metrics.label_errors import suspects
from creature.reporting.study import read_runs

SHARE = 0.05
RANKINGS = {
    "self-confidence": {"method": "self_confidence"},
    "normalized margin": {"method": "normalized_margin"},
    "confidence-weighted entropy": {"method": "confidence_weighted_entropy"},
    "self-confidence, adjusted": {"method": "self_confidence", "adjust_pred_probs": True},
    "normalized margin, adjusted": {"method": "normalized_margin", "adjust_pred_probs": True},
}


def plant(data: Path, out: Path, seed: int) -> set[str]:
    """Links to all images of train/ and val/ in class folders, some of them in a wrong one; the names of these."""
    table = read_images([str(data / "train"), str(data / "val")], SourceFormat(), "--data")
    names, labels = table.features["label"].names, np.array(table["label"])
    rng = np.random.default_rng(seed)
    flipped = rng.choice(len(labels), round(SHARE * len(labels)), replace=False)
    labels[flipped] = (labels[flipped] + rng.integers(1, len(names), len(flipped))) % len(names)
    found = []
    for row, (image, label) in enumerate(zip(table["image"], labels, strict=True)):
        source = Path(image["path"]).resolve()
        path = out / names[label] / f"{row:06d}{source.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source)
        found.append(f"{names[label]}/{path.name}")
    return {found[row] for row in flipped}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors of the recipe's backbone")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/laptop.yaml", help="(recipes/laptop.yaml)")
    parser.add_argument("--draws", type=int, default=3, help="of the flipped labels (%(default)s)")
    args = parser.parse_args()
    counts: dict[str, list[Count]] = {}
    for draw in range(args.draws):
        with tempfile.TemporaryDirectory() as name:
            wrong = plant(args.data, Path(name) / "data", draw)
            settings = [f"images.train=[{name}/data]", f"backbone.weights={args.weights.resolve()}"]
            words = [word for setting in settings for word in ("--set", setting)]
            train.main(["--recipe", str(args.recipe), "--out", f"{name}/run", *words])
            unseen = read_runs([f"{name}/run"], None)[0].unseen
            held, probabilities = unseen.rows, unseen.probabilities
            flipped = np.array([held_id.removeprefix("data/") in wrong for held_id in held.ids])
            if flipped.sum() != len(wrong):
                raise UserError(f"{args.data}: images with flipped labels were left out; mend or remove broken ones")
            orders = {"ours": suspects(probabilities, held.labels)}
            for ranking, how in RANKINGS.items():
                scores = get_label_quality_scores(held.labels, probabilities, **how)
                orders[f"cleanlab, {ranking}"] = np.argsort(scores, kind="stable")
            for who, order in orders.items():
                found = Count(int(flipped[order[: len(wrong)]].sum()), len(wrong))
                counts.setdefault(who, []).append(found)
        ours = counts["ours"][-1]
        say(f"draw {draw}: of {ours.n} flipped labels, {ours.correct} are among the first {ours.n}: {ours}")
    rows = [(who, *(str(count) for count in found)) for who, found in counts.items()]
    heads = ("ranking", *(f"draw {draw} [95 %]" for draw in range(args.draws)))
    show_table(f"Flipped labels among as many rows as were flipped, {args.recipe.stem}.yaml", heads, rows)
    return 0


if __name__ == "__main__":
    run(main)
