"""Tables with a column of images: Parquet and Arrow files, folders of datasets' save_to_disk, data sets of the Hub."""

import glob
import os
from typing import TYPE_CHECKING

from creature.data.arrow_tables import store_table
from creature.data.class_folders import folders_in
from creature.errors import UserError, network_reason

if TYPE_CHECKING:
    from datasets import Dataset

TABLES = (".parquet", ".arrow")
SAVED, SPLITS = "state.json", "dataset_dict.json"  # which save_to_disk leaves in a folder


def is_table(source: str) -> bool:
    """Whether a source is a table with a column of images: a file, what save_to_disk has written, or of the Hub."""
    saved = any(os.path.isfile(os.path.join(source, name)) for name in (SAVED, SPLITS))
    return saved or source.startswith("hub:") or source.lower().endswith(TABLES)


def hub_name(source: str) -> str:
    """A Hub source with its split, which is train where none is named."""
    name, _, split = source.removeprefix("hub:").partition(":")
    return f"hub:{name}:{split or 'train'}"


def _as_stream(path: str) -> str:
    """An Arrow file in the streaming format, the only one that datasets reads: itself, or its table in the cache."""
    with open(path, "rb") as file:
        if file.read(6) != b"ARROW1":
            return path
    from pyarrow import ipc, memory_map

    return str(store_table(ipc.open_file(memory_map(path)).read_all()))


def load_table(source: str, field: str) -> "Dataset":
    """A Parquet or Arrow file, what save_to_disk wrote, or a data set of the Hub; raises UserError led by the field."""
    from datasets import Dataset, load_dataset

    if os.path.isfile(splits := os.path.join(source, SPLITS)):
        inside = folders_in(source)
        raise UserError(f"{field}: {splits} names several splits; give those that are meant, of {', '.join(inside)}")
    if not source.startswith("hub:") and not os.path.exists(source):
        raise UserError(f"{field}: no such file: {source}")
    try:
        if source.startswith("hub:"):
            name, _, split = hub_name(source).removeprefix("hub:").rpartition(":")
            return load_dataset(name, split=split, keep_in_memory=False)  # type: ignore[return-value]
        if os.path.isdir(source):
            return Dataset.load_from_disk(source, keep_in_memory=False)
        if source.lower().endswith(".arrow"):
            return Dataset.from_file(_as_stream(source))
        return Dataset.from_parquet(glob.escape(source), keep_in_memory=False)  # type: ignore[return-value]
    except Exception as error:  # whatever the reader, the file system or the Hub raises: the user needs the reason
        raise UserError(f"{field}: cannot load {source}: {network_reason(error)}") from error
