"""Worker processes: they prepare batches ahead, in order; an image that one of them dies of is named."""

import re
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from creature.errors import BrokenError

if TYPE_CHECKING:
    from datasets import Dataset

ItemT = TypeVar("ItemT", contravariant=True)
BatchT = TypeVar("BatchT", covariant=True)
ValueT = TypeVar("ValueT")


class BatchSource(Protocol[ItemT, BatchT]):
    """Makes a batch of items that stand for rows of `dataset`, whose column `id` names their images."""

    dataset: "Dataset"

    def __getitems__(self, items: Sequence[ItemT], /) -> BatchT:
        """The batch; for each image that it decodes it calls note_decoding first."""
        ...


_current_row: torch.Tensor | None = None  # in a worker process: which row it decodes, in memory shared with its parent


def note_decoding(row: int) -> None:
    """Note which row this worker process decodes next, in case it dies of it; nothing to note in any other process."""
    if _current_row is not None:
        _current_row.fill_(row)


@contextmanager
def load_batches(
    source: BatchSource[ItemT, BatchT], batches: Iterable[Sequence[ItemT]], workers: int
) -> Iterator[Iterator[BatchT]]:
    """What the source makes of each batch of items, in order, prepared ahead by workers, which end with the block.

    Raises BrokenError within the block, at any line, when a worker dies; it names the image that was being decoded.
    """
    rows = torch.full((workers,), -1, dtype=torch.int64).share_memory_()
    with warnings.catch_warnings():
        # Training warns once, in a line, of more workers than cores; torch would in a paragraph for each fold.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader[ItemT](
            source,  # type: ignore[arg-type]
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=_identity,
            num_workers=workers,
            worker_init_fn=partial(_prepare_worker, rows),
            pin_memory=torch.cuda.is_available(),
        )
        iterator = iter(loader)
    processes = iterator._workers if isinstance(iterator, _MultiProcessingDataLoaderIter) else []
    try:
        yield iterator
    except RuntimeError as error:
        dead = _pids_in(error).intersection(process.pid for process in processes)
        if not dead:
            raise
        fatal = [row for process, row in zip(processes, rows.tolist(), strict=True) if process.pid in dead and row >= 0]
        names = ", ".join(dict.fromkeys(source.dataset[row]["id"] for row in fatal))  # two workers may die of one image
        raise BrokenError(
            f"{names or 'images'}: a process that decodes died; remove or "
            "mend the image, or where memory ran out, set a smaller images.workers; --resume goes on"
        ) from error
    finally:
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            _end_workers(iterator)


def _end_workers(iterator: _MultiProcessingDataLoaderIter) -> None:
    """End the worker processes: torch asks them, waits for seconds, then sends a SIGTERM, which these ignore."""
    try:
        iterator._shutdown_workers()
    finally:
        for process in iterator._workers:
            process.kill()  # guard: kill-workers
            process.join()


def _identity(value: ValueT) -> ValueT:
    return value


def _prepare_worker(rows: torch.Tensor, worker: int) -> None:
    """Leave signals to the parent, which ends its workers itself, and Pillow's remarks on odd metadata unsaid."""
    global _current_row
    _current_row = rows[worker]
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _pids_in(error: RuntimeError) -> set[int]:
    """The workers that torch says have died: it raises this in the main thread, at whatever line that is."""
    named = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
    return {int(pid) for pid in named[1].split(",")} if named else set()
