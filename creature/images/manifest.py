"""The manifest: every picture of a data set as one row (id, image, label, hash, group) of a datasets.Dataset.

N rows, K classes. Rows are in the order of their ids, whatever the file system's order is. The image column is
`Image(decode=False)`: bytes or a path, decoded by creature.images.decode alone.
"""

import csv
import hashlib
import os
import re
import urllib.parse
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from creature.images.decode import BadImage, decode, read
from creature.terminal import UserError, progress, warn

if TYPE_CHECKING:
    from datasets import Dataset

_KINDS = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "avif")
ENDINGS = frozenset(f".{kind}" for kind in _KINDS)
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
    digits = [part.lstrip("0") for part in re.findall(r"[0-9]+", name)]
    texts = re.split(r"[0-9]+", name)
    return texts[0], tuple((len(d), d, text) for d, text in zip(digits, texts[1:], strict=True)), name


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
        try:
            return {"bytes": read({"path": path}), "path": None}
        except BadImage:
            return {"bytes": b"", "path": None}  # keeps its row, and is listed as unreadable there
    return {"bytes": None, "path": path}


def walk(folder: str) -> Iterator[str]:
    """Paths of all files below a folder, hidden ones aside; each folder once, however many links lead to it."""
    seen: set[tuple[int, int]] = set()
    folders, links = [folder], deque[str]()
    while folders or links:
        here = folders.pop() if folders else links.popleft()  # links last: a folder keeps its own path
        try:
            info = os.stat(here)
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{here}: cannot be read: {error.strerror}; mend it, or move it elsewhere") from None
        if (info.st_dev, info.st_ino) in seen:
            continue
        seen.add((info.st_dev, info.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                yield entry.path
            elif entry.is_symlink():
                links.append(entry.path)
            else:
                folders.append(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def list_pictures(folder: str) -> list[str]:
    """Paths of all files below a folder that are pictures by their ending; says how many others there are."""
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder")
    paths = list(walk(folder))
    pictures = [path for path in paths if os.path.splitext(path)[1].lower() in ENDINGS]
    if len(pictures) < len(paths):
        others = Counter(os.path.splitext(path)[1].lower() or "no ending" for path in set(paths) - set(pictures))
        named = [f"{n} {ending}" for ending, n in sorted(others.items())]
        more = [f"and {len(named) - 10} more endings"] if len(named) > 10 else []
        listed = ", ".join(named[:10] + more)
        warn(f"{folder}: {len(paths) - len(pictures)} files are no pictures by their ending and left out ({listed})")
    return pictures


def read_images(sources: Sequence[str], columns: Columns, field: str, names: Sequence[str] | None = None) -> "Dataset":
    """One Dataset of all sources, with columns id, image, label (ClassLabel), group and source (its number).

    `names` are the classes of the training data; without it the sources define them. Raises UserError, led by the
    recipe's `field`, for a missing or empty source, a class too many or too few, or an image without a label.
    """
    from datasets import ClassLabel, Value, concatenate_datasets

    roots = _roots(sources, field)
    parts = [_read_source(source, root, columns, field) for source, root in zip(sources, roots, strict=True)]
    if names is None:
        names = sorted({name for part in parts for name in part.classes}, key=natural)
    for source, part in zip(sources, parts, strict=True):
        _check_classes(f"{field}: {source}", part, names)
    dataset = concatenate_datasets([part.table for part in parts])
    index = {name: i for i, name in enumerate(names)}
    labels = [index[name] for name in dataset["label"]]
    origins = [i for i, part in enumerate(parts) for _ in range(len(part.table))]
    dataset = _add_column(dataset.remove_columns("label"), "label", labels, ClassLabel(names=list(names)))
    dataset = _add_column(dataset, "source", origins, Value("int32"))
    ids = list(dataset["id"])
    if twice := [name for name, n in Counter(ids).items() if n > 1]:
        raise UserError(f"{field}: two images have the id {twice[0]}; rename one of the files")
    if ids != sorted(ids):
        dataset = dataset.select(sorted(range(len(ids)), key=ids.__getitem__))
    return dataset


def _add_column(table: "Dataset", name: str, values: list[Any], feature: Any) -> "Dataset":
    """With its type from the start: a cast would copy all images to the cache."""
    return table.add_column(name, values, feature=feature)  # type: ignore[call-arg]


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
                if reason is not None:
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
            reader = csv.reader(file)
            header, *rows = [(reader.line_num, row) for row in reader if row] or [(1, [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from None
    at = _label_at(path, header[1], label_column)
    labels: dict[str, str] = {}
    for line, row in rows:
        if len(row) != len(header[1]):
            raise UserError(f"{path}, line {line}: {len(row)} cells under a header of {len(header[1])}")
        if row[0] in labels:
            raise UserError(f"{path}, line {line}: {row[0]} has a label already; remove one of the two lines")
        labels[row[0]] = row[at]
    return labels


def _label_at(path: str, header: list[str], label_column: str) -> int:
    """Position of the label: the column of that name; for the name `label`, also pred_label or the second of two."""
    wanted = [label_column, "pred_label"] if label_column == "label" else [label_column]
    if found := [header.index(name, 1) for name in wanted if name in header[1:]]:
        return found[0]
    if len(header) != 2 or label_column != "label" or header[0] in wanted:
        raise UserError(
            f"{path}: needs a header whose first column names the image and that has a column {label_column!r}, "
            f"got {','.join(header)!r}"
        )
    return 1


def label_of(labels: dict[str, str], path: str) -> str | None:
    """The label of an image whose CSV names it by relative path or by file name, with or without the ending."""
    pure = PurePosixPath(path.replace(os.sep, "/"))
    names = (str(pure), str(pure.with_suffix("")), pure.name, pure.stem)
    return next((labels[name] for name in names if name in labels), None)


def fingerprint(ids: Sequence[str], labels: Sequence[int], hashes: Sequence[str], names: Sequence[str]) -> str:
    """Hash of the whole data set: class names, and each row's id, label and content."""
    digest = hashlib.sha256(repr(list(names)).encode())
    for name, label, content in sorted(zip(ids, labels, hashes, strict=True)):
        digest.update(repr((name, int(label), content)).encode())
    return digest.hexdigest()


def _roots(sources: Sequence[str], field: str) -> list[str]:
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
    classes = {file_id(entry.name) for entry in os.scandir(source) if _is_folder(entry) and entry.name[0] != "."}
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
        table = _add_column(table, name, values, Value("string"))
    return Source(table, set(feature.names) if named else set(labels), complete=named)


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


def _check_classes(where: str, part: Source, names: Sequence[str]) -> None:
    def listed(some: set[str]) -> str:
        return ", ".join(sorted(some, key=natural)[:10]) + (", ..." if len(some) > 10 else "")

    if extra := part.classes - set(names):
        raise UserError(f"{where} has classes that the training data lacks: {listed(extra)}")
    if part.complete and (missing := set(names) - part.classes):
        raise UserError(f"{where} lacks the classes {listed(missing)}; if it has no picture of them, add empty folders")
