"""Sources of labelled images: class folders, flat folders with a CSV, Parquet and Arrow files, data sets of the Hub."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from creature.data.arrow_tables import arrow_compute, store_table
from creature.data.files import ENDINGS, file_id, file_image, is_folder, label_of, list_images, natural, read_labels
from creature.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

TABLES = (".parquet", ".arrow")
SPLITS = ("train", "val", "valid", "validation", "test")  # what folders of splits are called


@dataclass(frozen=True)
class Columns:
    """How to read sources that are no class folders: column names, and the CSV of a flat folder."""

    image: str = "image"
    label: str = "label"
    labels_csv: str | None = None
    group: str | None = None


class Source(NamedTuple):
    """What one source holds: images, as many rows (id, label, group), its classes, and whether it names every class."""

    images: "Dataset"
    rows: "pa.Table"
    classes: set[str]
    complete: bool


def read_source(source: str, root: str, columns: Columns, field: str) -> Source:
    """A source as rows: class folders, a flat folder with its CSV, Parquet, Arrow or `hub:`; `root` leads their ids.

    Raises UserError, led by the recipe's `field`, for a source that is not there or not of these kinds.
    """
    if source.startswith("hub:") or source.endswith(TABLES):
        return _read_table(source, root, columns, field)
    if not os.path.isdir(source):
        raise UserError(
            f"{field}: no such folder: {source}; give a folder of class folders, a .parquet or .arrow file, "
            "or hub:USER/DATASET:SPLIT"
        )
    pictures = list_images(source)
    if not pictures:
        raise UserError(f"{field}: {source} holds no images ({', '.join(sorted(ENDINGS))})")
    if columns.labels_csv:
        return _read_flat(source, root, pictures, columns, field)
    return _read_class_folders(source, root, pictures, columns, field)


def short_names(sources: Sequence[str], field: str) -> list[str]:
    """A short name for each source: as many trailing parts of its path as tell it from the others."""
    paths = [_hub(s) if s.startswith("hub:") else os.path.abspath(s) for s in sources]
    real = [path if path.startswith("hub:") else os.path.realpath(path) for path in paths]
    if twice := [source for source, path in zip(sources, real, strict=True) if real.count(path) > 1]:
        raise UserError(f"{field}: {twice[0]} is listed twice; remove one")
    parts = [path.removeprefix("hub:").replace(":", "-").strip(os.sep).split(os.sep) for path in paths]

    def name(own: list[str]) -> str:
        for depth in range(1, len(own)):
            if [part[-depth:] for part in parts].count(own[-depth:]) == 1:
                return "/".join(own[-depth:])
        return "/".join(own)

    return [file_id(name(own)) for own in parts]


def _hub(source: str) -> str:
    """A Hub source with its split, which is train where none is named."""
    name, _, split = source.removeprefix("hub:").partition(":")
    return f"hub:{name}:{split or 'train'}"


def _read_class_folders(source: str, root: str, pictures: list[str], columns: Columns, field: str) -> Source:
    relative = [os.path.relpath(path, source) for path in pictures]
    if beside := [path for path in relative if os.sep not in path]:
        raise UserError(
            f"{field}: {source} must hold one folder per class, but {beside[0]} lies beside them "
            f"({len(beside)} such); move it into its class, or name a CSV in images.labels"
        )
    classes = {file_id(entry.name) for entry in os.scandir(source) if is_folder(entry) and entry.name[0] != "."}
    if "train" in classes and len(classes) > 1 and classes <= set(SPLITS):
        named = ", ".join(os.path.join(source, name) for name in SPLITS if name in classes and name != "test")
        raise UserError(
            f"{field}: {source} holds {', '.join(sorted(classes))}, which are splits, not classes; name those to train "
            f"on, such as [{named}]"
        )
    labels = {path: file_id(path.split(os.sep)[0]) for path in relative}
    return Source(*_table(source, root, labels, {}, columns, field), classes, complete=True)


def _read_flat(source: str, root: str, pictures: list[str], columns: Columns, field: str) -> Source:
    assert columns.labels_csv is not None
    relative = [os.path.relpath(path, source) for path in pictures]

    def column(name: str) -> dict[str, str]:
        table = read_labels(str(columns.labels_csv), name)
        return {path: label_of(table, path) or label_of(table, file_id(path)) or "" for path in relative}

    labels = column(columns.label)
    if missing := [path for path, label in labels.items() if not label]:
        raise UserError(
            f"images.labels: {columns.labels_csv} has no label for {missing[0]} ({len(missing)} such); "
            "add a line for it, or move the image elsewhere"
        )
    groups = column(columns.group) if columns.group and "(" not in columns.group else {}
    return Source(*_table(source, root, labels, groups, columns, field), set(labels.values()), complete=False)


def _table(
    source: str, root: str, labels: dict[str, str], groups: dict[str, str], columns: Columns, field: str
) -> "tuple[Dataset, pa.Table]":
    """The files of a folder, given their labels and groups by relative path: images, and rows (id, label, group)."""
    import pyarrow as pa
    from datasets import Dataset, Features, Image

    if columns.group and "(" not in columns.group and not groups:
        raise UserError(
            f"folds.group: {columns.group!r} is a column, and {field} has none; give a pattern with one (group), "
            "searched in each image's path"
        )
    id_of = {path: f"{root}/{file_id(path)}" for path in labels}
    paths = sorted(labels, key=id_of.__getitem__)
    ids = pa.array([id_of[path] for path in paths])
    group = pa.array([groups[path] for path in paths]) if groups else _groups(ids, columns.group)
    rows = pa.table({"id": ids, "label": [labels[path] for path in paths], "group": group})
    schema = Features(image=Image(decode=False)).arrow_schema
    files = [file_image(os.path.join(source, path)) for path in paths]
    return Dataset.from_file(str(store_table(pa.table({"image": files}, schema=schema)))), rows


def _groups(ids: "pa.Array", pattern: str | None) -> "pa.Array":
    import pyarrow as pa

    if not pattern or "(" not in pattern:
        return pa.repeat("", len(ids))
    try:
        search = re.compile(pattern)
    except re.error as error:
        raise UserError(f"folds.group: {pattern!r} is no regular expression: {error}") from error
    if search.groups != 1:
        raise UserError(f"folds.group: {pattern!r} must have exactly one (group), it has {search.groups}")
    found = [match.group(1) if (match := search.search(name)) else None for name in ids.to_pylist()]
    if missing := [row for row, group in enumerate(found) if group is None]:
        raise UserError(f"folds.group: {pattern!r} does not match {ids[missing[0]]} ({len(missing)} such)")
    return pa.array(found, pa.string())


def _read_table(source: str, root: str, columns: Columns, field: str) -> Source:
    import pyarrow as pa
    from datasets import ClassLabel, Image

    pc = arrow_compute()
    table = _load_table(source, field)
    if not len(table):
        raise UserError(f"{field}: {source} holds no rows")
    labels = _text(table, columns.label, "images.label_column", source)
    if len(missing := np.flatnonzero(pc.equal(labels, ""))):
        raise UserError(f"{field}: row {missing[0]} of {source} has no label ({len(missing)} such); remove the rows")
    named = isinstance(feature := table.features[columns.label], ClassLabel)
    column = columns.group if columns.group and "(" not in columns.group else None
    numbers = pc.utf8_lpad(pa.array(np.arange(len(table))).cast(pa.string()), 8, "0")
    ids = pc.binary_join_element_wise(root, numbers, "/")
    groups = _text(table, column, "folds.group", source) if column else _groups(ids, columns.group)
    _check_column(table, columns.image, "images.image_column", source)
    table = table.select_columns([columns.image])
    try:
        table = table.cast_column(columns.image, Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise UserError(f"images.image_column: {columns.image!r} of {source} holds no images: {error}") from error
    if columns.image != "image":
        table = table.rename_column(columns.image, "image")
    _refuse_foreign_paths(table, source, field)
    rows = pa.table({"id": ids, "label": labels, "group": groups})
    return Source(table, rows, set(feature.names if named else labels.unique().to_pylist()), complete=named)


def _check_column(table: "Dataset", column: str, field: str, source: str) -> None:
    if column not in table.column_names:
        raise UserError(f"{field}: {source} has no column {column!r}; it has {', '.join(table.column_names)}")


def _text(table: "Dataset", column: str, field: str, source: str) -> "pa.ChunkedArray":
    """A column of names or whole numbers as strings, empty where a row has none."""
    import pyarrow as pa
    from datasets import ClassLabel, Value

    _check_column(table, column, field, source)
    feature, values = table.features[column], table.data.column(column)
    if isinstance(feature, ClassLabel):
        codes = pa.array(range(len(feature.names)), values.type)
        values = pa.array(feature.names, pa.string()).take(arrow_compute().index_in(values, codes))
    elif not isinstance(feature, Value) or not re.fullmatch(r"(large_)?string(_view)?|u?int\d+|bool", feature.dtype):
        kind = getattr(feature, "dtype", None) or type(feature).__name__
        raise UserError(f"{field}: {column!r} of {source} must hold text or whole numbers, it holds {kind}")
    elif feature.dtype == "bool":
        values = arrow_compute().if_else(values, "True", "False")
    return values.cast(pa.string()).fill_null("")


def _load_table(source: str, field: str) -> "Dataset":
    from datasets import Dataset, load_dataset

    try:
        if source.startswith("hub:"):
            name, _, split = _hub(source).removeprefix("hub:").rpartition(":")
            return load_dataset(name, split=split, keep_in_memory=False)  # type: ignore[return-value]
        if not os.path.isfile(source):
            raise UserError(f"{field}: no such file: {source}")
        if source.endswith(".arrow"):
            return Dataset.from_file(source)
        return Dataset.from_parquet(source, keep_in_memory=False)  # type: ignore[return-value]
    except UserError:
        raise
    except Exception as error:  # whatever the reader, the file system or the Hub raises: the user needs the reason
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{field}: cannot load {source}: {reason}") from error


def _refuse_foreign_paths(table: "Dataset", source: str, field: str) -> None:
    """A table from elsewhere may name any file here: only embedded bytes and what the Hub put in its cache are read."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    inside = tuple(os.path.realpath(cache) + os.sep for cache in caches)
    pc, start = arrow_compute(), 0
    for images in table.data.column("image").chunks:
        embedded = pc.and_(images.is_valid(), images.field("bytes").is_valid())
        for row in np.flatnonzero(pc.invert(embedded)).tolist():
            path = (images[row].as_py() or {}).get("path")
            if not path:
                raise UserError(f"{field}: row {start + row} of {source} has no image; remove the row")
            if "\0" in path or not os.path.realpath(path).startswith(inside):
                raise UserError(
                    f"{field}: row {start + row} of {source} names the file {path!r} instead of holding its bytes; "
                    "embed the images (datasets: Dataset.push_to_hub does, or Dataset.to_parquet)"
                )
        start += len(images)


def check_classes(where: str, part: Source, names: Sequence[str]) -> None:
    def listed(some: set[str]) -> str:
        return ", ".join(sorted(some, key=natural)[:10]) + (", ..." if len(some) > 10 else "")

    if extra := part.classes - set(names):
        raise UserError(f"{where} has classes that the training data lacks: {listed(extra)}")
    if part.complete and (missing := set(names) - part.classes):
        raise UserError(f"{where} lacks the classes {listed(missing)}; if it has no image of them, add empty folders")
