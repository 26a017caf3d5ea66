"""What is in folders of images, before any training: classes, sizes, bad files, copies, and leaks between splits.

creature inspect data/
creature inspect data/ --labels data/test_labels.csv --out data.png

Folders called train, val (or valid, validation) and test within a given one are splits; so is any other given folder.
"""

import argparse
import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from creature.console import progress, say, show_table, warn
from creature.data.class_folders import folders_in, mixed_depths, one_class_error, split_of, split_rank
from creature.data.class_names import refuse_look_alikes
from creature.data.decode import BadImage, Encoded, content_hash, read
from creature.data.describe_figure import draw_figure
from creature.data.describe_tables import (
    COPIES_COLUMNS,
    SHOWN,
    SPLIT_COLUMNS,
    CopiedImage,
    ScannedImage,
    advice,
    classes_table,
    kinds_table,
    of_shown,
    splits_of,
    splits_table,
)
from creature.data.duplicates import near_duplicates
from creature.data.files import file_id, list_images, names_in, names_of, read_labels, warn_of_absent
from creature.data.likeness import SHAPE, read_detail
from creature.data.sketches import LENGTH, sketch
from creature.data.sources import short_names
from creature.data.tables import is_table
from creature.device import usable_cores
from creature.errors import UserError, check_installed


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="folders of class folders, or of images")
    parser.add_argument("--labels", metavar="FILE.csv", help="labels (image, label) of images in no class folder")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.png|.csv",
        help="draw classes, sizes and what may be copies; or list all copies",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Scan every image and print what is in them."""
    args = parse(argv)
    labels = read_labels(args.labels) if args.labels else {}
    names = [""] if len(args.folders) == 1 else short_names(args.folders, "folders")
    listed = [
        image for folder, name in zip(args.folders, names, strict=True) for image in find(folder, name, labels=labels)
    ]
    if labels:
        check_labels(args.labels, labels, listed)
    if args.out and any(os.path.realpath(image.path) == os.path.realpath(args.out) for image in listed):
        raise UserError(f"--out: {args.out} is one of the images, and would be replaced; name another file")
    if draws := args.out and args.out.suffix.lower() != ".csv":
        check_installed("report", "--out", "matplotlib")
    images = list(scan(listed))
    copies, in_scene = find_copies(images)
    show_tables(images, copies)
    if draws:
        alike = [copy for copy in copies if copy.likeness is not None]
        draw_figure(images, alike, args.out)
        say(f"{args.out} shows classes and sizes{', and images that may be copies' if alike else ''}")
    elif args.out:
        write_copies(copies, args.out)
        say(f"{args.out} lists {len(copies)} pairs of copies")
    if len(classes := sorted({image.label for image in images if image.label})) == 1:
        raise one_class_error(args.folders, classes[0], "folders")
    refuse_look_alikes(classes, "folders")
    for line in advice(images, copies, in_scene):
        say(line)
    return 0


def check_labels(source: str, labels: dict[str, str], images: Sequence[ScannedImage]) -> None:
    """Raises UserError for a CSV that labels no image, and warns of lines that name none."""
    named = {name: image for image in images for name in names_in(labels, os.path.basename(image.path))[:1]}
    if not named:
        raise UserError(f"--labels: {source} names none of the images; its first is {next(iter(labels))}")
    if not any(image.by_csv for image in images):
        inside = next(iter(named.values()))
        raise UserError(
            f"--labels: {source} names images in class folders alone, such as {inside.id}, whose label is their "
            f"folder's name ({inside.label}); leave --labels out, or move them out of their folders"
        )
    warn_of_absent(source, labels.keys() - named)


def show_tables(images: Sequence[ScannedImage], copies: Sequence[CopiedImage]) -> None:
    """Print splits, classes, sizes and kinds, bad files and copies."""
    show_table("Splits", SPLIT_COLUMNS, splits_table(images))
    if classes := classes_table(images):
        more = f" (the rarest {SHOWN} of {len(classes)})" if len(classes) > SHOWN else ""
        show_table(f"Classes{more}", ("class", *splits_of(images)), classes[:SHOWN])
    show_table("Sizes and kinds", ("", *splits_of(images)), kinds_table(images))
    if bad := [(image.id, image.bad) for image in images if image.bad]:
        show_table(f"Bad files: {len(bad)}{of_shown(bad)}", ("image", "why it cannot be decoded"), bad[:SHOWN])
    if copies:
        rows = [(copy.first.id, copy.other.id, copy.how, copy.remark) for copy in copies]
        show_table(f"Copies: {len(copies)}{of_shown(copies)}", COPIES_COLUMNS, rows[:SHOWN])


def write_copies(copies: Sequence[CopiedImage], path: Path) -> None:
    """A CSV file of all of them; raises UserError where it cannot be written."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "and", "likeness", "remark"))
            for copy in copies:
                likeness = "same file" if copy.likeness is None else f"{copy.likeness:.4f}"
                writer.writerow((copy.first.id, copy.other.id, likeness, copy.remark))
    except OSError as error:
        raise UserError(f"--out: cannot write {path}: {error.strerror}") from error


def find(folder: str, name: str, *, labels: dict[str, str]) -> Iterator[ScannedImage]:
    """The images of a folder, by split, with the label that their class folder or the CSV gives them.

    `name` tells the splits of several folders apart; without one, an image's id is its path within the folder. Raises
    UserError for a folder that is not there, or holds no image, and for a line of the CSV that fits several images.
    """
    if is_table(folder):
        raise UserError(f"{folder}: a table, and inspect looks at folders of image files")
    inside = sorted(filter(split_of, folders_in(folder) if os.path.isdir(folder) else []), key=split_rank)
    roots = [os.path.join(folder, name) for name in inside] or [folder]
    for root in roots:
        base = os.path.basename(os.path.normpath(root))
        split = base if not name else f"{name}/{base}" if inside else name
        if not (paths := list_images(root)):
            raise UserError(f"{root}: holds no images")
        insides = {path: os.path.relpath(path, root) for path in sorted(paths)}
        named = names_of(labels, (within for within in insides.values() if os.sep not in within))
        for line in mixed_depths(root, insides.values()):
            warn(line)
        for path, within in insides.items():
            top, separator, _ = within.partition(os.sep)
            label = top if separator else labels[named[within]] if within in named else ""
            yield ScannedImage(
                file_id(path if name else os.path.relpath(path, folder)),
                path,
                split,
                label=file_id(label),
                by_csv=within in named,
            )


def scan(images: Sequence[ScannedImage]) -> Iterator[ScannedImage]:
    """The images with what is in their files; as many at once as there are cores."""
    with progress() as bar, ThreadPoolExecutor(usable_cores()) as pool:
        task = bar.add_task("looking", total=len(images), speed="")
        for image in pool.map(_scan, images):
            yield image
            bar.update(task, advance=1, speed=f"{bar.tasks[task].speed or 0:.0f}")


def _scan(image: ScannedImage) -> ScannedImage:
    try:
        data = read({"path": image.path})
        image = image._replace(content=content_hash(data))
        encoded = Encoded(data)
        return image._replace(kind=encoded.kind, size=encoded.size, sketch=sketch(encoded.image()))
    except BadImage as reason:
        return image._replace(bad=str(reason))


def find_copies(images: Sequence[ScannedImage]) -> tuple[list[CopiedImage], int]:
    """Images that are there more than once, then those that look the same; of both, those in two splits come first.

    And how many images may share a scene with others.
    """
    first: dict[str, int] = {}
    firsts = [first.setdefault(image.content, row) if image.content else row for row, image in enumerate(images)]
    copies = [CopiedImage(images[one], images[row]) for row, one in enumerate(firsts) if one != row]
    sketches = np.frombuffer(b"".join(image.sketch or bytes(LENGTH) for image in images), np.uint8).reshape(-1, LENGTH)
    alike = near_duplicates(sketches, partial(_details, images), np.array(firsts) == np.arange(len(images)))
    for (one, other), likeness in zip(alike.pairs.tolist(), alike.likeness.tolist(), strict=True):
        copies.append(CopiedImage(images[one], images[other], likeness))

    def rank(copy: CopiedImage) -> tuple[bool, bool, bool, float]:
        same_split = copy.first.split == copy.other.split
        return copy.likeness is not None, same_split, not copy.conflicts, -(copy.likeness or 0)

    return sorted(copies, key=rank), int(alike.in_scene.sum())


def _details(images: Sequence[ScannedImage], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels (n, 64, 64, 3) and sides (n,) of some images (likeness.Details)."""
    paths = [images[row].path for row in rows.tolist()]
    with ThreadPoolExecutor(usable_cores()) as pool:
        details = list(pool.map(lambda path: read_detail(path, {"path": path}), paths))
    levels = np.frombuffer(b"".join(level for level, _ in details), np.uint8).reshape(-1, *SHAPE)
    return levels, np.array([side for _, side in details], np.int64)
