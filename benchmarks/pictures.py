"""Tables of tiny pictures, for costs that grow with their number and not with their size."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

CLASSES = 100


def write_table(path: Path, rows: int) -> None:
    """A Parquet file of `rows` pictures, 4 by 4 pixels in 59 bytes, no two alike, in 100 classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 48), dtype=np.uint8)
    pictures = pa.array([b"P6 4 4 255\n" + row.tobytes() for row in pixels], pa.binary())
    images = pa.StructArray.from_arrays([pictures, pa.nulls(rows, pa.string())], ["bytes", "path"])
    names = pa.array([f"class {k:03d}" for k in range(CLASSES)])
    labels = names.take(pa.array(np.arange(rows) % CLASSES))
    parquet.write_table(pa.table({"image": images, "label": labels}), path, row_group_size=10_000)
