"""Predictions of very many images: Parquet parts, written by any number of processes and hosts that share a folder.

The processes do not talk: which images are in which part, and who writes it, follows from the inputs alone.
"""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from creature.console import say, warn
from creature.errors import UserError
from creature.inference.inputs import Shard
from creature.inference.prediction import Prediction
from creature.inference.prediction_files import write_full
from creature.inference.predictor import Predictor
from creature.storage import file_hash


def process() -> tuple[int, int]:
    """This process's number, and how many there are, as `accelerate launch` and torchrun tell them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


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
    names = hashlib.sha256(json.dumps([(shard.name, shard.size) for shard in shards]).encode()).hexdigest()
    how = {"strategy": predictor.strategy, "weights": predictor.weights.tolist(), "top": top}
    how["mirror"] = predictor.mirror or None  # as older parts say it, which know no such word
    model = [file_hash(file) for file in predictor.files]
    _claim(out, {"pictures": names, "model": model, "features": predictor.features, **how})
    rank, processes = process()
    paths = {at: out / f"part-{at:05d}-of-{len(shards):05d}.parquet" for at in range(rank, len(shards), processes)}
    broken = written = 0

    def counted(rows: Iterator[Prediction]) -> Iterator[Prediction]:
        nonlocal broken, written
        for row in rows:
            broken += row.broken
            written += 1
            yield row

    for at, path in paths.items():
        if not path.exists():
            write_full(path, counted(predict([shards[at]])), top, predictor.features)
    there = len(list(out.glob("part-*.parquet")))
    who = f"process {rank}: " if processes > 1 else ""
    say(f"{who}{written} rows written; {there} of {len(shards)} parts are in {out}")
    if broken:
        warn(f"{who}{broken} images could not be read; the column status says why")
    return broken


def _claim(out: Path, mark: dict[str, Any]) -> None:
    """Say what the parts hold, or check that it is what they held before."""
    path = out / "_inputs.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(mark, indent=1, default=str) + "\n"
        if not path.exists():
            part = out / f"._inputs.json.{socket.gethostname()}.{os.getpid()}"
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--out: {out} cannot hold parts: {error}; name another folder") from error
    if changed := [key for key, value in json.loads(text).items() if before.get(key) != value]:
        named = " and ".join(changed).replace("pictures", "images")
        raise UserError(f"--out: {out} holds predictions with other {named}; name another folder, or remove it")
