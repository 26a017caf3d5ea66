"""Predictions of very many images: shards in Parquet, by any number of processes and hosts that share a folder.

The processes do not talk: which images are in which shard, and who writes it, follows from the inputs alone.
"""

import hashlib
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from creature.console import say, warn
from creature.errors import UserError
from creature.inference.inputs import Shard
from creature.inference.prediction import Prediction
from creature.inference.prediction_files import write_full
from creature.inference.predictor import Predictor
from creature.inference.prepare import ImageInput
from creature.storage import file_hash


def process() -> tuple[int, int]:
    """This process's rank and the number of processes, as `accelerate launch` and torchrun set them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def images_of(shards: Sequence[Shard]) -> tuple[Iterator[ImageInput], int | None]:
    """The images of shards, one after another, and how many they are; None where that is not known."""
    sizes = [shard.size for shard in shards]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    return chain.from_iterable(shard.images() for shard in shards), total


def write_shards(
    out: Path,
    shards: Sequence[Shard],
    predict: Callable[[Sequence[Shard]], Iterator[Prediction]],
    *,
    predictor: Predictor,
    top: int,
) -> int:
    """Write this process's shards that are not there yet; the number of images in them that could not be read.

    Raises UserError for a folder that holds predictions of other images or another model.
    """
    _claim(out, shards, predictor, top=top)
    rank, processes = process()
    written = Counter[bool]()  # by whether the image could not be read

    def count(rows: Iterator[Prediction]) -> Iterator[Prediction]:
        for row in rows:
            written[row.broken] += 1
            yield row

    for number in range(rank, len(shards), processes):
        path = out / f"part-{number:05d}-of-{len(shards):05d}.parquet"
        if not path.exists():
            write_full(path, count(predict([shards[number]])), top, features=predictor.features)
    existing = len(list(out.glob("part-*.parquet")))
    prefix = f"process {rank}: " if processes > 1 else ""
    say(f"{prefix}{written.total()} rows written; {existing} of {len(shards)} shards are in {out}")
    if written[True]:
        warn(f"{prefix}{written[True]} images could not be read; the column status says why")
    return written[True]


def _claim(out: Path, shards: Sequence[Shard], predictor: Predictor, *, top: int) -> None:
    """Write the images, the model and the options of a folder's shards, or check that they are what they were."""
    names = json.dumps([(shard.name, shard.size) for shard in shards])
    described = {
        "pictures": hashlib.sha256(names.encode()).hexdigest(),
        "model": [file_hash(file) for file in predictor.files],
        "features": predictor.features,
        "strategy": predictor.blending.strategy,
        "weights": predictor.blending.weights.tolist(),
        "top": top,
        "mirror": predictor.blending.mirror or None,  # older folders, all without mirror images, have no such key
        "calibration": predictor.calibration and predictor.calibration.temperature,  # older folders have none
    }
    path = out / "_inputs.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(described, indent=1) + "\n"
        if not path.exists():
            temporary = out / f"._inputs.json.{socket.gethostname()}.{os.getpid()}"
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--out: {out} cannot hold shards: {error}; name another folder") from error
    if changed := [key for key, value in json.loads(text).items() if before.get(key) != value]:
        keys = " and ".join(changed).replace("pictures", "images")
        raise UserError(f"--out: {out} holds predictions with other {keys}; name another folder, or remove it")
