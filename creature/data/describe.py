"""What is in folders of images, before any training: classes, sizes, bad files, copies, and leaks between splits.

creature inspect data/
creature inspect data/ --labels data/test_labels.csv --out data.png

Folders called train, val (or valid, validation) and test within a given one are splits; so is any other given folder.
N images.
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from creature.console import progress, say, show_table
from creature.data.decode import BadImage, Encoded, content_hash, read
from creature.data.duplicates import LENGTH, near_duplicates, sketch
from creature.data.files import file_id, label_of, list_images, natural, read_labels
from creature.data.sources import SPLITS, short_names
from creature.device import usable_cores
from creature.errors import UserError

SHOWN = 20  # rows of a table


class ScannedImage(NamedTuple):
    """One file, and what was found of it."""

    id: str
    path: str
    split: str
    label: str  # empty where there is none
    content: str = ""
    size: tuple[int, int] = (0, 0)  # width, height
    kind: str = ""  # format and mode
    bad: str = ""  # why it cannot be decoded
    sketch: bytes = b""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", help="folders of class folders, or of images")
    parser.add_argument("--labels", metavar="FILE.csv", help="labels (image, label) of images in no class folder")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="draw classes and sizes, too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Look at every image, and say what was found."""
    args = parse(argv)
    labels = read_labels(args.labels) if args.labels else {}
    alone = len(args.folders) == 1
    names = [""] if alone else short_names(args.folders, "folders")
    named = zip(args.folders, names, strict=True)
    pictures = [picture for folder, name in named for picture in find(folder, labels, name)]
    if labels and not any(label_of(labels, os.path.basename(picture.path)) for picture in pictures):
        raise UserError(f"--labels: {args.labels} names none of the images; its first is {next(iter(labels))}")
    if args.out and any(os.path.realpath(picture.path) == os.path.realpath(args.out) for picture in pictures):
        raise UserError(f"--out: {args.out} is one of the images, and would be replaced; name another file")
    found = list(look(pictures))
    show_table("Splits", SPLIT_COLUMNS, splits_table(found))
    if classes := classes_table(found):
        more = f" (the rarest {SHOWN} of {len(classes)})" if len(classes) > SHOWN else ""
        show_table(f"Classes{more}", ("class", *splits_of(found)), classes[:SHOWN])
    show_table("Sizes and kinds", ("", *splits_of(found)), kinds_table(found))
    if bad := [(picture.id, picture.bad) for picture in found if picture.bad]:
        show_table(f"Bad files: {len(bad)}{of_shown(bad)}", ("picture", "why it cannot be decoded"), bad[:SHOWN])
    copies = copies_of(found)
    if copies:
        rows = [(one.id, other.id, what, remark(one, other)) for one, other, what in copies]
        show_table(f"Copies: {len(copies)}{of_shown(copies)}", ("picture", "the same as", "how", ""), rows[:SHOWN])
    if args.out:
        from creature.data.describe_figure import draw_figure

        draw_figure(found, args.out)
        say(f"{args.out} shows classes and sizes")
    for line in advice(found, copies):
        say(line)
    return 0


def find(folder: str, labels: dict[str, str], name: str) -> Iterator[ScannedImage]:
    """The images of a folder, by split, with the label that their class folder or the CSV gives them.

    Of several folders each has a name, by which its splits are told apart; of one that stands alone, which has none,
    images are called by their path within it.

    Raises UserError for a folder that is not there, or holds none.
    """
    inside = [name for name in SPLITS if os.path.isdir(os.path.join(folder, name))]
    roots = [os.path.join(folder, name) for name in inside] or [folder]
    for root in roots:
        own = os.path.basename(os.path.normpath(root))
        split = own if not name else f"{name}/{own}" if inside else name
        if not (paths := list_images(root)):
            raise UserError(f"{root}: holds no images")
        for path in sorted(paths):
            within = os.path.relpath(path, root)
            top, separator, _ = within.partition(os.sep)
            label = top if separator else label_of(labels, within) or ""
            yield ScannedImage(file_id(path if name else os.path.relpath(path, folder)), path, split, file_id(label))


def look(pictures: Sequence[ScannedImage]) -> Iterator[ScannedImage]:
    """The images with what is found in their files; as many at once as there are cores."""
    with progress() as bar, ThreadPoolExecutor(usable_cores()) as pool:
        task = bar.add_task("looking", total=len(pictures), speed="")
        for seen in pool.map(_look, pictures):
            yield seen
            bar.update(task, advance=1, speed=f"{bar.tasks[task].speed or 0:.0f}")


def _look(picture: ScannedImage) -> ScannedImage:
    try:
        data = read({"path": picture.path})
        picture = picture._replace(content=content_hash(data))
        encoded = Encoded(data)
        return picture._replace(kind=encoded.kind, size=encoded.size, sketch=sketch(encoded.image()))
    except BadImage as reason:
        return picture._replace(bad=str(reason))


def splits_of(found: Sequence[ScannedImage]) -> list[str]:
    """The splits, in the order of the folders."""
    return list(dict.fromkeys(picture.split for picture in found))


SPLIT_COLUMNS = ("split", "pictures", "bad", "classes", "rarest", "most frequent", "imbalance")


def splits_table(found: Sequence[ScannedImage]) -> list[tuple[str, ...]]:
    """A row for each split."""
    rows = []
    for split in splits_of(found):
        own = [picture for picture in found if picture.split == split]
        counts = Counter(picture.label for picture in own if picture.label)
        bad = str(sum(bool(picture.bad) for picture in own))
        if counts:
            rare, often = min(counts.items(), key=lambda item: item[1]), max(counts.items(), key=lambda item: item[1])
            ends = (f"{rare[0]} {rare[1]}", f"{often[0]} {often[1]}", f"{often[1] / rare[1]:.1f} : 1")
        else:
            ends = ("", "", "")
        rows.append((split, str(len(own)), bad, str(len(counts)) if counts else "no labels", *ends))
    return rows


def classes_table(found: Sequence[ScannedImage]) -> list[tuple[str, ...]]:
    """Images of each class in each split, the rarest class first."""
    counts = Counter((picture.label, picture.split) for picture in found if picture.label)
    totals = Counter(picture.label for picture in found if picture.label)
    order = sorted(totals, key=lambda name: (totals[name], natural(name)))
    return [(name, *(str(counts[name, split]) for split in splits_of(found))) for name in order]


def kinds_table(found: Sequence[ScannedImage]) -> list[tuple[str, ...]]:
    """Shorter sides, and how many images are of which format and mode."""
    columns = [[picture for picture in found if picture.split == s and picture.kind] for s in splits_of(found)]
    sides = [np.array([min(picture.size) for picture in own] or [0]) for own in columns]
    rows = [
        (name, *(f"{value(side):.0f} px" for side in sides))
        for name, value in (("shortest side", np.min), ("median shorter side", np.median), ("longest shorter", np.max))
    ]
    kinds = Counter(picture.kind for own in columns for picture in own)
    for kind, _ in kinds.most_common(SHOWN):
        rows.append((kind, *(str(sum(picture.kind == kind for picture in own)) for own in columns)))
    return rows


def copies_of(found: Sequence[ScannedImage]) -> list[tuple[ScannedImage, ScannedImage, str]]:
    """Images that are there more than once, each with the first one; those in two splits come first."""
    first: dict[str, int] = {}
    sketches = np.zeros((len(found), LENGTH), dtype=np.uint8)
    for row, picture in enumerate(found):
        if picture.sketch:
            sketches[row] = np.frombuffer(picture.sketch, np.uint8)
    alike = near_duplicates(sketches)
    pairs = []
    for row, picture in enumerate(found):
        same = first.setdefault(picture.content, row) if picture.content else row
        if same != row:
            pairs.append((found[same], picture, "the same file"))
        elif alike[row] != row:
            pairs.append((found[alike[row]], picture, "looks the same"))
    return sorted(pairs, key=lambda pair: (pair[0].split == pair[1].split, pair[0].label == pair[1].label))


def remark(one: ScannedImage, other: ScannedImage) -> str:
    """What is wrong with two copies."""
    leak = "in two splits" if one.split != other.split else ""
    conflict = "two labels" if one.label and other.label and one.label != other.label else ""
    return ", ".join(filter(None, (leak, conflict)))


def of_shown(rows: Sequence[object]) -> str:
    """What a title says of a long table."""
    return f" (the first {SHOWN})" if len(rows) > SHOWN else ""


def advice(found: Sequence[ScannedImage], copies: Sequence[tuple[ScannedImage, ScannedImage, str]]) -> Iterator[str]:
    """What to do about it, and the folds that the images allow."""
    for one, other in combinations(splits_of(found), 2):
        if n := sum({a.split, b.split} == {one, other} for a, b, _ in copies):
            yield f"{other} has copies of images in {one} ({n}): its score would flatter; remove them there"
    if n := sum("two labels" in remark(a, b) for a, b, _ in copies):
        yield f"copies with another label than their first: {n}; correct the labels"
    if n := sum(bool(picture.bad) for picture in found):
        yield f"files that cannot be decoded: {n}; mend or remove them, or images.max_bad says how many may be left out"
    for split in splits_of(found):
        own = [picture.label for picture in found if picture.split == split]
        if any(own) and (n := own.count("")):
            yield f"{split} has images without a label: {n} of {len(own)}"
    trainable = [picture for picture in found if picture.label and picture.split.rpartition("/")[2] != "test"]
    labelled = Counter[str]()
    for picture in trainable:
        labelled[picture.label] += not picture.bad  # a class of bad files alone is there, too
    if labelled and (unknown := sorted({picture.label for picture in found} - {"", *labelled})):
        named = ", ".join(unknown[:SHOWN])
        yield f"classes that only test has ({len(unknown)}): {named}; correct the labels, or add images to train on"
    if not labelled:
        return
    rarest, n = min(labelled.items(), key=lambda item: item[1])
    sources = sorted({picture.split for picture in trainable}, key=splits_of(found).index)
    if n < 2:
        has = "one" if n else "none"
        yield f"suggested: more images of {rarest}, which has {has}: no fold can train on it and hold it out"
    elif n < 5:
        yield f"suggested: folds.count={n}, for {rarest} has {n} images, over {' and '.join(sources)} pooled"
    else:
        why = f"{rarest}, the rarest class, has {n} images, so each of five folds holds out {n // 5} or more"
        yield f"suggested: folds.count=5 over {' and '.join(sources)} pooled: {why}"
    if copies:
        yield "copies are kept in one fold by themselves; folds.group does the same for series of one animal or place"
