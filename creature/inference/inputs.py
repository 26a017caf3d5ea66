"""Images to predict: files, folders, patterns, lists, URLs, Parquet files, data sets of the Hub; streamed in shards."""

import glob
import hashlib
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from creature import __version__
from creature.data.decode import MAX_BYTES, BadImage, read
from creature.data.files import file_id, list_images
from creature.data.tables import is_table, load_table
from creature.errors import UserError, first_line, network_reason
from creature.inference.prepare import ImageInput

if TYPE_CHECKING:
    from datasets import Dataset

_URL = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class InputPath:
    """An image to predict: its name in tables, and its path or URL."""

    id: str
    path: str


@dataclass(frozen=True)
class Shard:
    """A part of all images, which has the same ones in the same order each time it is read."""

    name: str  # says which images they are
    size: int | None  # None where it is not known before they are read
    images: Callable[[], Iterator[ImageInput]]


def list_inputs(paths: Sequence[str], urls: bool = False) -> list[InputPath]:
    """Files, and all images below folders, sorted by id: the path below a single folder, else the path as typed.

    A `-` stands for a list on the standard input, a line each. Raises UserError for what is not there or given twice.
    """
    inputs: list[InputPath] = []
    for path in _expand(paths):
        if is_table(path):
            raise UserError(f"{path}: images of a table have no file names, which a submission needs")
        if _URL.match(path):
            if not urls:
                raise UserError(f"{path}: a URL is only fetched with --urls")
            inputs.append(InputPath(path, path))
        elif os.path.isdir(path):
            for file in list_images(path):
                name = os.path.relpath(file, path) if len(paths) == 1 else os.path.normpath(file)
                inputs.append(InputPath(file_id(name), file))
        elif os.path.lexists(path):
            inputs.append(InputPath(file_id(os.path.normpath(path)), path))
        else:
            raise UserError(f"{path}: no such file or folder")
    if not inputs:
        raise UserError(f"no images in {', '.join(paths)}")
    locations = [item.path if _URL.match(item.path) else file_id(os.path.abspath(item.path)) for item in inputs]
    for names in ([item.id for item in inputs], locations):
        if repeated := [name for name, n in Counter(names).items() if n > 1]:
            raise UserError(f"{min(repeated)} is given twice")
    return sorted(inputs)


def _expand(paths: Sequence[str]) -> Iterator[str]:
    """The paths with those of the standard input and of patterns."""
    for path in paths:
        if path == "-":
            yield from filter(None, (line.rstrip("\r\n") for line in sys.stdin))
        elif glob.has_magic(path) and not os.path.lexists(path) and not _URL.match(path):
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise UserError(f"{path}: no file matches this pattern")
            yield from matches
        else:
            yield path


def read_inputs(inputs: Sequence[InputPath]) -> Iterator[ImageInput]:
    """The images of listed files and URLs."""
    for item in inputs:
        remote = _URL.match(item.path)
        yield ImageInput(item.id, partial(_fetch, item.path) if remote else partial(read, {"path": item.path}))


def read_rows(dataset: "Dataset") -> Iterator[ImageInput]:
    """The images of a table with the columns id and image."""
    for row in dataset:
        yield ImageInput(row["id"], partial(read, row["image"]))  # type: ignore[call-overload]


def _fetch(url: str) -> bytes:
    """The bytes behind a URL; raises BadImage with the reason."""
    import urllib.request  # here, for a prediction of files need not wait for it
    from http.client import HTTPException

    try:
        request = urllib.request.Request(url, headers={"User-Agent": f"creature/{__version__}"})
        with urllib.request.urlopen(request, timeout=30) as response:
            data = response.read(MAX_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError; a bad URL is a ValueError
        raise BadImage(f"cannot be fetched: {getattr(error, 'reason', None) or error}") from error
    if not data or len(data) > MAX_BYTES:
        raise BadImage(f"fetched {'more than 256 MiB' if data else 'nothing'}")
    return data


def find_shards(paths: Sequence[str], column: str, urls: bool = False) -> list[Shard]:
    """The images of all paths in shards, the same for each process: ranges of files, row groups, files of the Hub.

    Raises UserError for a source that is not there, or has no such column.
    """
    paths = list(_expand(paths))
    files = [path for path in paths if not is_table(path)]
    shards = _file_shards(list_inputs(files, urls)) if files else []
    for path in filter(is_table, paths):
        if path.startswith("hub:"):
            shards += _hub_shards(path, column)
        elif path.lower().endswith(".parquet"):
            shards += _parquet_shards(path, column)
        else:
            shards += _arrow_shards(path, column)
    if not shards:
        raise UserError(f"no images in {', '.join(paths)}")
    return shards


def _file_shards(inputs: Sequence[InputPath]) -> list[Shard]:
    size = min(1024, max(32, -(-len(inputs) // 64)))
    shards = []
    for start in range(0, len(inputs), size):
        chunk = inputs[start : start + size]
        digest = hashlib.sha256("\n".join(item.id for item in chunk).encode()).hexdigest()
        shards.append(Shard(f"{chunk[0].id} and on, {digest}", len(chunk), partial(read_inputs, chunk)))
    return shards


def _parquet_shards(path: str, column: str) -> list[Shard]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet: {first_line(error)}") from error
    _check_column(path, column, file.schema_arrow.names)
    name, first, size = file_id(os.path.normpath(path)), 0, os.path.getsize(path)

    def images(group: int, first: int) -> Iterator[ImageInput]:
        try:
            rows = ParquetFile(path).iter_batches(64, row_groups=[group], columns=[column])
            values = (value for batch in rows for value in _encoded(path, batch.column(0)))
            for row, value in enumerate(values, first):
                yield ImageInput(f"{name}/{row:08d}", partial(_embedded, value))
        except (OSError, ArrowException) as error:
            raise UserError(f"{path}: damaged in row group {group}: {first_line(error)}; fetch it again") from error

    shards = []
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        rows = f"rows {first} to {first + count - 1} of {size} bytes"
        shards.append(Shard(f"{name}, {rows}", count, partial(images, group, first)))
        first += count
    return shards


def _arrow_shards(path: str, column: str) -> list[Shard]:
    """Of an Arrow file, or a folder that save_to_disk has written."""
    table = load_table(path, "images").with_format("arrow")
    _check_column(path, column, table.column_names)
    table, name = table.select_columns([column]), file_id(os.path.normpath(path))

    def images(start: int, stop: int) -> Iterator[ImageInput]:
        for first in range(start, stop, 64):
            rows: Any = table[first : min(first + 64, stop)]
            for row, value in enumerate(_encoded(path, rows[column].combine_chunks()), first):
                yield ImageInput(f"{name}/{row:08d}", partial(_embedded, value))

    ranges = [(start, min(start + 1024, len(table))) for start in range(0, len(table), 1024)]
    digest = table._fingerprint
    return [
        Shard(f"{name}, rows {start} to {stop - 1} of {digest}", stop - start, partial(images, start, stop))
        for start, stop in ranges
    ]


def _encoded(path: str, images: Any) -> list[Any]:
    """The cells of a column as training takes them: bytes of any of Arrow's types, (bytes, path), arrays of pixels."""
    from datasets import Image
    from pyarrow import ArrowException, large_binary, types

    try:
        if types.is_binary_view(images.type):  # which Image has no cast from
            images = images.cast(large_binary())
        return Image(decode=False).cast_storage(images).to_pylist()
    except (TypeError, ValueError, ArrowException) as error:
        raise UserError(f"--image-column: {path} holds no images there: {first_line(error)}") from error


def _hub_shards(source: str, column: str) -> list[Shard]:
    from datasets import Image, IterableDataset, load_dataset
    from huggingface_hub import HfApi

    name, _, split = source.removeprefix("hub:").rpartition(":")
    if not name or not split:
        raise UserError(f"{source}: a data set of the Hub is written hub:USER/DATASET:SPLIT")
    try:
        revision = HfApi().dataset_info(name).sha  # pinned, or shards might be of several revisions
        table = load_dataset(name, split=split, streaming=True, revision=revision)
        assert isinstance(table, IterableDataset)
        names = table.column_names or list(next(iter(table), {}))
        if column in names:
            table = table.select_columns([column]).cast_column(column, Image(decode=False))
    except Exception as error:  # whatever the library, the network or the Hub raises: the user needs the reason
        raise UserError(f"{source}: cannot be streamed: {network_reason(error)}") from error
    _check_column(source, column, names)

    def images(shard: int) -> Iterator[ImageInput]:
        rows = iter(table.shard(table.num_shards, shard))
        for row in itertools.count():
            try:
                value = next(rows)[column]
            except StopIteration:
                return
            except Exception as error:  # as above
                raise UserError(
                    f"{source}: broke off: {first_line(error)}; run this again, and shards go on"
                ) from error
            yield ImageInput(f"{name}:{split}/{shard:05d}/{row:08d}", partial(_from_hub, value))

    return [
        Shard(f"{source}@{revision}, file {shard + 1} of {table.num_shards}", None, partial(images, shard))
        for shard in range(table.num_shards)
    ]


def _check_column(source: str, column: str, names: Sequence[str]) -> None:
    if column not in names:
        raise UserError(f"--image-column: {source} has no column {column!r}; it has {', '.join(names)}")


def _embedded(value: Mapping[str, Any] | bytes | None) -> bytes:
    """The bytes in a table's cell; a path there could name any file of this machine, and is never opened."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes) or not data:
        raise BadImage("the table holds no bytes here; embed the images")
    return read({"bytes": data})


def _from_hub(value: Mapping[str, Any]) -> bytes:
    """The bytes in a table's cell, or else of the file of the Hub that it names."""
    path = str(value.get("path"))
    if value.get("bytes") or not path.startswith("hf://datasets/"):
        return _embedded(value)
    from huggingface_hub import HfFileSystem

    try:
        data = HfFileSystem().cat_file(path)
    except Exception as error:  # whatever the network or the Hub raises
        raise BadImage(f"cannot be fetched: {first_line(error)}") from error
    return read({"bytes": data})
