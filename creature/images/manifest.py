"""The manifest: every picture of a data set as one row (id, image, label, hash, group) of a datasets.Dataset.

N rows, K classes. Rows are in the order of their ids, whatever the file system's order is. The image column is
`Image(decode=False)`: bytes or a path, decoded by creature.images.decode alone.
"""

import csv
import hashlib
import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from creature.images.decode import BadImage, decode, read
from creature.terminal import UserError, progress, warn

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS = frozenset(".jpg .jpeg .png .webp .gif .bmp .tif .tiff .ppm .pgm .avif .jfif".split())
TABLES = (".parquet", ".arrow")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


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


def natural(name: str) -> tuple[Any, ...]:
    """Sort key under which 2 comes before 10; the name itself decides between 1 and 01."""
    parts = re.split(r"(\d+)", name)
    return tuple((part.isdigit(), int(part) if part.isdigit() else part) for part in parts), name


def file_id(path: str) -> str:
    """The path with / between its parts; percent-encoded where it is no UTF-8 or holds control characters."""
    path = path.replace(os.sep, "/")
    try:
        path.encode()
    except UnicodeEncodeError:
        return urllib.parse.quote(os.fsencode(path), safe="/ !#$&'()*+,;=:@[]~")
    return urllib.parse.quote(path, safe="/ !#$&'()*+,;=:@[]~") if _CONTROL.search(path) else path


def file_image(path: str) -> dict[str, Any]:
    """The image value of a file: its path, or its bytes where the path is no UTF-8 and no table could hold it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return {"bytes": Path(path).read_bytes(), "path": None}
    return {"bytes": None, "path": path}


def walk(folder: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Paths of all files below a folder, hidden ones aside; links are followed, but never into a folder above."""
    info = os.stat(folder)
    chain = (*above, (info.st_dev, info.st_ino))
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield entry.path
        elif (entry.stat().st_dev, entry.stat().st_ino) not in chain:
            yield from walk(entry.path, chain)


def list_pictures(folder: str) -> list[str]:
    """Paths of all files below a folder that are pictures by their ending; says how many others there are."""
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder")
    paths = list(walk(folder))
    pictures = [path for path in paths if os.path.splitext(path)[1].lower() in ENDINGS]
    if len(pictures) < len(paths):
        others = Counter(os.path.splitext(path)[1].lower() or "no ending" for path in set(paths) - set(pictures))
        named = ", ".join(f"{n} {ending}" for ending, n in sorted(others.items()))
        warn(f"{folder}: {len(paths) - len(pictures)} files are no pictures by their ending and left out ({named})")
    return pictures


def read_images(sources: Sequence[str], columns: Columns, field: str, names: Sequence[str] | None = None) -> "Dataset":
    """One Dataset of all sources, with columns id, image, label (ClassLabel), group and source (its number).

    `names` are the classes of the training data; without it the sources define them. Raises UserError, led by the
    recipe's `field`, for a missing or empty source, a class too many or too few, or an image without a label.
    """
    from datasets import ClassLabel, Features, Image, Value, concatenate_datasets

    parts = [
        _read_source(source, root, columns, field) for source, root in zip(sources, _roots(sources, field), strict=True)
    ]
    names = sorted(set().union(*(part.classes for part in parts)), key=natural) if names is None else list(names)
    for source, part in zip(sources, parts, strict=True):
        _check_classes(f"{field}: {source}", part, names)
    dataset = concatenate_datasets([part.table for part in parts])
    index = {name: i for i, name in enumerate(names)}
    labels = [index[name] for name in dataset["label"]]
    origins = [i for i, part in enumerate(parts) for _ in range(len(part.table))]
    dataset = dataset.remove_columns("label").add_column("label", labels)  # type: ignore[call-arg]
    dataset = dataset.add_column("source", origins)  # type: ignore[call-arg]
    text = Value("string")
    features = Features(
        id=text, image=Image(decode=False), group=text, label=ClassLabel(names=names), source=Value("int32")
    )
    dataset = dataset.select_columns(list(features)).cast(features)
    ids = list(dataset["id"])
    if twice := [name for name, n in Counter(ids).items() if n > 1]:
        raise UserError(f"{field}: two images have the id {twice[0]}; rename one of the files")
    if ids != sorted(ids):
        dataset = dataset.select(sorted(range(len(ids)), key=ids.__getitem__)).flatten_indices()
    return dataset


def check_images(dataset: "Dataset", known: frozenset[str], title: str) -> tuple[list[str], dict[int, str]]:
    """Read every image once, in parallel: content hashes (N,), and the reason for each row that cannot be decoded.

    Content whose hash is in `known` was decoded before and is only hashed.
    """

    def check(row: int) -> tuple[str, str | None]:
        try:
            data = read(dataset[row]["image"])
        except BadImage as reason:
            return hashlib.blake2b(f"unreadable {row}".encode(), digest_size=16).hexdigest(), str(reason)
        content = content_hash(data)
        try:
            if content not in known:
                decode(data)
        except BadImage as reason:
            return content, str(reason)
        return content, None

    hashes, bad = [], {}
    with progress() as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        task = bar.add_task(f"{title}: checking", total=len(dataset), speed="")
        # Slices keep the queue of futures short for a million rows.
        for start in range(0, len(dataset), 1024):
            for content, reason in pool.map(check, range(start, min(start + 1024, len(dataset)))):
                if reason:
                    bad[len(hashes)] = reason
                hashes.append(content)
            bar.update(task, completed=len(hashes), speed=f"{bar.tasks[task].speed or 0:.0f}")
    return hashes, bad


def content_hash(data: bytes) -> str:
    """The name of a picture by its content: 32 hex digits of BLAKE2b over the file's bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def refuse_bad(dataset: "Dataset", bad: dict[int, str], max_bad: int | None, field: str) -> None:
    """List the images that cannot be decoded; raises UserError when they are more than the limit."""
    if not bad:
        return
    limit = max(3, len(dataset) // 100) if max_bad is None else max_bad
    shown = [f"{dataset[row]['id']}: {reason}" for row, reason in list(bad.items())[:20]]
    more = [f"and {len(bad) - 20} more"] if len(bad) > 20 else []
    listing = "\n  ".join([f"{field}: {len(bad)} of {len(dataset)} images cannot be decoded", *shown, *more])
    if len(bad) > limit:
        raise UserError(
            f"{listing}\nimages.max_bad allows {limit}; remove or mend the files, or set images.max_bad={len(bad)}"
        )
    warn(f"{listing}\nthey are left out (images.max_bad allows {limit})")


def read_labels(path: str, label_column: str = "label") -> dict[str, str]:
    """Image name -> label of a CSV: the first column names the image, with or without its ending."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV: {error}") from None
    known = [i for i, column in enumerate(header) if column in (label_column, "label", "pred_label")]
    if len(header) < 2 or not (known or len(header) == 2):
        raise UserError(f"{path}: needs a header with an image column and {label_column!r}, got {','.join(header)!r}")
    at = known[0] if known else 1
    labels: dict[str, str] = {}
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UserError(f"{path}, line {line}: {len(row)} cells under a header of {len(header)}")
        if row[0] in labels:
            raise UserError(f"{path}, line {line}: {row[0]} has a label already")
        labels[row[0]] = row[at]
    return labels


def label_of(labels: dict[str, str], path: str) -> str | None:
    """The label of an image whose CSV names it by relative path or by file name, with or without the ending."""
    pure = PurePosixPath(path.replace(os.sep, "/"))
    names = (str(pure), str(pure.with_suffix("")), pure.name, pure.stem)
    return next((labels[name] for name in names if name in labels), None)


def fingerprint(ids: Sequence[str], labels: Sequence[int], hashes: Sequence[str], names: Sequence[str]) -> str:
    """Hash of the whole data set: class names, and each row's id, label and content."""
    digest = hashlib.sha256(repr(list(names)).encode())
    for row in sorted(zip(ids, labels, hashes, strict=True)):
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _roots(sources: Sequence[str], field: str) -> list[str]:
    """A short name for each source: as many trailing parts of its path as tell it from the others."""
    paths = [s if s.startswith("hub:") else os.path.abspath(s) for s in sources]
    if twice := [source for source, path in zip(sources, paths, strict=True) if paths.count(path) > 1]:
        raise UserError(f"{field}: {twice[0]} is listed twice")
    parts = [path.removeprefix("hub:").replace(":", "-").strip(os.sep).split(os.sep) for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return [file_id(name) for name in names]
    return [file_id(path) for path in paths]


def _read_source(source: str, root: str, columns: Columns, field: str) -> Source:
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


def _read_class_folders(source: str, root: str, pictures: list[str], columns: Columns, field: str) -> Source:
    relative = [os.path.relpath(path, source) for path in pictures]
    if beside := [path for path in relative if os.sep not in path]:
        raise UserError(
            f"{field}: {source} must hold one folder per class, but {beside[0]} lies beside them "
            f"({len(beside)} such); move it into its class, or name a CSV in images.labels"
        )
    classes = {file_id(entry.name) for entry in os.scandir(source) if entry.is_dir() and entry.name[0] != "."}
    labels = [file_id(path.split(os.sep)[0]) for path in relative]
    ids = [f"{root}/{file_id(path)}" for path in relative]
    return Source(_table(pictures, ids, labels, {}, columns, field), classes, complete=True)


def _read_flat(source: str, root: str, pictures: list[str], columns: Columns, field: str) -> Source:
    assert columns.labels_csv is not None
    table = read_labels(columns.labels_csv, columns.label)
    relative = [os.path.relpath(path, source) for path in pictures]
    labels = [label_of(table, path) for path in relative]
    if missing := [path for path, label in zip(relative, labels, strict=True) if label is None]:
        raise UserError(f"images.labels: {columns.labels_csv} has no label for {missing[0]} ({len(missing)} such)")
    groups = {}
    if columns.group and "(" not in columns.group:
        group_of = read_labels(columns.labels_csv, columns.group)
        groups = {
            path: label_of(group_of, relative_path) for path, relative_path in zip(pictures, relative, strict=True)
        }
    found = [str(label) for label in labels]
    ids = [f"{root}/{file_id(path)}" for path in relative]
    return Source(_table(pictures, ids, found, groups, columns, field), set(found), complete=False)


def _table(
    paths: list[str], ids: list[str], labels: list[str], groups: dict[str, Any], columns: Columns, field: str
) -> "Dataset":
    from datasets import Dataset, Features, Image, Value

    if columns.group and "(" not in columns.group and not groups:
        raise UserError(
            f"folds.group: {columns.group!r} is a column, and {field} has none; give a pattern with one (group), "
            "searched in each image's path"
        )
    text = Value("string")
    return Dataset.from_dict(
        {
            "id": ids,
            "image": [file_image(path) for path in paths],
            "label": labels,
            "group": [str(groups[path]) for path in paths] if groups else _groups(ids, columns.group),
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

    table = _load_table(source, columns, field)
    wanted = [columns.image, columns.label]
    for key, column in zip(("image_column", "label_column"), wanted, strict=True):
        if column not in table.column_names:
            raise UserError(f"images.{key}: {source} has no column {column!r}; it has {', '.join(table.column_names)}")
    groups = None
    if columns.group and "(" not in columns.group:
        if columns.group not in table.column_names:
            raise UserError(
                f"folds.group: {source} has no column {columns.group!r}; it has {', '.join(table.column_names)}"
            )
        groups = [str(value) for value in table[columns.group]]
    feature, values = table.features[columns.label], table[columns.label]
    labels = [feature.int2str(v) for v in values] if isinstance(feature, ClassLabel) else [str(v) for v in values]
    ids = [f"{root}/{row:08d}" for row in range(len(table))]
    table = table.select_columns([columns.image]).rename_column(columns.image, "image")
    try:
        table = table.cast_column("image", Image(decode=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"images.image_column: {columns.image!r} of {source} holds no images: {error}") from None
    _refuse_foreign_paths(table, source, field)
    for name, column in (("id", ids), ("label", labels), ("group", groups or _groups(ids, columns.group))):
        table = table.add_column(name, column).cast_column(name, Value("string"))  # type: ignore[call-arg]
    named = isinstance(feature, ClassLabel)
    return Source(table, set(feature.names) if named else set(labels), complete=named)


def _load_table(source: str, columns: Columns, field: str) -> "Dataset":
    from datasets import Dataset, load_dataset

    try:
        if source.startswith("hub:"):
            name, _, split = source.removeprefix("hub:").partition(":")
            return load_dataset(name, split=split or "train")  # type: ignore[return-value]
        if not os.path.isfile(source):
            raise UserError(f"{field}: no such file: {source}")
        return Dataset.from_file(source) if source.endswith(".arrow") else Dataset.from_parquet(source)  # type: ignore
    except UserError:
        raise
    except Exception as error:  # whatever the reader, the file system or the Hub raises: the user needs the reason
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{field}: cannot load {source}: {reason}") from None


def _refuse_foreign_paths(table: "Dataset", source: str, field: str) -> None:
    """A table from elsewhere may name any file of this machine: only embedded bytes and the Hub's own cache are read."""
    from datasets.config import HF_CACHE_HOME

    cache = os.path.realpath(HF_CACHE_HOME) + os.sep
    for row, image in enumerate(table["image"]):
        if image is None:
            raise UserError(f"{field}: row {row} of {source} has no image")
        if image["bytes"] is None and not os.path.realpath(image["path"] or "").startswith(cache):
            raise UserError(
                f"{field}: row {row} of {source} names the file {image['path']!r} instead of holding its bytes; "
                "embed the images (datasets: Dataset.push_to_hub or embed_table_storage does)"
            )


def _check_classes(where: str, part: Source, names: Sequence[str]) -> None:
    def listed(some: set[str]) -> str:
        return ", ".join(sorted(some, key=natural)[:10]) + (", ..." if len(some) > 10 else "")

    if extra := part.classes - set(names):
        raise UserError(f"{where} has classes that the training data lacks: {listed(extra)}")
    if part.complete and (missing := set(names) - part.classes):
        raise UserError(
            f"{where} lacks the classes {listed(missing)}; if it has no picture of them, add an empty folder of that name"
        )
