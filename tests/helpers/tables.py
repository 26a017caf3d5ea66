"""Folders and tables of small images, as data sets arrive."""

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from creature.data.dataset import read_images
from creature.data.sources import SourceFormat


def picture(shade: int = 0) -> bytes:
    Image.new("RGB", (4, 4), (shade % 256, shade // 256, 7)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def fill(folder: Path, *names: str) -> Path:
    """Images of these names in a folder, each of another shade; a name that ends with / is an empty folder."""
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).write_bytes(picture(shade))
    return folder


def table(
    labels: list[Any], label: Any = None, image: Any = None, images: list[Any] | None = None, **more: list
) -> Dataset:
    """Embedded images with their labels, of the given feature types."""
    images = images or [{"bytes": picture(shade), "path": None} for shade in range(len(labels))]
    features = {"image": image or ImageFeature(decode=False), "label": label or Value("string")}
    features |= {name: Value("string") for name in more}
    return Dataset.from_dict({"image": images, "label": labels, **more}, features=Features(features))


def parquet(path: Path, rows: Dataset) -> str:
    pyarrow.parquet.write_table(rows.data.table, path)
    return str(path)


def images(*sources: str | Path, names: list[str] | None = None, **columns: Any) -> Dataset:
    return read_images([str(source) for source in sources], SourceFormat(**columns), "images.train", class_names=names)


def write_csv(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)
