"""P12: the main job on this machine's GPU, each part beside what the card can do alone, in one table.

python benchmarks/gpu.py PHOTOS [--photos 6144]

Steps of four networks on batches that are ready, and with deterministic algorithms; recipes/all.yaml on copies of the
photos (JPEG files of any folder), three epochs with its settings as they are; predict.py on the same photos and on
one. Some five minutes. `--rehearsal` runs tiny cases on a CPU, to see that all of it works; nothing is recorded then.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from pictures import jpegs, lay_out
from sides import ROOT, Ratio, drain, in_turns, ratio, record  # first, for it puts this checkout first
from step import bare_loop, make_recipe, our_loop, ready_batches

from creature.console import run, say, show_table
from creature.data.augment import training_augmentation
from creature.data.dataset import read_images
from creature.data.fork_server import fork_server
from creature.data.loader import ImageDataset, RunImages, start_loader
from creature.data.order import BatchRequest
from creature.data.sources import SourceFormat
from creature.device import choose_workers, deterministic_algorithms, usable_cores
from creature.errors import UserError
from creature.recipe import Augment

# Network, pixels, rows of a batch.
NETWORKS = (
    ("resnext101_64x4d", 224, 64),
    ("seresnextaa101d_32x8d", 224, 32),
    ("resnet18", 224, 64),
    ("tf_efficientnet_lite0", 112, 32),
)
REHEARSAL = (("test_resnet", 32, 4),)
STEPS, ROUNDS = 20, 5

# The first answer by timm alone: weights, network, number of classes, photo, pixels.
FIRST_ANSWER = """
import sys, timm, torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.v2.functional import pil_to_tensor
weights, name, classes, photo, size = sys.argv[1:]
model = timm.create_model(name, num_classes=int(classes))
model.load_state_dict(load_file(weights))
device = "cuda" if torch.cuda.is_available() else "cpu"
pixels = pil_to_tensor(Image.open(photo).convert("RGB").resize((int(size), int(size))))[None] / 255
with torch.inference_mode():
    print(model.to(device).eval()(pixels.to(device)).argmax().item())
"""

Row = tuple[str, str, str, str]


def waited(work: Callable[[], None]) -> Callable[[], None]:
    """The work, with what the GPU still has to do of it."""

    def timed() -> None:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return timed


def line(case: str, measured: Ratio, limit: float | None, shown: str, recorded: bool) -> Row:
    """A row of the table, which is recorded, too."""
    if recorded:
        record("P12", case, limit, measured, device=torch.cuda.get_device_name())
    met = "" if limit is None else f"{limit:.2f} {'met' if measured.low <= limit else 'missed'}"
    return case, shown, str(measured), met


def peak_memory(work: Callable[[], None]) -> float:
    """GiB of the GPU's memory that the work takes at most; 0 without one."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 2**30


def exactly(work: Callable[[], None]) -> None:
    """The work, with deterministic algorithms."""
    with deterministic_algorithms(True):
        work()


def measure_steps(networks: tuple[tuple[str, int, int], ...], recorded: bool) -> tuple[list[Row], dict[str, float]]:
    """Rows of each network's step, and the bare rates in images a second by network."""
    rows, rates = [], {}
    for name, size, batch in networks:
        recipe = make_recipe(name, size, batch, device="auto", precision="bf16")
        batches = ready_batches(size, batch, STEPS, pinned=torch.cuda.is_available())
        with torch.random.fork_rng():
            ours, bare = waited(our_loop(recipe, batches)[1]), waited(bare_loop(recipe, batches)[1])
        seconds = in_turns({"ours": ours, "bare": bare, "exact": partial(exactly, ours)}, ROUNDS)
        images = STEPS * batch
        rates[name] = images / statistics.median(seconds["bare"])
        shown = f"{images / statistics.median(seconds['ours']):,.0f}, bare {rates[name]:,.0f} images/s"
        measured = ratio(seconds["ours"], seconds["bare"])
        rows.append(
            line(f"a step of {name}, {size} px, batch {batch}: ours over bare", measured, 1.03, shown, recorded)
        )
        measured = ratio(seconds["exact"], seconds["ours"])
        rows.append(line(f"a step of {name}: deterministic over not", measured, None, "", recorded))
        memory = f"{peak_memory(ours):.2f}, bare {peak_memory(bare):.2f} GiB, both networks there"
        rows.append((f"a step of {name}: peak memory", memory, "", ""))
        del ours, bare
        torch.cuda.empty_cache()
    return rows, rates


def script(*words: str) -> float:
    """Seconds of a whole program."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure_input(photos: Path, bare: float, size: int, batch: int, *, recorded: bool) -> Row:
    """The row of the loader alone, whose workers run already: its time beside that of bare steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table, workers = read_images([str(photos)], SourceFormat(), "images.train"), choose_workers("auto", device)
    images = ImageDataset(table, training_augmentation(size, Augment()))
    requests = [
        BatchRequest([(row, 0) for row in range(start, min(start + batch, len(table)))])
        for start in range(0, len(table), batch)
    ]
    with (
        fork_server("creature.data.loader", "datasets"),
        start_loader(RunImages(images, images), workers, batch * 3 * size**2, device=device) as batches,
    ):
        seconds = in_turns({"input": waited(partial(drain, lambda: batches(requests)))}, 2)["input"]
    rate = len(table) / min(seconds)
    share = bare / rate
    shown = f"{rate:,.0f} images/s from {workers} workers"
    return line("the loader alone: time over bare steps", Ratio(share, share, share, 1), 1.0, shown, recorded)


def measure_run(work: Path, recipe: str, bare: float, settings: list[str], recorded: bool) -> list[Row]:
    """Rows of a training: its third epoch beside the bare rate, the whole beside its steps, and the same bits twice."""
    words = [word for setting in settings for word in ("--set", setting)]
    seconds = script("train.py", "--recipe", recipe, "--out", str(work / "run"), *words)
    history = [json.loads(text) for text in (work / "run/fold-0/history.jsonl").read_text().splitlines()]
    rate, steps = history[-1]["images_per_second"], sum(row["seconds"] for row in history)
    share, whole = bare / rate, (seconds - 15) / steps
    waiting = f"{rate:,.0f} images/s, waiting {history[-1]['waiting']:.0%}"
    return [
        line(
            "the recipe's last epoch: time over bare steps", Ratio(share, share, share, 1), 1 / 0.97, waiting, recorded
        ),
        line(
            "three epochs, whole program less 15 s: over its steps",
            Ratio(whole, whole, whole, 1),
            1.15,
            f"{seconds:.0f} s, steps {steps:.0f} s",
            recorded,
        ),
    ]


def check_bits(work: Path, recipe: str, settings: list[str]) -> Row:
    """Whether two deterministic trainings give the same weights."""
    words = [word for setting in (*settings, "deterministic=true", "schedule.epochs=1") for word in ("--set", setting)]
    for name in ("one", "two"):
        script("train.py", "--recipe", recipe, "--out", str(work / name), *words)
    one, two = ((work / name / "fold-0/model.safetensors").read_bytes() for name in ("one", "two"))
    return "two deterministic trainings", "the same bits" if one == two else "OTHER BITS", "", ""


def measure_predictions(work: Path, photos: Path, count: int, size: int, recorded: bool) -> list[Row]:
    """Rows of predict.py: photos a second past the start, and the first answer, each beside timm alone."""
    fold, first = work / "run/fold-0", next(photos.rglob("*.jpg"))
    config = json.loads((fold / "config.json").read_text())
    name, classes = config["architecture"], str(len(config["label_names"]))
    bare = partial(script, "-c", FIRST_ANSWER, str(fold / "model.safetensors"), name, classes, str(first), str(size))
    seconds = in_turns({"ours": partial(script, "predict.py", str(fold), str(first)), "bare": bare}, 3)
    alone = statistics.median(seconds["ours"])
    shown = f"{alone:.1f} s, bare {statistics.median(seconds['bare']):.1f} s (goal 6)"
    answer = ratio(seconds["ours"], seconds["bare"])
    all_of_them = script("predict.py", str(fold), str(photos), "--batch-size", "128", "--out", str(work / "p.csv"))
    one = line("predict.py: one photo, whole program", answer, None, shown, recorded)
    if (past_start := all_of_them - alone) <= 0:
        say(f"predict.py: {count} photos took no longer than one; more are needed to tell how many it answers a second")
        return [one]
    forward = count / 128 * ready_answer(name, size)
    over = past_start / forward
    rate = f"{count / past_start:,.0f}, bare {count / forward:,.0f} photos/s (goal 3,000 on 16 cores)"
    case = "predict.py past its start: over the network alone"
    return [line(case, Ratio(over, over, over, 1), None, rate, recorded), one]


def ready_answer(name: str, size: int) -> float:
    """Seconds of the network alone for a batch of 128 that is ready."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(name).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    pixels = torch.rand(128, 3, size, size, device=device)

    @torch.inference_mode()
    @torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    def answer() -> None:
        model(pixels)

    return statistics.median(in_turns({"bare": waited(answer)}, ROUNDS)["bare"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="PHOTOS", help="a folder of JPEG photos, also in subfolders")
    parser.add_argument("--photos", type=int, default=6144, help="how many copies of them (%(default)s)")
    parser.add_argument("--rehearsal", action="store_true", help="tiny cases, on a CPU, too")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.rehearsal:
        raise UserError("no GPU is here that torch can use; --rehearsal tries the program on a CPU")
    networks, recipe, recorded = (REHEARSAL if args.rehearsal else NETWORKS), "recipes/all.yaml", not args.rehearsal
    settings = ["folds.train=[0]", "schedule.epochs=3", "backbone.pretrained=false"]
    if args.rehearsal:
        settings += ["backbone.name=test_resnet", "images.size=32", "batch_size=16", "folds.count=2"]
    os.environ["HF_HUB_OFFLINE"] = "1"
    sources, (name, size, batch) = jpegs(args.source), networks[0]
    rows, rates = measure_steps(networks, recorded)
    with TemporaryDirectory() as folder:
        work = Path(folder)
        photos = lay_out(sources, work / "photos", args.photos)
        settings.append(f"images.train=[{photos}]")
        rows.append(measure_input(photos, rates[name], size, batch, recorded=recorded))
        rows += measure_run(work, recipe, rates[name], settings, recorded)
        rows.append(check_bits(work, recipe, settings))
        rows += measure_predictions(work, photos, args.photos, size, recorded)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    title = f"P12 on {card}, {usable_cores()} cores, {args.photos} photos"
    show_table(title, ("case", "figure", "ratio [95 %]", "at most"), rows)
    say(f"torch {torch.__version__}; warm-up, then {ROUNDS} rounds of {STEPS} steps")
    return 0


if __name__ == "__main__":
    run(main)
