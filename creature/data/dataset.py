"""The manifest: every image of a data set as one row (id, image, label, hash, group) of a datasets.Dataset.

N rows, K classes. Rows are in the order of their ids, whatever the file system's order is. The image column is
`Image(decode=False)`: bytes or a path, decoded by creature.data.decode alone.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from creature.data.arrow_tables import arrow_compute, iterate_rows, store_table
from creature.data.class_names import check_classes, refuse_look_alikes
from creature.data.files import natural_key, warn_of_absent
from creature.data.sources import SourceFormat, SourceSpec, read_source, short_names
from creature.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def read_images(
    sources: Sequence[str], source_format: SourceFormat, field: str, *, class_names: Sequence[str] | None = None
) -> "Dataset":
    """One Dataset of all sources, with columns id, image, label (ClassLabel), group and source (its number).

    `class_names` are those of the training data; without them the sources define them. Raises UserError, led by the
    recipe's `field`, for a missing or empty source, a class too many or too few, or an image without a label.
    """
    from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

    roots = short_names(sources, field)
    tables = [
        read_source(SourceSpec(source, root, source_format, field=field))
        for source, root in zip(sources, roots, strict=True)
    ]
    if class_names is None:
        class_names = sorted({name for table in tables for name in table.classes}, key=natural_key)
        refuse_look_alikes(class_names, field)
    for source, table in zip(sources, tables, strict=True):
        check_classes(f"{field}: {source}", table.classes, class_names, complete=table.complete)
    warn_of_absent(str(source_format.labels_csv), frozenset.intersection(*(table.absent for table in tables)))
    rows = pa.concat_tables([table.rows for table in tables])
    order = _order_of_ids(rows["id"], field)
    rows = rows.set_column(1, "label", arrow_compute().index_in(rows["label"], pa.array(class_names, pa.string())))
    numbers = np.repeat(np.arange(len(tables)), [len(table.rows) for table in tables])
    rows = rows.append_column("source", pa.array(numbers))
    text = Value("string")
    features = Features(id=text, label=ClassLabel(names=list(class_names)), group=text, source=Value("int32"))
    images = concatenate_datasets([table.images for table in tables])
    stored = Dataset.from_file(str(store_table(rows.cast(features.arrow_schema))))
    dataset = concatenate_datasets([images, stored], axis=1)
    return dataset if order is None else dataset.select(order)


def _order_of_ids(ids: Any, field: str) -> np.ndarray | None:
    """The order (N,) that sorts the ids, None where they are sorted; raises UserError where two are equal."""
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
    """A column (N,) as an Arrow array, without a Python object for each row."""
    return dataset.select_columns(name).with_format("arrow")[:][name]


def rows_of_run(dataset: "Dataset", rows: np.ndarray, ids: Any) -> "Dataset":
    """Some rows of a data set, in this order, under the ids (N,) that a run knows them by: files may have moved."""
    from datasets import Dataset, concatenate_datasets

    dataset = dataset if np.array_equal(rows, np.arange(len(dataset))) else dataset.select(rows)
    if column(dataset, "id").equals(ids):
        return dataset
    named = Dataset.from_file(str(store_table(pa.table({"id": ids.combine_chunks()}))))
    return concatenate_datasets([dataset.remove_columns("id"), named], axis=1)


def fingerprint(ids: Any, labels: Any, hashes: Any, *, class_names: Sequence[str]) -> str:
    """Hash of a data set: class names, and each row's id, label and content."""
    digest = hashlib.sha256(repr(list(class_names)).encode())
    rows = pa.table({"id": ids, "label": labels, "hash": hashes}).sort_by("id")
    for some_rows in iterate_rows(rows):
        digest.update("".join(map(repr, some_rows)).encode())
    return digest.hexdigest()
