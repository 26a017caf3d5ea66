"""Images with a map laid over them, written one a file. No torch here.

h w places of a map, S side of the evaluation view, D of the overlay.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from creature.errors import UserError
from creature.inference.prediction import Prediction
from creature.storage import write_atomically

FOR, AGAINST = np.array([[0xD5, 0x5E, 0x00], [0x00, 0x72, 0xB2]], np.float32)  # colour-blind people see both
SIDE = 384  # pixels of an overlay, at least
STRENGTH = 0.7  # of the colour, where the map is the strongest
LONGEST = 200  # bytes of a file's name; file systems have room for 255


def overlay(view: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A view (3, S, S) in grey under a map (h, w), as (D, D, 3): orange where the map is above 0, blue below."""
    side = max(SIDE, view.shape[-1])
    enlarged = Image.fromarray(view.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BILINEAR)
    grey = np.asarray(enlarged.convert("L"), np.float32)[..., None]
    strongest = max(float(np.abs(places).max()), 1e-12)
    share = Image.fromarray((places / strongest).astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
    signed = np.asarray(share)[..., None]
    colour = np.where(signed > 0, FOR, AGAINST)
    return (grey + STRENGTH * np.abs(signed) * (colour - grey)).round().astype(np.uint8)


def save(rows: Iterable[Prediction], folder: Path) -> Iterator[Prediction]:
    """Pass the rows on; the overlay (D, D, 3) that a row has as its features is written into the folder.

    Raises UserError where it cannot be written.
    """
    for row in rows:
        if row.features is not None:
            path = folder / file_name(row.id)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with write_atomically(path) as temporary:
                    Image.fromarray(row.features).save(temporary, "PNG")
            except OSError as error:
                raise UserError(f"--explain: cannot write {path}: {error.strerror or error}") from error
        yield replace(row, features=None)


def file_name(name: str) -> str:
    """The name of an image's PNG, by its id: within one folder, and different for different ids."""
    safe = re.sub(r'[%/\\:*?"<>|\x00-\x1f\x7f]', lambda match: f"%{ord(match.group()):02X}", name)
    if safe.startswith("."):
        safe = f"%2E{safe[1:]}"  # which file managers would hide
    if len(safe.encode()) > LONGEST:
        start = safe.encode()[: LONGEST - 40].decode(errors="ignore")
        safe = f"{start}%{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return f"{safe}.png"
