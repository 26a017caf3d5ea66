"""What benchmarks look at: tables of tiny images, for costs that go by their number, and photos over and over."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from creature.data.loader import Batch
from creature.data.sketches import GREY, LENGTH
from creature.errors import UserError

CLASSES = 100


def tiny(rows: int) -> list[bytes]:
    """Images of 4 by 4 pixels in 59 bytes, no two alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 48), dtype=np.uint8)
    return [b"P6 4 4 255\n" + row.tobytes() for row in pixels]


def sketches(rows: int) -> np.ndarray:
    """Sketches (rows, 384) of grey noise that has less of the high frequencies, as photos have, no two alike."""
    rng, side = np.random.default_rng(0), 32
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    weights = np.where(frequency > 0, np.maximum(frequency, 1 / side) ** -1.2, 0)
    found = np.full((rows, LENGTH), 128, np.uint8)
    for start in range(0, rows, 4096):
        noise = np.fft.rfft2(rng.standard_normal((min(4096, rows - start), side, side)))
        levels = np.fft.irfft2(noise * weights)[:, :16, :16]
        levels *= 50 / levels.std((1, 2), keepdims=True)
        found[start : start + 4096, :GREY] = (levels + 128).clip(0, 255).reshape(-1, GREY)
    return found


def write_table(path: Path, rows: int) -> None:
    """A Parquet file of `rows` tiny images in 100 classes."""
    images = pa.StructArray.from_arrays(
        [pa.array(tiny(rows), pa.binary()), pa.nulls(rows, pa.string())], ["bytes", "path"]
    )
    names = pa.array([f"class {k:03d}" for k in range(CLASSES)])
    labels = names.take(pa.array(np.arange(rows) % CLASSES))
    parquet.write_table(pa.table({"image": images, "label": labels}), path, row_group_size=10_000)


class Ready:
    """Batches that cost a worker nothing to make: what is left is the hand-over to the main process."""

    def __init__(self, batch: int, size: int):
        self.batch, self.size, self.dataset = batch, size, [{"id": str(row)} for row in range(batch)]

    def __getitems__(self, items: Sequence[tuple[int, int]], buffer: torch.Tensor | None = None) -> Batch:
        """The batch, in `buffer` as it is, if there is one."""
        memory = torch.empty(self.batch * 3 * self.size**2, dtype=torch.uint8) if buffer is None else buffer
        pixels = memory[: self.batch * 3 * self.size**2].view(self.batch, self.size, self.size, 3).permute(0, 3, 1, 2)
        rows = torch.arange(len(items))
        return Batch(pixels, torch.zeros_like(rows), rows, ids=[image["id"] for image in self.dataset], bad={})


def jpegs(folder: Path) -> list[Path]:
    """The JPEG files below a folder; raises UserError where there are none."""
    photos = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    if not photos:
        raise UserError(f"{folder}: no JPEG is there; name a folder of photos")
    return photos


def lay_out(photos: Sequence[Path], out: Path, count: int) -> Path:
    """Four class folders of `count` photos, over and over; other last bytes make no two of them equal."""
    for number in range(count):
        path = out / f"class-{number % 4}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos[number % len(photos)].read_bytes() + number.to_bytes(4, "big"))  # behind the end
    return out
