"""Sources of labelled images: class folders, flat folders with a CSV, Parquet and Arrow files, data sets of the Hub."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from creature.images.files import ENDINGS, file_id, file_image, is_folder, label_of, list_pictures, natural, read_labels
from creature.terminal import UserError

if TYPE_CHECKING:
    from datasets import Dataset

TABLES = (".parquet", ".arrow")


@dataclass(frozen=True)
class Columns:
    """How to read sources that are no class folders: column names, and the CSV of a flat folder."""

    image: str = "image"
    label: str = "label"
    labels_csv: str | None = None
    group: str | None = None


class Source(NamedTuple):
    """What one source holds: a table (id, image, label, group), its classes, and whether it names every class."""

    table: "Dataset"
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
    pictures = list_pictures(source)
    if not pictures:
        raise UserError(f"{field}: {source} holds no pictures ({', '.join(sorted(ENDINGS))})")
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
    labels = {path: file_id(path.split(os.sep)[0]) for path in relative}
    return Source(_table(source, root, labels, {}, columns, field), classes, complete=True)


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
    return Source(_table(source, root, labels, groups, columns, field), set(labels.values()), complete=False)


def _table(
    source: str, root: str, labels: dict[str, str], groups: dict[str, str], columns: Columns, field: str
) -> "Dataset":
    """The files of a folder, given their labels and groups by relative path."""
    from datasets import Dataset, Features, Image, Value

    if columns.group and "(" not in columns.group and not groups:
        raise UserError(
            f"folds.group: {columns.group!r} is a column, and {field} has none; give a pattern with one (group), "
            "searched in each image's path"
        )
    text = Value("string")
    id_of = {path: f"{root}/{file_id(path)}" for path in labels}
    paths = sorted(labels, key=id_of.__getitem__)
    ids = [id_of[path] for path in paths]
    return Dataset.from_dict(
        {
            "id": ids,
            "image": [file_image(os.path.join(source, path)) for path in paths],
            "label": [labels[path] for path in paths],
            "group": [groups[path] for path in paths] if groups else _groups(ids, columns.group),
        },
        features=Features(id=text, image=Image(decode=False), label=text, group=text),
    )


def _groups(ids: list[str], pattern: str | None) -> list[str]:
    if not pattern or "(" not in pattern:
        return [""] * len(ids)
    try:
        search = re.compile(pattern)
    except re.error as error:
        raise UserError(f"folds.group: {pattern!r} is no regular expression: {error}") from None
    if search.groups != 1:
        raise UserError(f"folds.group: {pattern!r} must have exactly one (group), it has {search.groups}")
    found = [search.search(name) for name in ids]
    if missing := [name for name, match in zip(ids, found, strict=True) if match is None or match.group(1) is None]:
        raise UserError(f"folds.group: {pattern!r} does not match {missing[0]} ({len(missing)} such)")
    return [match.group(1) for match in found if match]


def _read_table(source: str, root: str, columns: Columns, field: str) -> Source:
    from datasets import ClassLabel, Image, Value
    from pyarrow import ArrowException

    table = _load_table(source, field)
    if not len(table):
        raise UserError(f"{field}: {source} holds no rows")
    labels = _text(table, columns.label, "images.label_column", source)
    if missing := [row for row, label in enumerate(labels) if not label]:
        raise UserError(f"{field}: row {missing[0]} of {source} has no label ({len(missing)} such); remove the rows")
    named = isinstance(feature := table.features[columns.label], ClassLabel)
    column = columns.group if columns.group and "(" not in columns.group else None
    ids = [f"{root}/{row:08d}" for row in range(len(table))]
    groups = _text(table, column, "folds.group", source) if column else _groups(ids, columns.group)
    _check_column(table, columns.image, "images.image_column", source)
    table = table.select_columns([columns.image])
    try:
        table = table.cast_column(columns.image, Image(decode=False))
    except (TypeError, ValueError, ArrowException) as error:
        raise UserError(f"images.image_column: {columns.image!r} of {source} holds no images: {error}") from None
    if columns.image != "image":
        table = table.rename_column(columns.image, "image")
    _refuse_foreign_paths(table, source, field)
    for name, values in (("id", ids), ("label", labels), ("group", groups)):
        table = add_column(table, name, values, Value("string"))
    return Source(table, set(feature.names) if named else set(labels), complete=named)


def add_column(table: "Dataset", name: str, values: list[Any], feature: Any) -> "Dataset":
    """With its type from the start: a cast would copy all images to the cache."""
    return table.add_column(name, values, feature=feature)  # type: ignore[call-arg]


def _check_column(table: "Dataset", column: str, field: str, source: str) -> None:
    if column not in table.column_names:
        raise UserError(f"{field}: {source} has no column {column!r}; it has {', '.join(table.column_names)}")


def _text(table: "Dataset", column: str, field: str, source: str) -> list[str]:
    """A column of names or whole numbers as strings, empty where a row has none."""
    from datasets import ClassLabel, Value

    _check_column(table, column, field, source)
    feature, values = table.features[column], list(table[column])
    if isinstance(feature, ClassLabel):
        name_of = dict(enumerate(feature.names))
        return [name_of.get(value, "") for value in values]
    if not isinstance(feature, Value) or not re.fullmatch(r"(large_)?string(_view)?|u?int\d+|bool", feature.dtype):
        kind = getattr(feature, "dtype", None) or type(feature).__name__
        raise UserError(f"{field}: {column!r} of {source} must hold text or whole numbers, it holds {kind}")
    return ["" if value is None else str(value) for value in values]


def _load_table(source: str, field: str) -> "Dataset":
    from datasets import Dataset, load_dataset

    try:
        if source.startswith("hub:"):
            name, _, split = _hub(source).removeprefix("hub:").rpartition(":")
            return load_dataset(name, split=split)  # type: ignore[return-value]
        if not os.path.isfile(source):
            raise UserError(f"{field}: no such file: {source}")
        return Dataset.from_file(source) if source.endswith(".arrow") else Dataset.from_parquet(source)  # type: ignore
    except UserError:
        raise
    except Exception as error:  # whatever the reader, the file system or the Hub raises: the user needs the reason
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{field}: cannot load {source}: {reason}") from None


def _refuse_foreign_paths(table: "Dataset", source: str, field: str) -> None:
    """A table from elsewhere may name any file here: only embedded bytes and what the Hub put in its cache are read."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    inside = tuple(os.path.realpath(cache) + os.sep for cache in caches)
    row = 0
    for batch in table.with_format("arrow").iter(1000):
        for images in batch["image"].chunks:  # type: ignore[union-attr, call-overload]
            here = images.is_valid().to_pylist()
            whole = images.field("bytes").is_valid().to_pylist()
            for known, embedded, path in zip(here, whole, images.field("path").to_pylist(), strict=True):
                if not known or not (embedded or path):
                    raise UserError(f"{field}: row {row} of {source} has no image; remove the row")
                if not embedded and ("\0" in path or not os.path.realpath(path).startswith(inside)):
                    raise UserError(
                        f"{field}: row {row} of {source} names the file {path!r} instead of holding its bytes; "
                        "embed the images (datasets: Dataset.push_to_hub does, or Dataset.to_parquet)"
                    )
                row += 1


def check_classes(where: str, part: Source, names: Sequence[str]) -> None:
    def listed(some: set[str]) -> str:
        return ", ".join(sorted(some, key=natural)[:10]) + (", ..." if len(some) > 10 else "")

    if extra := part.classes - set(names):
        raise UserError(f"{where} has classes that the training data lacks: {listed(extra)}")
    if part.complete and (missing := set(names) - part.classes):
        raise UserError(f"{where} lacks the classes {listed(missing)}; if it has no picture of them, add empty folders")
