"""What is predicted: files, folders, patterns, lists, URLs, Parquet files, data sets of the Hub; streamed in pieces."""

import glob
import hashlib
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from creature import __version__
from creature.data.decode import MAX_BYTES, BadImage, read
from creature.data.files import file_id, list_images
from creature.errors import UserError
from creature.inference.predictor import ImageInput

if TYPE_CHECKING:
    from datasets import Dataset

_URL = re.compile(r"https?://", re.IGNORECASE)


class InputPath(NamedTuple):
    """An image to predict: its name in tables, and its path or URL."""

    id: str
    path: str


class Shard(NamedTuple):
    """Some of the images, always the same ones in the same order; their number where it is known."""

    name: str
    size: int | None
    images: Callable[[], Iterator[ImageInput]]


def list_inputs(paths: Sequence[str], urls: bool = False) -> list[InputPath]:
    """Files, and all images below folders, sorted by id: the path below the folder if one is given, else as typed.

    A `-` stands for a list on the standard input, a line each. Raises UserError for what is not there or given twice.
    """
    inputs: list[InputPath] = []
    for path in _spelled_out(paths):
        if is_table(path):
            raise UserError(f"{path}: images of a table have no file names, which a submission needs")
        if _URL.match(path):
            if not urls:
                raise UserError(f"{path}: a URL is only fetched with --urls")
            inputs.append(InputPath(path, path))
        elif os.path.isdir(path):
            for found in list_images(path):
                name = os.path.relpath(found, path) if len(paths) == 1 else os.path.normpath(found)
                inputs.append(InputPath(file_id(name), found))
        elif os.path.lexists(path):
            inputs.append(InputPath(file_id(os.path.normpath(path)), path))
        else:
            raise UserError(f"{path}: no such file or folder")
    if not inputs:
        raise UserError(f"no images in {', '.join(paths)}")
    places = [item.path if _URL.match(item.path) else file_id(os.path.abspath(item.path)) for item in inputs]
    for names in ([item.id for item in inputs], places):
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise UserError(f"{min(twice)} is given twice")
    return sorted(inputs)


def _spelled_out(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if path == "-":
            yield from filter(None, (line.rstrip("\r\n") for line in sys.stdin))
        elif glob.has_magic(path) and not os.path.lexists(path) and not _URL.match(path):
            if not (found := sorted(glob.glob(path, recursive=True))):
                raise UserError(f"{path}: no file matches this pattern")
            yield from found
        else:
            yield path


def read_inputs(inputs: Sequence[InputPath]) -> Iterator[ImageInput]:
    """The images of listed files and URLs."""
    for item in inputs:
        yield ImageInput(item.id, partial(_fetch if _URL.match(item.path) else _read_file, item.path))


def read_rows(dataset: "Dataset") -> Iterator[ImageInput]:
    """The images of a table with the columns id and image."""
    for row in dataset:
        yield ImageInput(row["id"], partial(read, row["image"]))  # type: ignore[call-overload]


def _read_file(path: str) -> bytes:
    return read({"bytes": None, "path": path})


def _fetch(url: str) -> bytes:
    """The bytes behind a URL; raises BadImage with the reason."""
    import urllib.request  # here, for files need not wait for what speaks HTTP
    from http.client import HTTPException

    try:
        asked = urllib.request.Request(url, headers={"User-Agent": f"creature/{__version__}"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            data = answer.read(MAX_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError; a bad URL is a ValueError
        raise BadImage(f"cannot be fetched: {getattr(error, 'reason', None) or error}") from error
    if not data or len(data) > MAX_BYTES:
        raise BadImage(f"fetched {'more than 256 MiB' if data else 'nothing'}")
    return data


def is_table(path: str) -> bool:
    """Whether images are to be read from a column of the source."""
    return path.startswith("hub:") or path.endswith(".parquet")


def find_shards(paths: Sequence[str], column: str, urls: bool = False) -> list[Shard]:
    """The images of all paths in pieces, whoever asks: ranges of files, row groups, files of the Hub.

    Raises UserError for a source that is not there, or has no such column.
    """
    paths = list(_spelled_out(paths))
    files = [path for path in paths if not is_table(path)]
    pieces: list[Shard] = []
    if files:
        inputs = list_inputs(files, urls)
        size = min(1024, max(32, -(-len(inputs) // 64)))
        for start in range(0, len(inputs), size):
            some = inputs[start : start + size]
            digest = hashlib.sha256("\n".join(item.id for item in some).encode()).hexdigest()
            pieces.append(Shard(f"{some[0].id} and on, {digest}", len(some), partial(read_inputs, some)))
    for path in paths:
        if is_table(path):
            pieces += _hub_pieces(path, column) if path.startswith("hub:") else _parquet_pieces(path, column)
    if not pieces:
        raise UserError(f"no images in {', '.join(paths)}")
    return pieces


def _parquet_pieces(path: str, column: str) -> list[Shard]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {_first_line(error)}") from error
    _check_column(path, column, file.schema_arrow.names)
    name, first, size = file_id(os.path.normpath(path)), 0, os.path.getsize(path)

    def pictures(group: int, first: int) -> Iterator[ImageInput]:
        try:
            rows = ParquetFile(path).iter_batches(64, row_groups=[group], columns=[column])
            values = (value for batch in rows for value in batch.column(0).to_pylist())
            for row, value in enumerate(values, first):
                yield ImageInput(f"{name}/{row:08d}", partial(_embedded, value))
        except (OSError, ArrowException) as error:
            raise UserError(f"{path}: damaged in row group {group}: {_first_line(error)}; fetch it again") from error

    pieces = []
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        rows = f"rows {first} to {first + count - 1} of {size} bytes"
        pieces.append(Shard(f"{name}, {rows}", count, partial(pictures, group, first)))
        first += count
    return pieces


def _hub_pieces(source: str, column: str) -> list[Shard]:
    from datasets import Image, IterableDataset, load_dataset
    from huggingface_hub import HfApi

    name, _, split = source.removeprefix("hub:").rpartition(":")
    if not name or not split:
        raise UserError(f"{source}: a data set of the Hub is written hub:USER/DATASET:SPLIT")
    try:
        revision = HfApi().dataset_info(name).sha  # pinned, or parts might be of several
        table = load_dataset(name, split=split, streaming=True, revision=revision)
        assert isinstance(table, IterableDataset)
        names = table.column_names or list(next(iter(table), {}))
        if column in names:
            table = table.select_columns([column]).cast_column(column, Image(decode=False))
    except Exception as error:  # whatever the library, the network or the Hub raises: the user needs the reason
        raise UserError(f"{source}: cannot be streamed: {_first_line(error)}") from error
    _check_column(source, column, names)

    def pictures(shard: int) -> Iterator[ImageInput]:
        rows = iter(table.shard(table.num_shards, shard))
        for row in itertools.count():
            try:
                value = next(rows)[column]
            except StopIteration:
                return
            except Exception as error:  # as above
                raise UserError(f"{source}: broke off: {_first_line(error)}; run this again, parts go on") from error
            yield ImageInput(f"{name}:{split}/{shard:05d}/{row:08d}", partial(_from_hub, value))

    return [
        Shard(f"{source}@{revision}, file {shard + 1} of {table.num_shards}", None, partial(pictures, shard))
        for shard in range(table.num_shards)
    ]


def _check_column(source: str, column: str, names: Sequence[str]) -> None:
    if column not in names:
        raise UserError(f"--image-column: {source} has no column {column!r}; it has {', '.join(names)}")


def _embedded(value: Mapping[str, Any] | bytes | None) -> bytes:
    """The bytes within a table; a path in one could name any file here, and is never opened."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes) or not data:
        raise BadImage("the table holds no bytes here; embed the images")
    return read({"bytes": data})


def _from_hub(value: Mapping[str, Any]) -> bytes:
    """The bytes within a table, or else of the file of the Hub that it names."""
    path = str(value.get("path"))
    if value.get("bytes") or not path.startswith("hf://datasets/"):
        return _embedded(value)
    from huggingface_hub import HfFileSystem

    try:
        data = HfFileSystem().cat_file(path)
    except Exception as error:  # whatever the network or the Hub raises
        raise BadImage(f"cannot be fetched: {_first_line(error)}") from error
    return read({"bytes": data})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
