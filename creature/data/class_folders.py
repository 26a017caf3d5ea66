"""Folders by their names: of classes, of splits of a data set, and one level above or below what was meant."""

import os
import re
from collections.abc import Sequence

from creature.data.files import is_folder, is_hidden, natural_key
from creature.errors import UserError

_SPLIT = re.compile(
    r"(?:\w+[_-])?(train|val|valid|validat|test)(?:ing|ion)?(?:[_-]?(?:set|images|data))?", re.IGNORECASE
)
_ORDER = ("train", "val", "test")


def folders_in(folder: str) -> list[str]:
    """The names of the folders in a folder, in natural order; those of systems aside."""
    return sorted(
        (entry.name for entry in os.scandir(folder) if is_folder(entry) and not is_hidden(entry.name)), key=natural_key
    )


def split_of(folder: str) -> str:
    """The split that a folder of this name holds (Training, seg_test, valid): train, val, test; empty for others."""
    match = _SPLIT.fullmatch(folder)
    return next(split for split in _ORDER if match[1].lower().startswith(split)) if match else ""


def split_rank(folder: str) -> tuple[int, str]:
    """Sort key of folders of splits: those to train on, to validate with, to test with."""
    return _ORDER.index(split_of(folder)), folder


def _innermost(folder: str) -> str:
    """The folder, or the one below it that does not hold a single folder."""
    while len(inside := folders_in(folder)) == 1:
        folder = os.path.join(folder, inside[0])
    return folder


def one_class_error(sources: Sequence[str], name: str, field: str) -> UserError:
    """The error where all images are of one class: often the folder below was meant."""
    folders = [_innermost(path) for source in sources if os.path.isdir(path := os.path.join(source, name))]
    inside = [child for folder in folders for child in folders_in(folder)]
    way_out = "give a folder with a folder for each class"
    if len(inside) > 1:
        shown = ", ".join(inside[:5]) + ", ..." * (len(inside) > 5)
        way_out = f"the folders in it ({shown}) look like classes: give {', '.join(folders)}"
    return UserError(f"{field}: {', '.join(sources)} holds one class alone, {name}; {way_out}")
