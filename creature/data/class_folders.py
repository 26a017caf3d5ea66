"""Folders by their names: of classes, of splits of a data set, and one level above or below what was meant."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence

from creature.data.files import is_folder, is_hidden, natural_key
from creature.errors import UserError

_SPLIT = re.compile(
    r"(?:\w+[_-])?(train|val|valid|validat|test)(?:ing|ion)?(?:[_-]?(?:set|images|data))?", re.IGNORECASE
)
RARE = 20  # times fewer images than the mean class, and perhaps no class at all
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
    roots = [
        os.path.join(source, split)
        for source in filter(os.path.isdir, sources)
        for split in ("", *filter(split_of, folders_in(source)))
    ]
    folders = [_innermost(path) for root in roots if os.path.isdir(path := os.path.join(root, name))]
    inside = {child for folder in folders for child in folders_in(folder)}
    way_out = "give a folder with a folder for each class"
    if len(inside) > 1:
        way_out = f"the folders in it ({_shown(inside)}) look like classes: give {', '.join(folders)}"
    return UserError(f"{field}: {', '.join(sources)} holds one class alone, {name}; {way_out}")


def mixed_depths(source: str, paths: Iterable[str]) -> list[str]:
    """Lines on classes that hold folders alone, where others hold images; `paths` are of images within the source."""
    parts = [path.split(os.sep) for path in paths]
    holding = {part[0] for part in parts if len(part) == 2}
    inside: dict[str, set[str]] = {}
    for part in parts:
        if len(part) > 2 and part[0] not in holding:
            inside.setdefault(part[0], set()).add(part[1])
    return [
        f"{os.path.join(source, name)} holds {len(folders)} folders ({_shown(folders)}) and no image, where other "
        f"classes hold images; all in it is one class, {name}: if these folders are the classes, "
        f"move them up into {source}"
        for name, folders in inside.items()
        if len(folders) > 1 and holding
    ]


def rare_classes(counts: Mapping[str, int]) -> dict[str, str]:
    """Of classes with hardly any of the images, given how many each has, what to say of each."""
    mean = sum(counts.values()) / max(1, len(counts))
    way_out = "add images of it, or leave it out if it is no class"
    return {
        name: f"{name} has {n} of {sum(counts.values())} images, where the mean class has {mean:.0f}; {way_out}"
        for name, n in counts.items()
        if 0 < n * RARE < mean
    }


def _shown(names: Iterable[str]) -> str:
    listed = sorted(names, key=natural_key)
    return ", ".join(listed[:5]) + ", ..." * (len(listed) > 5)
