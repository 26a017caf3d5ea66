"""Goal P10: wall time to an accuracy on test images, against timm's train.py; same weights, same images, same cores.

python benchmarks/accuracy.py --data DIR --weights FILE.safetensors
python benchmarks/accuracy.py --data DIR --weights FILE.safetensors --recipe MINE.yaml --peer-from runs/accuracy-laptop

DIR holds train/ and val/ with a folder a class, test/ with images, and test_labels.csv (image_name,label). Both sides
train on train/ and hold out val/. timm gets the best of three rates, screened with one seed on the test images. Each
training is a process of its own, and its clock runs from the start of the process, imports included, until an epoch's
weights are on disk; what each epoch says of the test images is asked afterwards. A finished training is a line of
trainings.jsonl: a benchmark that was broken off goes on, and changed code or another recipe is trained anew.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from PIL import Image
from sides import ROOT, ratio, record
from timm.data import create_transform, resolve_data_config

import predict
from creature.console import run, say, show_table
from creature.data.files import list_images, names_of, natural_key, read_labels
from creature.device import usable_cores
from creature.errors import UserError
from creature.recipe_file import load_recipe

PEER = Path(__file__).parent / "timm_train.py"
MODEL, SIZE = "tf_efficientnet_lite0", 96  # of the peer
TARGET = 0.78
LIMIT = 0.20


class Training(NamedTuple):
    """A finished training: seconds to the end of each epoch and of the process, and accuracy on the test images."""

    ends: list[float]
    whole: float
    accuracy: list[float]

    def seconds_to(self, target: float) -> float | None:
        """Seconds to the first epoch that reaches the accuracy; None where none does."""
        return next((end for end, found in zip(self.ends, self.accuracy, strict=True) if found >= target), None)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, val/, test/, test_labels.csv")
    parser.add_argument("--weights", type=Path, required=True, help=f"safetensors of {MODEL}, in timm's naming")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/laptop.yaml", help="(recipes/laptop.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe's setting")
    parser.add_argument("--seeds", type=int, default=5, help="pairs of trainings (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-2, 3e-3, 1e-3], help="of timm (%(default)s)")
    parser.add_argument("--peer-epochs", type=int, default=8, help="of timm (%(default)s)")
    parser.add_argument("--peer-only", action="store_true", help="train timm's side alone, and compare later")
    parser.add_argument("--peer-from", type=Path, metavar="DIR", help="take timm's trainings of another --out")
    parser.add_argument("--out", type=Path, help="where trainings are kept (runs/accuracy-NAME)")
    return parser.parse_args()


def timed(command: Sequence[str], kept: Callable[[int], Path], out: Path) -> tuple[list[float], float]:
    """Seconds from the start of a process until each epoch (from 1) is kept, and until its end; its log lies by out."""
    ends, log = [], out.with_suffix(".log")
    # No training may find what an earlier one knew of the images.
    cold = {"XDG_CACHE_HOME": str(out / "cache"), "HF_DATASETS_CACHE": str(out / "cache/datasets")}
    with log.open("w") as file:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **cold, "OMP_NUM_THREADS": str(usable_cores())},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        over = False
        while not over:
            time.sleep(0.02)
            over = process.poll() is not None
            while kept(len(ends) + 1).exists():
                ends.append(time.perf_counter() - began)
    whole = time.perf_counter() - began
    if process.returncode:
        raise UserError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return ends, whole


def share_right(said: Iterator[tuple[str, str]], data: Path) -> float:
    """Accuracy of (image, class name) pairs on the images that test_labels.csv names."""
    predicted = dict(said)
    labels = read_labels(str(data / "test_labels.csv"))
    right = [predicted[image] == labels[name] for image, name in names_of(labels, predicted).items()]
    return sum(right) / len(right)


def train_ours(args: argparse.Namespace, seed: int, out: Path) -> Training:
    """Train with the recipe as a user does, then ask predict.py what each epoch's weights say of the test images."""
    settings = {
        "images.train": json.dumps([str(args.data / "train")]),
        "images.validation": json.dumps([str(args.data / "val")]),
        "folds.count": 1,
        "folds.train": [0],
        "backbone.weights": args.weights,
        "checkpoint.every_epochs": 1,
        "device": "cpu",
        "seed": seed,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    more = [word for each in args.set for word in ("--set", each)]
    fold = out / "run/fold-0"
    ends, whole = timed(
        ["train.py", "--recipe", str(args.recipe), "--out", str(out / "run"), *words, *more],
        lambda epoch: fold / f"kept/epoch-{epoch:04d}",
        out,
    )

    def said(epoch: int) -> Iterator[tuple[str, str]]:
        model, answers = fold / f"kept/epoch-{epoch:04d}", out / "answers.csv"
        shutil.copy(fold / "config.json", model)
        with redirect_stdout(io.StringIO()):
            predict.main([str(model), str(args.data / "test"), "--out", str(answers), "--format", "submission"])
        with answers.open(newline="") as file:
            yield from ((name, label) for name, label in list(csv.reader(file))[1:])

    return Training(ends, whole, [share_right(said(1 + k), args.data) for k in range(len(ends))])


def train_peer(args: argparse.Namespace, rate: float, seed: int, out: Path) -> Training:
    """Train with timm, then ask each epoch's checkpoint, through timm's own view, about the test images."""
    settings = {
        "weights": args.weights,
        "output": out / "timm",
        "lr": rate,
        "epochs": args.peer_epochs,
        "img-size": SIZE,
        "workers": usable_cores(),
        "seed": seed,
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]

    def checkpoint(epoch: int) -> Path:
        return out / f"timm/checkpoint-{epoch - 1}.pth.tar"

    ends, whole = timed([str(PEER), str(args.data), *words], checkpoint, out)
    names = sorted((folder.name for folder in (args.data / "train").iterdir() if folder.is_dir()), key=natural_key)
    pictures = list_images(str(args.data / "test"))

    @torch.inference_mode()
    def said(epoch: int) -> Iterator[tuple[str, str]]:
        model = timm.create_model(MODEL, num_classes=len(names), checkpoint_path=str(checkpoint(epoch))).eval()
        view: Any = create_transform(**resolve_data_config({"img_size": SIZE}, model=model))
        for start in range(0, len(pictures), 32):
            some = pictures[start : start + 32]
            logits = model(torch.stack([view(Image.open(path).convert("RGB")) for path in some]))
            for path, found in zip(some, logits.argmax(1).tolist(), strict=True):
                yield os.path.relpath(path, args.data / "test"), names[found]

    return Training(ends, whole, [share_right(said(1 + k), args.data) for k in range(len(ends))])


def digest(*files: Path) -> str:
    """One hash of the files' contents."""
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def once(name: dict[str, Any], train: Callable[[Path], Training], out: Path, logs: Sequence[Path]) -> Training:
    """The training of this name from one of the logs; trained now, and added to the first, where it is in none."""
    lines = [json.loads(line) for log in logs if log.exists() for line in log.read_text().splitlines()]
    for line in lines:
        if line["name"] == name:
            return Training(**line["training"])
    title = " ".join(f"{key} {name[key]}" for key in ("side", "rate", "recipe", "seed") if key in name)
    say(f"training: {title}")
    work = out / "training"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    training = train(work)
    shutil.rmtree(work)
    with logs[0].open("a") as file:
        file.write(json.dumps({"name": name, "training": training._asdict()}) + "\n")
    reached = " ".join(f"{found:.3f}" for found in training.accuracy)
    say(f"  {training.whole:.0f} s; accuracy after each epoch: {reached}")
    return training


def compare(ours: Sequence[Training], peers: Sequence[Training], title: str) -> None:
    """Record under a title the ratios of the times to timm's own last accuracy, and to a fixed one, seed by seed."""
    last = [peer.accuracy[-1] for peer in peers]
    rows = []
    for case, targets in {
        f"{title}: time to the last accuracy of timm's train.py": last,
        f"{title}: time to {TARGET}": [TARGET] * len(peers),
    }.items():
        took = [side.seconds_to(target) for side, target in zip(ours, targets, strict=True)]
        theirs = [side.seconds_to(target) for side, target in zip(peers, targets, strict=True)]
        if None in took:
            rows.append((case, f"not reached with {took.count(None)} of {len(took)} seeds", ""))
            continue
        whole = [seconds or side.whole for seconds, side in zip(theirs, peers, strict=True)]
        found = ratio([seconds for seconds in took if seconds is not None], whole)
        never = theirs.count(None)
        note = f"timm never reaches it with {never} of {len(peers)} seeds, and counts with its whole time"
        figures = {"timm_accuracy": last, "accuracy": [side.accuracy[-1] for side in ours]}
        record("P10", case, LIMIT, found, **figures, note=note if never else "")
        rows.append((case, str(found), f"{LIMIT:.2f} {'met' if found.low <= LIMIT else 'missed'}"))
        if never:
            say(f"{case}: {note}")
    show_table(f"P10, {len(ours)} seeds, {usable_cores()} cores", ("case", "ours over timm [95 %]", "at most"), rows)


def main() -> int:
    args = parse()
    args.data, args.weights = args.data.resolve(), args.weights.resolve()
    recipe = load_recipe(args.recipe, args.set).name
    out = (args.out or ROOT / f"runs/accuracy-{recipe}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(usable_cores())
    packages = {name: version(name) for name in ("torch", "timm")}
    here = {"data": str(args.data), "weights": digest(args.weights), "host": platform.node(), "cores": usable_cores()}
    log, own = out / "trainings.jsonl", digest(ROOT / "train.py", *(ROOT / "creature").rglob("*.py"))
    peer_logs = [log, args.peer_from / "trainings.jsonl"] if args.peer_from else [log]

    def peer(rate: float, seed: int) -> Training:
        name = {"side": "timm", "rate": rate, "seed": seed, "epochs": args.peer_epochs, "code": digest(PEER)}
        return once(name | here | packages, lambda work: train_peer(args, rate, seed, work), out, peer_logs)

    def ours(seed: int) -> Training:
        name = {"side": "creature", "recipe": recipe, "seed": seed, "settings": [digest(args.recipe), *args.set]}
        return once(name | {"code": own} | here | packages, lambda work: train_ours(args, seed, work), out, [log])

    best = max(args.rates, key=lambda rate: peer(rate, 0).accuracy[-1])
    say(f"timm's best rate is {best:g}, of {', '.join(f'{rate:g}' for rate in args.rates)}")
    pairs = [(peer(best, seed), None if args.peer_only else ours(seed)) for seed in range(args.seeds)]
    lines = [
        (name, seed, f"{side.whole:.0f}", *(f"{part:.3f}" for part in (side.accuracy[0], side.accuracy[-1])))
        for seed, pair in enumerate(pairs)
        for name, side in zip(("timm", recipe), pair, strict=True)
        if side
    ]
    show_table("Trainings", ("side", "seed", "seconds", "accuracy after the first epoch", "after the last"), lines)
    if not args.peer_only:
        title = " ".join([recipe, *args.set, "on", args.data.name])
        compare([own for _, own in pairs if own], [peer for peer, _ in pairs], title)
    return 0


if __name__ == "__main__":
    run(main)
