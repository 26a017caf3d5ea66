"""The manifest: every image of a data set as one row (id, image, label, hash, group) of a datasets.Dataset.

N rows, K classes. Rows are in the order of their ids, whatever the file system's order is. The image column is
`Image(decode=False)`: bytes or a path, decoded by creature.data.decode alone.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from creature.data.arrow_tables import arrow_compute, iterate_rows, store_table
from creature.data.files import natural
from creature.data.sources import Columns, check_classes, read_source, short_names
from creature.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def read_images(sources: Sequence[str], columns: Columns, field: str, names: Sequence[str] | None = None) -> "Dataset":
    """One Dataset of all sources, with columns id, image, label (ClassLabel), group and source (its number).

    `names` are the classes of the training data; without it the sources define them. Raises UserError, led by the
    recipe's `field`, for a missing or empty source, a class too many or too few, or an image without a label.
    """
    import pyarrow as pa
    from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

    roots = short_names(sources, field)
    parts = [read_source(source, root, columns, field) for source, root in zip(sources, roots, strict=True)]
    if names is None:
        names = sorted({name for part in parts for name in part.classes}, key=natural)
    for source, part in zip(sources, parts, strict=True):
        check_classes(f"{field}: {source}", part, names)
    rows = pa.concat_tables([part.rows for part in parts])
    order = _order_of_ids(rows["id"], field)
    rows = rows.set_column(1, "label", arrow_compute().index_in(rows["label"], pa.array(names, pa.string())))
    rows = rows.append_column("source", pa.array(np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])))
    text = Value("string")
    features = Features(id=text, label=ClassLabel(names=list(names)), group=text, source=Value("int32"))
    images = concatenate_datasets([part.images for part in parts])
    dataset = concatenate_datasets(
        [images, Dataset.from_file(str(store_table(rows.cast(features.arrow_schema))))], axis=1
    )
    return dataset if order is None else dataset.select(order)


def _order_of_ids(ids: Any, field: str) -> np.ndarray | None:
    """The order (N,) in which the ids are sorted, None where they are; raises UserError where two are equal."""

    pc = arrow_compute()
    if pc.all(pc.less(ids[:-1], ids[1:])).as_py() is not False:
        return None
    order = pc.sort_indices(ids).to_numpy()
    in_order = ids.take(order)
    twice = pc.equal(in_order[:-1], in_order[1:]).to_numpy()
    if twice.any():
        name = ids[int(order[:-1][twice].min())]
        raise UserError(f"{field}: two images have the id {name}; rename one of the files")
    return order


def column(dataset: "Dataset", name: str) -> Any:
    """A column as it lies in the table (N,), without an object for each row."""
    return dataset.select_columns(name).with_format("arrow")[:][name]


def fingerprint(ids: Any, labels: Any, hashes: Any, names: Sequence[str]) -> str:
    """Hash of the whole data set: class names, and each row's id, label and content."""
    import pyarrow as pa

    digest = hashlib.sha256(repr(list(names)).encode())
    rows = pa.table({"id": ids, "label": labels, "hash": hashes}).sort_by("id")
    for piece in iterate_rows(rows):
        digest.update("".join(map(repr, piece)).encode())
    return digest.hexdigest()
