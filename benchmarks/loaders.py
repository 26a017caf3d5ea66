"""P1, P2, P13: the input pipeline, cold and from the cache, beside torchvision's, timm's and datasets' loaders.

python benchmarks/loaders.py [FOLDER] [--rounds 15]

Every side makes uint8 batches of 64 random crops (RandomResizedCrop 224 and flip) of the same JPEG files, which lie in
the page cache: in one process on one core, and with two workers. Each is set up as its documentation advises. What the
cache (images.cache) takes to be made is compared with one cold epoch of our own.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import Ready, jpegs, lay_out
from PIL import Image
from sides import ROOT, drain, in_turns, judge

from creature.console import run, say
from creature.data.augment import training_augmentation
from creature.data.dataset import read_images
from creature.data.decode import Encoded, decode
from creature.data.eval_transform import EvalTransform
from creature.data.fork_server import START_METHOD, fork_server
from creature.data.image_cache import CachedImages, ImageCache, open_cache
from creature.data.loader import Batch, ImageDataset, RunImages, start_loader
from creature.data.order import BatchRequest
from creature.data.scan import check_images
from creature.data.sources import SourceFormat
from creature.data.workers import load_batches, start_workers
from creature.errors import UserError
from creature.recipe import Augment

BATCH, SIZE = 64, 224
LARGE = 1280  # pixels of the longer side
OURS, CACHED = "creature", "creature, cached"


def creature(folder: Path, workers: int) -> Callable[[], Any]:
    table = read_images([str(folder)], SourceFormat(), "images.train")
    pictures = ImageDataset(table, training_augmentation(SIZE, Augment()), seed=0)
    return partial(in_batches, pictures, np.arange(len(table)), workers)


def creature_cached(folder: Path, workers: int) -> Callable[[], Any]:
    table = read_images([str(folder)], SourceFormat(), "images.train")
    hashes, rows = check_images(table, frozenset(), "images.train", hash_only=True)[0], np.arange(len(table))
    records = CachedImages(make_cache(table, hashes), hashes, views=False)
    pictures = ImageDataset(
        table.select_columns(["id", "label"]), training_augmentation(SIZE, Augment()), cached=records
    )
    return partial(in_batches, pictures, rows, workers)


def in_batches(pictures: ImageDataset, rows: np.ndarray, workers: int) -> Iterator[Batch]:
    items = [[(int(row), 0) for row in rows[at : at + BATCH]] for at in rows[::BATCH]]
    with load_batches(pictures, items, workers) as batches:
        yield from batches


def make_cache(table: Any, hashes: list[str]) -> ImageCache:
    transform = EvalTransform(SIZE, "squash", (0.5,) * 3)
    return open_cache("memory", table, hashes, rows=range(len(hashes)), transform=transform, title="images.train")


def making(folder: Path) -> Callable[[], None]:
    table = read_images([str(folder)], SourceFormat(), "images.train")
    hashes = check_images(table, frozenset(), "images.train", hash_only=True)[0]

    def make() -> None:
        make_cache(table, hashes)

    return make


def torchvision_on_pil(folder: Path, workers: int) -> Callable[[], Any]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    return lambda: DataLoader(ImageFolder(folder, steps), BATCH, shuffle=True, num_workers=workers)


def torchvision_on_tensors(folder: Path, workers: int) -> Callable[[], Any]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    steps = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])
    data = ImageFolder(folder, steps, loader=lambda path: decode_image(path, ImageReadMode.RGB))
    return lambda: DataLoader(data, BATCH, shuffle=True, num_workers=workers)


def timm(folder: Path, workers: int) -> Callable[[], Any]:
    from timm.data import create_dataset, create_loader

    data = create_dataset("", root=str(folder), is_training=True)
    settings = {"is_training": True, "color_jitter": 0.0, "interpolation": "bilinear", "device": torch.device("cpu")}
    # Its prefetcher would normalize, too; the loader within it ends at uint8, as the other sides do.
    return lambda: create_loader(data, SIZE, BATCH, num_workers=workers, persistent_workers=False, **settings).loader


def datasets(folder: Path, workers: int) -> Callable[[], Any]:
    from datasets import Dataset, Features, Value
    from datasets import Image as Feature
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    paths = sorted(map(str, folder.rglob("*.jpg")))
    steps = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    table = Dataset.from_dict(
        {"image": paths, "label": [0] * len(paths)}, features=Features(image=Feature(mode="RGB"), label=Value("int64"))
    )
    seen = table.with_transform(
        lambda rows: {"image": [steps(image) for image in rows["image"]], "label": rows["label"]}
    )
    return lambda: DataLoader(seen, BATCH, shuffle=True, num_workers=workers)


SIDES = {
    OURS: creature,
    CACHED: creature_cached,
    "torchvision on Pillow": torchvision_on_pil,
    "torchvision on tensors": torchvision_on_tensors,
    "timm": timm,
    "datasets": datasets,
}


def best_of(seconds: dict[str, list[float]]) -> str:
    """The quickest of the others."""
    return min(seconds.keys() - {OURS, CACHED}, key=lambda side: np.median(seconds[side]))


def difference(photos: list[Path]) -> float:
    """The mean difference of our crops to those of images decoded in full, in grey levels."""
    from torchvision.transforms import v2

    view = training_augmentation(SIZE, Augment())
    steps = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomResizedCrop(SIZE), v2.PILToTensor()])
    found = []
    for seed, path in enumerate(photos):
        torch.manual_seed(seed)
        exact = steps(decode(path.read_bytes()))
        found.append((view(Encoded(path.read_bytes()), seed).float() - exact.float()).abs().mean().item())
    return float(np.mean(found))


def measure_hand_over(rounds: int) -> None:
    """Batches of workers that make nothing, in the main process: by shared buffers, and as torch hands them over."""
    ready, count, workers = Ready(BATCH, SIZE), 200, 2
    request = BatchRequest([(row, 0) for row in range(BATCH)])
    images: Any = RunImages(ready, ready)  # type: ignore[arg-type]
    with (
        fork_server("creature.data.loader"),
        start_loader(images, workers, BATCH * 3 * SIZE**2, device=torch.device("cpu")) as batches,
        start_workers(ready, workers, method=START_METHOD) as torch_batches,
    ):
        sides = {
            OURS: lambda: drain(lambda: batches([request] * count)),
            "torch's DataLoader": lambda: drain(lambda: torch_batches([request.items] * count)),
        }
        seconds = in_turns(sides, rounds)
    say(f"hand-over: {BATCH * count / np.median(seconds[OURS]):,.0f} images/s from {workers} workers (goal 4,000)")
    judge("P13", f"hand-over of {count} ready batches of {BATCH}", OURS, seconds, {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared/data/photos")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    photos, cores = jpegs(args.folder), os.sched_getaffinity(0)
    large = [path for path in photos if max(Image.open(path).size) >= LARGE]
    if not large:
        raise UserError(f"{args.folder}: no photo has {LARGE} pixels; add some, for P2 is of large ones, too")
    for title, some, count, limit in (("all photos", photos, 256, 1 / 1.4), (f"{LARGE} px and more", large, 64, 1 / 2)):
        grey = round(difference(some), 3)
        say(f"{title}: {len(some)} photos; mean difference to the exact path {grey} of 255")
        for workers in (0, 2):
            with tempfile.TemporaryDirectory() as name:
                folder = lay_out(some, Path(name), count * max(1, workers))
                os.sched_setaffinity(0, cores if workers else {min(cores)})
                passes = {side: partial(drain, build(folder, workers)) for side, build in SIDES.items()}
                seconds = in_turns(passes, args.rounds)
                best = best_of(seconds)
                where = f"{title}, {workers} workers" if workers else f"{title}, one core"
                judge("P1", where, OURS, {side: seconds[side] for side in seconds if side != CACHED}, {best: limit})
                judge("P2", where, CACHED, seconds, {best: 1 / 4})
                if workers:
                    sides = {"making the cache": making(folder), "one cold epoch": passes[OURS]}
                    judge("P2", title, "making the cache", in_turns(sides, args.rounds), {"one cold epoch": 1.1})
    os.sched_setaffinity(0, cores)
    measure_hand_over(args.rounds)
    return 0


if __name__ == "__main__":
    run(main)
