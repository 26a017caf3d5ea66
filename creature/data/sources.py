"""Sources of labelled images: class folders, flat folders with a CSV, Parquet and Arrow files, data sets of the Hub."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from creature.console import warn
from creature.data.arrow_tables import arrow_compute, store_table
from creature.data.class_folders import folders_in, mixed_depths, split_of
from creature.data.files import (
    ENDINGS,
    file_id,
    file_image,
    list_images,
    names_of,
    read_labels,
)
from creature.data.tables import hub_name, is_table, load_table
from creature.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class SourceFormat:
    """How sources that are no class folders are read: column names, and the CSV of a flat folder."""

    image_column: str = "image"
    label_column: str = "label"
    labels_csv: str | None = None
    group: str | None = None  # a column, or a pattern with one (group), which is searched in ids

    @property
    def group_column(self) -> str | None:
        """The column that holds the groups, if one does."""
        return self.group if self.group and "(" not in self.group else None


@dataclass(frozen=True)
class SourceSpec:
    """A source to read."""

    source: str  # a folder, a .parquet or .arrow file, or hub:USER/DATASET:SPLIT
    root: str  # leads the ids of its images
    format: SourceFormat
    field: str  # the recipe's, which leads messages


class SourceRows(NamedTuple):
    """The images of one source, as many rows (id, label, group), its classes, and whether it names every class."""

    images: "Dataset"
    rows: pa.Table
    classes: set[str]
    complete: bool
    absent: frozenset[str] = frozenset()  # what lines of the CSV name that is not among the images


def read_source(spec: SourceSpec) -> SourceRows:
    """Read class folders, a flat folder with its CSV, a table or a data set of the Hub.

    Raises UserError for a source that is not there or of none of these kinds.
    """
    source, field = spec.source, spec.field
    if is_table(source):
        return _read_table(spec)
    if not os.path.isdir(source):
        raise UserError(
            f"{field}: no such folder: {source}; give a folder of class folders, a .parquet or .arrow "
            "file, or hub:USER/DATASET:SPLIT"
        )
    paths = [os.path.relpath(path, source) for path in list_images(source)]
    if not paths:
        raise UserError(f"{field}: {source} holds no images ({', '.join(sorted(ENDINGS))})")
    return _read_flat_folder(spec, paths) if spec.format.labels_csv else _read_class_folders(spec, paths)


def short_names(sources: Sequence[str], field: str) -> list[str]:
    """A short name for each source: as many trailing parts of its path as tell it from the others.

    Raises UserError for a source that is listed twice.
    """
    paths = [hub_name(s) if s.startswith("hub:") else os.path.abspath(s) for s in sources]
    real = [path if path.startswith("hub:") else os.path.realpath(path) for path in paths]
    if twice := [source for source, path in zip(sources, real, strict=True) if real.count(path) > 1]:
        raise UserError(f"{field}: {twice[0]} is listed twice; remove one")
    parts = [path.removeprefix("hub:").replace(":", "-").strip(os.sep).split(os.sep) for path in paths]

    def short_name(path: list[str]) -> str:
        for depth in range(1, len(path)):
            if [other[-depth:] for other in parts].count(path[-depth:]) == 1:
                return "/".join(path[-depth:])
        return "/".join(path)

    return [file_id(short_name(path)) for path in parts]


def _read_class_folders(spec: SourceSpec, paths: list[str]) -> SourceRows:
    """Files by their paths within the source, whose first part is the class."""
    source, field = spec.source, spec.field
    if beside := [path for path in paths if os.sep not in path]:
        raise UserError(
            f"{field}: {source} must hold one folder per class, but {beside[0]} lies beside them "
            f"({len(beside)} such); move it into its class, or name a CSV in images.labels"
        )
    classes = set(map(file_id, folders_in(source)))
    splits = {name: split for name in sorted(classes) if (split := split_of(name))}
    kinds = set(splits.values())
    if "train" in kinds and len(classes) > 1 and (len(kinds) > 1 or len(splits) == len(classes)):
        named = ", ".join(os.path.join(source, name) for name, split in splits.items() if split != "test")
        raise UserError(
            f"{field}: {source} holds {', '.join(splits)}, which are splits, not classes; name those to train on, such "
            f"as [{named}]"
        )
    for line in mixed_depths(source, paths):
        warn(f"{field}: {line}")
    labels = {path: file_id(path.split(os.sep)[0]) for path in paths}
    return _file_rows(spec, labels, {}, classes=classes, complete=True)


def _read_flat_folder(spec: SourceSpec, paths: list[str]) -> SourceRows:
    """Files by their paths within the source, which the CSV labels."""
    labels_csv, columns = str(spec.format.labels_csv), spec.format
    lines = read_labels(labels_csv, columns.label_column)
    names = names_of(lines, paths)
    labels = {path: lines[names[path]] if path in names else "" for path in paths}
    if missing := [path for path, label in labels.items() if not label]:
        raise UserError(
            f"images.labels: {labels_csv} has no label for {missing[0]} ({len(missing)} such), and its first line is "
            f"that of {next(iter(lines), 'none')}; add a line for each, spelled as its path within {spec.source} or as "
            "its file name, or move the image elsewhere"
            + "; images.holdout_labels is a CSV for images.holdout alone"
            * (spec.field == "images.holdout")
        )
    groups = {}
    if columns.group_column:
        group_of = read_labels(labels_csv, columns.group_column)
        groups = {path: group_of[name] for path, name in names.items()}
    rows = _file_rows(spec, labels, groups, classes=set(labels.values()), complete=False)
    return rows._replace(absent=frozenset(lines.keys() - names.values()))


def _file_rows(
    spec: SourceSpec, labels: dict[str, str], groups: dict[str, str], *, classes: set[str], complete: bool
) -> SourceRows:
    """The files of a folder, given their labels and groups by their paths within it."""
    from datasets import Dataset, Features, Image

    if spec.format.group_column and not groups:
        raise UserError(
            f"folds.group: {spec.format.group!r} is a column, and {spec.field} has none; give a pattern with one "
            "(group), searched in each image's path"
        )
    id_of = {path: f"{spec.root}/{file_id(path)}" for path in labels}
    paths = sorted(labels, key=id_of.__getitem__)
    ids = pa.array([id_of[path] for path in paths])
    group = pa.array([groups[path] for path in paths]) if groups else _groups(ids, spec.format.group)
    rows = pa.table({"id": ids, "label": [labels[path] for path in paths], "group": group})
    schema = Features(image=Image(decode=False)).arrow_schema
    files = [file_image(os.path.join(spec.source, path)) for path in paths]
    images = Dataset.from_file(str(store_table(pa.table({"image": files}, schema=schema))))
    return SourceRows(images, rows, classes, complete=complete)


def _groups(ids: pa.Array, pattern: str | None) -> pa.Array:
    """The part of each id that a pattern with one (group) matches; empty without such a pattern."""
    if not pattern or "(" not in pattern:
        return pa.repeat("", len(ids))
    try:
        search = re.compile(pattern)
    except re.error as error:
        raise UserError(f"folds.group: {pattern!r} is no regular expression: {error}") from error
    if search.groups != 1:
        raise UserError(f"folds.group: {pattern!r} must have exactly one (group), it has {search.groups}")
    groups = [match.group(1) if (match := search.search(name)) else None for name in ids.to_pylist()]
    if missing := [row for row, group in enumerate(groups) if group is None]:
        raise UserError(f"folds.group: {pattern!r} does not match {ids[missing[0]]} ({len(missing)} such)")
    return pa.array(groups, pa.string())


def _read_table(spec: SourceSpec) -> SourceRows:
    from datasets import ClassLabel

    pc, source, field, columns = arrow_compute(), spec.source, spec.field, spec.format
    table = load_table(source, field)
    if not len(table):
        raise UserError(f"{field}: {source} holds no rows")
    labels = _text_column(table, columns.label_column, "images.label_column", source=source)
    if len(missing := np.flatnonzero(pc.equal(labels, ""))):
        raise UserError(f"{field}: row {missing[0]} of {source} has no label ({len(missing)} such); remove the rows")
    complete = isinstance(feature := table.features[columns.label_column], ClassLabel)
    classes = set(feature.names if complete else labels.unique().to_pylist())
    numbers = pc.utf8_lpad(pa.array(np.arange(len(table))).cast(pa.string()), 8, "0")
    ids = pc.binary_join_element_wise(spec.root, numbers, "/")
    if columns.group_column:
        groups = _text_column(table, columns.group_column, "folds.group", source=source)
    else:
        groups = _groups(ids, columns.group)
    rows = pa.table({"id": ids, "label": labels, "group": groups})
    return SourceRows(_image_column(table, spec), rows, classes, complete=complete)


def _image_column(table: "Dataset", spec: SourceSpec) -> "Dataset":
    """The images of a table, as the column `image`, not decoded."""
    from datasets import Image, Value

    name = spec.format.image_column
    _check_column(table, name, "images.image_column", source=spec.source)
    table = table.select_columns([name])
    try:
        if pa.types.is_binary_view(table.data.column(name).type):  # which Image has no cast from
            table = table.cast_column(name, Value("large_binary"))
        table = table.cast_column(name, Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise UserError(f"images.image_column: {name!r} of {spec.source} holds no images: {error}") from error
    if name != "image":
        table = table.rename_column(name, "image")
    _refuse_foreign_paths(table, spec.source, spec.field)
    return table


def _check_column(table: "Dataset", column: str, field: str, *, source: str) -> None:
    if column not in table.column_names:
        raise UserError(f"{field}: {source} has no column {column!r}; it has {', '.join(table.column_names)}")


def _text_column(table: "Dataset", column: str, field: str, *, source: str) -> pa.ChunkedArray:
    """A column of names or whole numbers as strings, empty where a row has none."""
    from datasets import ClassLabel, Value

    _check_column(table, column, field, source=source)
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
