"""The manifest: every picture of a data set as one row (id, image, label, hash, group) of a datasets.Dataset.

N rows, K classes. Rows are in the order of their ids, whatever the file system's order is. The image column is
`Image(decode=False)`: bytes or a path, decoded by creature.images.decode alone.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from creature.images.decode import BadImage, content_hash, decode, read
from creature.images.files import natural
from creature.images.sources import Columns, add_column, check_classes, read_source, short_names
from creature.terminal import UserError, progress, warn

if TYPE_CHECKING:
    from datasets import Dataset


def read_images(sources: Sequence[str], columns: Columns, field: str, names: Sequence[str] | None = None) -> "Dataset":
    """One Dataset of all sources, with columns id, image, label (ClassLabel), group and source (its number).

    `names` are the classes of the training data; without it the sources define them. Raises UserError, led by the
    recipe's `field`, for a missing or empty source, a class too many or too few, or an image without a label.
    """
    from datasets import ClassLabel, Value, concatenate_datasets

    roots = short_names(sources, field)
    parts = [read_source(source, root, columns, field) for source, root in zip(sources, roots, strict=True)]
    if names is None:
        names = sorted({name for part in parts for name in part.classes}, key=natural)
    for source, part in zip(sources, parts, strict=True):
        check_classes(f"{field}: {source}", part, names)
    dataset = concatenate_datasets([part.table for part in parts])
    index = {name: i for i, name in enumerate(names)}
    labels = [index[name] for name in dataset["label"]]
    origins = [i for i, part in enumerate(parts) for _ in range(len(part.table))]
    dataset = add_column(dataset.remove_columns("label"), "label", labels, ClassLabel(names=list(names)))
    dataset = add_column(dataset, "source", origins, Value("int32"))
    ids = list(dataset["id"])
    if twice := [name for name, n in Counter(ids).items() if n > 1]:
        raise UserError(f"{field}: two images have the id {twice[0]}; rename one of the files")
    if ids != sorted(ids):
        dataset = dataset.select(sorted(range(len(ids)), key=ids.__getitem__))
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
                if reason is not None:
                    bad[len(hashes)] = reason
                hashes.append(content)
            bar.update(task, completed=len(hashes), speed=f"{bar.tasks[task].speed or 0:.0f}")
    return hashes, bad


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


def fingerprint(ids: Sequence[str], labels: Sequence[int], hashes: Sequence[str], names: Sequence[str]) -> str:
    """Hash of the whole data set: class names, and each row's id, label and content."""
    digest = hashlib.sha256(repr(list(names)).encode())
    for name, label, content in sorted(zip(ids, labels, hashes, strict=True)):
        digest.update(repr((name, int(label), content)).encode())
    return digest.hexdigest()
