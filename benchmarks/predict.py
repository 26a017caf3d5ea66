"""What predictions cost: beside a plain loop (P6), five members beside five runs (P5), and to start (P7).

python benchmarks/predict.py P5|P6|P7 [PHOTOS] [ROUNDS]

Random weights, saved as train.py saves them, and real photographs, repeated: the cost of a JPEG varies fivefold. P6 is
predict's own path from files to a CSV against the loop of timm's inference.py (eager, channels_last, its loader with
two workers; in a process of its own, for ours keeps what it frees), and against the bare forward of the fused model on
ready tensors, which leaves no core for decoding. P5 and P7 are whole processes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import timm
import torch
from sides import ROOT, in_turns, judge, ratio, record
from timm.data import create_dataset, create_loader
from timm.data.config import resolve_data_config
from torch import nn

from creature.console import run, say
from creature.data.eval_transform import EvalTransform
from creature.data.folds import FoldTable, folds_hash
from creature.device import usable_cores
from creature.inference import inputs, members, prediction_files
from creature.inference.classifier import load
from creature.inference.prediction import to_predictions
from creature.inference.predictor import predict_batches
from creature.metrics.predictions import save_predictions
from creature.publishing.onnx_export import export_onnx
from creature.recipe import Recipe
from creature.recipe_file import check_recipe
from creature.results import EpochScore, FoldResult, hash_files, write_result
from creature.run import held_out_predictions, kept_epoch
from creature.training.backbone import build_backbone, mean_and_std, timm_config
from creature.training.checkpoint import host_weights, save_weights
from creature.training.finish import write_model_folder
from creature.training.run_folder import open_run, share_folds

MODELS = ("tf_efficientnet_lite0", "mobilenetv3_small_100")
NAMES = ("beetle", "bird", "butterfly", "cat", "deer", "dog", "fish", "fox", "frog", "horse", "owl", "snake")
SIZE, MEMBERS, BATCH = 224, 5, 32
ROUNDS = {"P5": 3, "P6": 15, "P7": 15}

BARE = """
import json, sys
import timm, torch
from safetensors.torch import load_file
config = json.load(open(sys.argv[1] + "/config.json"))
model = timm.create_model(config["architecture"], num_classes=config["num_classes"])
model.load_state_dict(load_file(sys.argv[1] + "/model.safetensors"))
with torch.inference_mode():
    print(model.eval()(torch.zeros(1, *config["pretrained_cfg"]["input_size"])).softmax(1).max(1))
"""


def write_run(run: Path, architecture: str) -> None:
    """A run of finished folds with random weights and BatchNorm statistics."""
    settings = {
        "name": "benchmark",
        "images": {"train": ["photos"], "size": SIZE, "normalize": "imagenet"},
        "folds": {"count": MEMBERS},
        "backbone": {"name": architecture, "pretrained": False},
    }
    recipe = check_recipe(settings, "the benchmark's recipe")
    rows = np.arange(5 * len(NAMES))
    ids = pa.chunked_array([[f"{row:02d}" for row in rows]])
    hashes = pa.chunked_array([[f"{row:032x}" for row in rows]])
    folds = FoldTable(
        MEMBERS,
        0,
        NAMES,
        fingerprint="benchmark",
        ids=ids,
        labels=rows % len(NAMES),
        partitions=(rows % MEMBERS,),
        hashes=hashes,
        bad={},
    )
    open_run(run, recipe, {"weights": None, "teacher": None})
    folds = share_folds(run, folds)
    for fold in range(MEMBERS):
        torch.manual_seed(fold)
        model = build_backbone(recipe.backbone, len(NAMES), SIZE)
        for module in model.modules():
            if (
                isinstance(module, nn.BatchNorm2d)
                and module.running_mean is not None
                and module.running_var is not None
            ):
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        write_fold(run, recipe, folds, fold=fold, model=model)


def write_fold(run: Path, recipe: Recipe, folds: FoldTable, *, fold: int, model: nn.Module) -> None:
    """The folder of a finished fold, which held-out predictions say nothing of."""
    folder = run / f"fold-{fold}"
    kept = kept_epoch(folder, 0)
    kept.mkdir(parents=True)
    save_weights(kept / "model.safetensors", host_weights(model))
    held = np.flatnonzero(folds.held_out(fold))
    logits = np.zeros((len(held), len(NAMES)), dtype=np.float32)
    save_predictions(kept / "held_out.safetensors", held_out_predictions(folds, held, logits))
    mean, std = mean_and_std(recipe.backbone.name, "imagenet")
    config = timm_config(model, NAMES, EvalTransform(SIZE, recipe.images.crop_mode, mean), std=std)
    write_model_folder(folder, recipe, config=config, epoch=0)
    result = FoldResult(
        fold=fold,
        selected=False,
        epoch=1,
        n=len(held),
        correct=1,
        last=EpochScore(n=len(held), correct=1),
        class_counts=[5] * len(NAMES),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=1.0,
        folds=folds_hash(folds),
        sha256=hash_files(folder, ("model.safetensors",)),
    )
    write_result(folder / "result.json", result)


def write_photos(folder: Path, photos: Path, count: int) -> Path:
    """So many photographs, repeated from those of a folder."""
    folder.mkdir()
    found = [item.path for item in inputs.list_inputs([str(photos)])]
    for number, path in enumerate(islice(cycle(found), count)):
        shutil.copyfile(path, folder / f"{number:05d}{Path(path).suffix}")
    return folder


def throughput(work: Path, photos: Path, rounds: int, architecture: str, count: int) -> None:
    """P6 of a model."""
    folder = write_photos(work / "photos", photos, count)
    write_run(work / "run", architecture)
    fold = work / "run" / "fold-0"
    predictor = load(fold, device="cpu").predictor
    listed = inputs.list_inputs([str(folder)])

    def predict() -> None:
        answers = predict_batches(predictor, inputs.read_inputs(listed), BATCH, title="predicting", total=count)
        prediction_files.write_full(work / "ours.csv", to_predictions(answers, predictor, 1), 1)

    apart = ProcessPoolExecutor(1, get_context("spawn"))

    def loop() -> float:
        took, said[:] = apart.submit(timm_loop, fold, folder).result()
        return took

    said: list[float] = []
    member = members.load_member(fold, torch.device("cpu"), fused=True)
    ready = [member.normalize(torch.zeros(BATCH, 3, SIZE, SIZE, dtype=torch.uint8))] * (count // BATCH)

    @torch.inference_mode()
    def forwards() -> None:
        for pixels in ready:
            member.model(pixels)

    predict(), loop()
    ours = [float(line.split(",")[3]) for line in (work / "ours.csv").read_text().splitlines()[1:]]
    np.testing.assert_allclose(ours, said, atol=1e-4)
    sides = {"predict": predict, "timm's loop": loop, "bare forward": forwards}
    limits = {"timm's loop": 1 / 1.4, "bare forward": 1 / 0.93}
    judge("P6", f"{architecture}, {count} photos", "predict", in_turns(sides, rounds), limits)
    apart.shutdown()


@cache
def eager_and_loader(fold: Path, folder: Path) -> tuple[nn.Module, Iterable[tuple[torch.Tensor, torch.Tensor]]]:
    eager = timm.create_model(f"local-dir:{fold}", pretrained=True).eval().to(memory_format=torch.channels_last)
    data, seen = create_dataset("", root=str(folder)), resolve_data_config(model=eager)
    return eager, create_loader(data, batch_size=BATCH, num_workers=2, device=torch.device("cpu"), **seen)


@torch.inference_mode()
def timm_loop(fold: Path, folder: Path) -> tuple[float, list[float]]:
    """Seconds of a pass over the photos, and the largest probability of each."""
    torch.set_num_threads(usable_cores())
    eager, loader = eager_and_loader(fold, folder)
    began = time.perf_counter()
    said = [eager(pixels).softmax(-1).topk(1)[0].flatten() for pixels, _ in loader]
    return time.perf_counter() - began, torch.cat(said).tolist()


def program(*words: object) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a program of this checkout, which must end well."""
    began = time.perf_counter()
    running = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(running.pid, 0)
    took = time.perf_counter() - began
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {running.returncode}")
    return took, used.ru_maxrss * 1024


def ensembles(work: Path, photos: Path, rounds: int, architecture: str, count: int, limit: float) -> None:
    """P5 of a model."""
    folder, run = write_photos(work / "photos", photos, count), work / "run"
    write_run(run, architecture)
    peaks: dict[str, list[int]] = {"five members": [], "one member": [], "predict.py": []}

    def ensemble(kind: str, path: Path) -> float:
        took, peak = program("ensemble.py", path, "--images", folder, "--device", "cpu", "--out", work / "all.csv")
        peaks[kind].append(peak)
        return took

    def singly() -> float:
        words = [
            (run / f"fold-{fold}", folder, "--device", "cpu", "--out", work / "one.csv") for fold in range(MEMBERS)
        ]
        runs = [program("predict.py", *some) for some in words]
        peaks["predict.py"] += [peak for _, peak in runs]
        return sum(took for took, _ in runs)

    seconds = in_turns({"ensemble.py": lambda: ensemble("five members", run), "five predict.py": singly}, rounds)
    for _ in range(rounds):
        ensemble("one member", run / "fold-0")
    judge("P5", f"{architecture}, {count} photos", "ensemble.py", seconds, {"five predict.py": limit})
    weights = (run / "fold-0/model.safetensors").stat().st_size
    room = float(np.median(peaks["one member"])) - weights + MEMBERS * weights * 1.1
    found = ratio(peaks["five members"], [room] * len(peaks["five members"]))
    record("P5", f"{architecture}: peak memory of ensemble.py over base + 1.1 K weights", 1.0, found, "memory")
    shown = ", ".join(f"{name} {np.median(each) / 2**20:.0f}" for name, each in peaks.items())
    say(f"peak memory in MiB: {shown}; weights {weights / 2**20:.0f}; over base + 1.1 K weights {found}, at most 1")


def starts(work: Path, photos: Path, rounds: int) -> None:
    """P7: seconds for what needs no torch, a ratio for what does."""
    (photo,) = write_photos(work / "photo", photos, 1).iterdir()
    for architecture in MODELS:
        write_run(work / architecture, architecture)
    fold = work / MODELS[0] / "fold-0"
    onnx, mistaken = work / "model.onnx", work / "mistaken.yaml"
    export_onnx(fold, onnx)
    mistaken.write_text("name: mistaken\nlearning_rate: 3\n")
    quick: dict[str, tuple[float, list[object]]] = {
        **{f"{script} --help": (0.25, [script, "--help"]) for script in ("train.py", "predict.py", "ensemble.py")},
        "a recipe's mistakes": (0.5, ["train.py", "--recipe", mistaken]),
        "one image with an ONNX file": (1.0, ["predict.py", onnx, photo]),
    }
    for name, (limit, words) in quick.items():
        told = subprocess.run(
            [sys.executable, "-X", "importtime", *map(str, words)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        torchless = not any(line.rpartition("|")[2].strip() == "torch" for line in told.stderr.splitlines())
        took = in_turns({name: start(words, told.returncode)}, rounds)[name]
        found = ratio(took, [1.0] * len(took))
        record("P7", name, limit, found, "seconds", torch_imported=not torchless)
        say(f"P7 {name}: {found} s, at most {limit}; torch is {'not ' if torchless else ''}imported")
    for architecture in MODELS:
        fold = work / architecture / "fold-0"
        sides = {
            "predict.py": start(["predict.py", fold, photo, "--device", "cpu"], 0),
            "import, load, forward": start(["-c", BARE, fold], 0),
        }
        seconds = in_turns(sides, rounds)
        judge("P7", f"{architecture}, one image", "predict.py", seconds, {"import, load, forward": 1.1})


def start(words: list[object], code: int) -> Callable[[], None]:
    """Runs a program, which must end with the exit code."""

    def side() -> None:
        done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, check=False)
        if done.returncode != code:
            raise SystemExit(f"{words} ended with {done.returncode}: {done.stderr.decode()}")

    return side


def main() -> int:
    """Measure one goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goal", choices=sorted(ROUNDS))
    parser.add_argument("photos", nargs="?", type=Path, default=ROOT.parent / "shared" / "data" / "photos")
    parser.add_argument("rounds", nargs="?", type=int)
    args = parser.parse_args()
    rounds = args.rounds or ROUNDS[args.goal]
    lite, small = MODELS
    cases: dict[str, list[Callable[[Path], None]]] = {
        "P5": [
            lambda work: ensembles(work, args.photos, rounds, lite, 200, 0.55),
            lambda work: ensembles(work, args.photos, rounds, small, 1000, 0.42),
        ],
        "P6": [
            lambda work: throughput(work, args.photos, rounds, lite, 128),
            lambda work: throughput(work, args.photos, rounds, small, 256),
        ],
        "P7": [lambda work: starts(work, args.photos, rounds)],
    }
    for case in cases[args.goal]:
        with tempfile.TemporaryDirectory() as name:
            case(Path(name))
    return 0


if __name__ == "__main__":
    run(main)
