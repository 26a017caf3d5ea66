"""Image files: how they are found, ordered and named, and the CSV that labels them."""

import csv
import os
import re
import sys
import unicodedata
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from creature.console import printable, warn
from creature.data.decode import BadImage, read
from creature.errors import UserError

_KINDS = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "avif")
ENDINGS = frozenset(f".{kind}" for kind in _KINDS)
# Folders that systems make beside pictures, with thumbnails and deleted files: of NAS devices, macOS, Windows, Linux.
_SYSTEM = frozenset(
    (
        "@eadir",
        "@recycle",
        "#recycle",
        "#snapshot",
        "__macosx",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    )
)
_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # what stands for such bytes in a path
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def natural_key(name: str) -> tuple[Any, ...]:
    """Sort key under which 2 comes before 10; the name itself decides between 1 and 01."""
    digits = [part.lstrip("0") for part in re.findall(r"[0-9]+", name)]
    texts = re.split(r"[0-9]+", name)
    return texts[0], tuple((len(d), d, text) for d, text in zip(digits, texts[1:], strict=True)), name


def file_id(path: str) -> str:
    """A path with / between its parts; percent-encoded where it is no UTF-8 or holds control characters."""
    path = path.replace(os.sep, "/")
    if _NOT_UTF8.search(path) or _CONTROL.search(path):
        return quote(path, safe="/ !#$&'()*+,;=:@[]~", errors=sys.getfilesystemencodeerrors())
    return path


def file_image(path: str) -> dict[str, Any]:
    """The image value of a file: its path, or its bytes where the path is no UTF-8 and no table could hold it."""
    if not _NOT_UTF8.search(path):
        return {"bytes": None, "path": path}
    try:
        return {"bytes": read({"path": path}), "path": None}
    except BadImage:
        return {"bytes": b"", "path": None}  # keeps its row, and is listed as unreadable there


def walk_files(folder: str) -> Iterator[str]:
    """Paths of all files below a folder, those of systems aside; each folder once, however many links lead to it."""
    seen: set[tuple[int, int]] = set()
    folders, links = [folder], deque[str]()
    while folders or links:
        path = folders.pop() if folders else links.popleft()  # links last: a folder keeps its own path
        try:
            info = os.stat(path)
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; mend it, or move it elsewhere") from error
        if (info.st_dev, info.st_ino) in seen:
            continue
        seen.add((info.st_dev, info.st_ino))
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if not is_folder(entry):
                yield entry.path
            elif entry.is_symlink():
                links.append(entry.path)
            else:
                folders.append(entry.path)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is its system's, by its name: .DS_Store, @eaDir, __MACOSX, ..."""
    return name.startswith(".") or name.lower() in _SYSTEM


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def list_images(folder: str) -> list[str]:
    """Paths of all files below a folder that are images by their ending; warns of the others."""
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder")
    paths = list(walk_files(folder))
    images = [path for path in paths if os.path.splitext(path)[1].lower() in ENDINGS]
    if len(images) < len(paths):
        others = Counter(os.path.splitext(path)[1].lower() or "no ending" for path in set(paths) - set(images))
        counts = [f"{n} {printable(ending)}" for ending, n in sorted(others.items())]
        more = [f"and {len(counts) - 10} more endings"] if len(counts) > 10 else []
        listed = ", ".join(counts[:10] + more)
        warn(f"{folder}: {len(paths) - len(images)} files are no images by their ending and left out ({listed})")
    return images


def spelling(name: str) -> str:
    """A name as it is compared: a CSV may have another form of Unicode than the file, backslashes, or ./ before it."""
    return unicodedata.normalize("NFC", name).strip().replace("\\", "/").removeprefix("./")


def read_labels(path: str, label_column: str = "label") -> dict[str, str]:
    """Image name -> label of a CSV: the first column names the image, with or without its ending.

    Raises UserError for a file that cannot be read, has no header, or names an image twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            header, *rows = [(reader.line_num, row) for row in reader if row] or [(1, [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        way_out = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read as CSV: {reason}{way_out}") from error
    label_index = _label_index(path, header[1], label_column)
    labels: dict[str, str] = {}
    for line, row in rows:
        if len(row) != len(header[1]):
            raise UserError(f"{path}, line {line}: {len(row)} cells under a header of {len(header[1])}")
        name = spelling(row[0])
        if name in labels:
            raise UserError(
                f"{path}, line {line}: {name} has a label already; remove one of the two lines, "
                "or name their folders, as in a/b.jpg"
            )
        labels[name] = row[label_index]
    first = header[1]
    if os.path.splitext(first[0])[1].lower() in ENDINGS or first[label_index] in labels.values():
        raise UserError(
            f"{path}: its first line, {','.join(first)!r}, names an image and its label, and would be lost as the "
            f"header; write one above it, such as image,{label_column}"
        )
    return labels


def _label_index(path: str, header: list[str], label_column: str) -> int:
    """Index of the label: the column of that name; for the name `label`, also pred_label or the second of two."""
    names = [label_column, "pred_label"] if label_column == "label" else [label_column]
    if indices := [header.index(name, 1) for name in names if name in header[1:]]:
        return indices[0]
    if len(header) != 2 or label_column != "label" or header[0] in names:
        raise UserError(
            f"{path}: needs a header whose first column names the image and that has a column {label_column!r}, "
            f"got {','.join(header)!r}{'; put commas between the cells' if len(header) == 1 else ''}"
        )
    return 1


def names_of(labels: dict[str, str], paths: Iterable[str]) -> dict[str, str]:
    """What the CSV calls each image that it names: its relative path or file name, with or without the ending.

    Raises UserError for a line that fits several images, and for lines of one image that contradict each other.
    """
    fitting = {path: named for path in paths if (named := names_in(labels, path))}
    names = {path: named[0] for path, named in fitting.items()}
    used = set(names.values())
    for path, (name, *others) in fitting.items():
        for other in others:
            if other not in used and labels[other] != labels[name]:
                raise UserError(
                    f"labels: {path} has two lines, {name},{labels[name]} and {other},{labels[other]}; remove one"
                )
    fits: dict[str, list[str]] = {}
    for path, name in names.items():
        fits.setdefault(name, []).append(path)
    for name, images in fits.items():
        if len(images) > 1:
            shown = ", ".join(sorted(images, key=natural_key)[:5]) + ", ..." * (len(images) > 5)
            raise UserError(
                f"labels: the line of {name} fits {len(images)} images: {shown}; name each with its folder and ending, "
                "as in a/b.jpg"
            )
    return names


def warn_of_absent(source: str, names: Collection[str]) -> None:
    """Warn of lines of a CSV that name no image."""
    if names:
        first = min(names) or "one with an empty name"
        warn(f"{source}: {len(names)} lines name no image that is there, such as {first}")


def names_in(labels: dict[str, str], path: str) -> list[str]:
    """What the CSV calls an image, the most exact name first; empty where it does not name it."""
    names: list[str] = []
    for spelled in dict.fromkeys((spelling(path.replace(os.sep, "/")), spelling(file_id(path)))):
        pure = PurePosixPath(spelled)
        names += (str(pure), str(pure.with_suffix("")), pure.name, pure.stem)
    return [name for name in dict.fromkeys(names) if name in labels]
