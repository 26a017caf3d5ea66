"""The check of every image before the first step: its content's hash, or why it cannot be decoded. N rows."""

import hashlib
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

import numpy as np

from creature.console import progress, warn
from creature.data.decode import BadImage, content_hash, decode, read
from creature.data.duplicates import sketch
from creature.data.workers import load_batches, note_decoding
from creature.device import usable_cores
from creature.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


class Everything:
    """What holds whatever is asked for: `known` for who only wants hashes."""

    def __contains__(self, _content: object) -> bool:
        return True


class _Check:
    """Rows as (content hash, why the row cannot be decoded or None, sketch); content that is `known` is only hashed."""

    def __init__(self, dataset: "Dataset", known: Container[str]):
        self.dataset, self.known = dataset, known

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[str, str | None, bytes]]:
        return [self._check(row) for row in rows]

    def _check(self, row: int) -> tuple[str, str | None, bytes]:
        note_decoding(row)
        try:
            data = read(self.dataset[row]["image"])
        except BadImage as reason:
            return hashlib.blake2b(f"unreadable {row}".encode(), digest_size=16).hexdigest(), str(reason), b""
        content = content_hash(data)
        try:
            return content, None, b"" if content in self.known else sketch(decode(data))
        except BadImage as reason:
            return content, str(reason), b""


def check_images(
    dataset: "Dataset", known: Container[str], title: str, sketches: np.ndarray | None = None
) -> tuple[list[str], dict[int, str]]:
    """Read every image once, in parallel: content hashes (N,), and the reason for each row that cannot be decoded.

    Content whose hash is in `known` was decoded before and is only hashed. Of what is decoded, `sketches` (N, 256) gets
    the rows. An image that the decoder dies of is a UserError.
    """
    checks = _Check(dataset, known)
    pieces = [range(start, min(start + 16, len(dataset))) for start in range(0, len(dataset), 16)]
    hashes, bad = [], {}
    with progress() as bar, load_batches(checks, pieces, min(usable_cores(), len(pieces))) as checked:
        task = bar.add_task(f"{title}: checking", total=len(dataset), speed="")
        for piece in checked:
            for content, reason, drawn in piece:
                if reason is not None:
                    bad[len(hashes)] = reason
                if drawn and sketches is not None:
                    sketches[len(hashes)] = np.frombuffer(drawn, np.uint8)
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
    warn(f"{listing}\nthey are left out (images.max_bad allows {limit}), and noted in the run's folds.arrow")
