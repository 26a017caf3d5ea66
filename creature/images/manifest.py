"""The manifest: every picture of a data set as one row (id, image, label, hash, group) of a datasets.Dataset.

N rows, K classes. Rows are in the order of their ids, whatever the file system's order is. The image column is
`Image(decode=False)`: bytes or a path, decoded by creature.images.decode alone.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from creature.images.files import natural
from creature.images.sources import Columns, add_column, check_classes, read_source, short_names
from creature.terminal import UserError

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


def fingerprint(ids: Sequence[str], labels: Sequence[int], hashes: Sequence[str], names: Sequence[str]) -> str:
    """Hash of the whole data set: class names, and each row's id, label and content."""
    digest = hashlib.sha256(repr(list(names)).encode())
    for name, label, content in sorted(zip(ids, labels, hashes, strict=True)):
        digest.update(repr((name, int(label), content)).encode())
    return digest.hexdigest()
