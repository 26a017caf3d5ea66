"""Worker processes: they prepare batches ahead, in order; an image that one of them dies of is named."""

import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from creature.data.fork_server import START_METHOD, STOPPING, fork_server, without_main_module
from creature.device import keep_image_memory
from creature.errors import BrokenError

RequestT = TypeVar("RequestT", contravariant=True)
BatchT = TypeVar("BatchT", covariant=True)
ValueT = TypeVar("ValueT")


class Rows(Protocol):
    """What names an image by its row: a data set's column `id`."""

    def __getitem__(self, row: int, /) -> Mapping[str, Any]:
        """The row's columns."""
        ...


class BatchSource(Protocol[RequestT, BatchT]):
    """Makes a batch of a request that stands for rows of `dataset`."""

    @property
    def dataset(self) -> Rows:
        """The names of the images."""
        ...

    def __getitems__(self, request: RequestT, /) -> BatchT:
        """The batch; for each image that it decodes it calls note_decoding first."""
        ...


AHEAD = 2  # batches that a worker prepares ahead
TRAINING_GOES_ON = "remove or mend the image, or where memory ran out, set a smaller images.workers; --resume goes on"

_current_row: torch.Tensor | None = None  # in a worker process: which row it decodes, in memory shared with its parent


def note_decoding(row: int) -> None:
    """Note which row this worker process decodes next, in case it dies of it; nothing to note in any other process."""
    if _current_row is not None:
        _current_row.fill_(row)


@contextmanager
def load_batches(
    source: BatchSource[RequestT, BatchT], requests: Iterable[RequestT], workers: int
) -> Iterator[Iterator[BatchT]]:
    """What the source makes of each request, in order, prepared ahead by workers, which end with the block.

    Raises what start_workers does.
    """
    server = fork_server(type(source).__module__, "datasets") if workers else nullcontext()
    with server, start_workers(source, workers, method=START_METHOD) as load:
        yield load(requests)


@contextmanager
def start_workers(
    source: BatchSource[RequestT, BatchT], workers: int, *, method: str, way_out: str = TRAINING_GOES_ON
) -> Iterator[Callable[[Iterable[RequestT]], Iterator[BatchT]]]:
    """A function that takes requests and gives what the source makes of each, in order, prepared ahead by workers.

    The workers start by `method` (of multiprocessing) at the first call and end with the block; a call ends the one
    before it. Raises BrokenError within the block, at any line, when a worker dies; it names the image that was being
    decoded, and the way out.
    """
    rows = torch.full((workers,), -1, dtype=torch.int64).share_memory_()
    stream: _Stream[RequestT] = _Stream()
    processes: list[BaseProcess] = []
    with _no_advice():
        loader = DataLoader[RequestT](
            source,  # type: ignore[arg-type]
            batch_sampler=stream,  # type: ignore[arg-type]
            collate_fn=_identity,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            worker_init_fn=partial(_prepare_worker, rows),
            multiprocessing_context=method if workers else None,
            persistent_workers=workers > 0,
        )
    iterator = None

    def load(requests: Iterable[RequestT]) -> Iterator[BatchT]:
        nonlocal iterator
        stream.requests = requests
        with _no_advice(), without_main_module():
            iterator = iter(loader)
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            processes[:] = iterator._workers
        return iterator

    try:
        yield load
    except RuntimeError as error:
        dead = _pids_in(error).intersection(process.pid for process in processes)
        if not dead:
            raise
        fatal = [row for process, row in zip(processes, rows.tolist(), strict=True) if process.pid in dead and row >= 0]
        names = ", ".join(dict.fromkeys(source.dataset[row]["id"] for row in fatal))  # two workers may die of one image
        raise BrokenError(f"{names or 'images'}: a process that decodes died; {way_out}") from error
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


@contextmanager
def _no_advice() -> Iterator[None]:
    """Training warns once, in a line, of more workers than cores; torch would in a paragraph."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


class _Stream(Generic[ValueT]):
    """The requests that the workers serve now."""

    requests: Iterable[ValueT] = ()

    def __iter__(self) -> Iterator[ValueT]:
        return iter(self.requests)


def _end_with(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


def _identity(value: ValueT) -> ValueT:
    return value


def _prepare_worker(rows: torch.Tensor, worker: int) -> None:
    """Leave signals to the parent, which ends its workers itself, and Pillow's remarks on odd metadata unsaid."""
    global _current_row
    _current_row = rows[worker]
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if parent := parent_process():  # guard: orphaned-workers
        # The server's workers are not this program's children, and would outlive it.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    warnings.filterwarnings("ignore", module=r"PIL\.")
    keep_image_memory()


def _pids_in(error: RuntimeError) -> set[int]:
    """The workers that torch says have died: it raises this in the main thread, at whatever line that is."""
    named = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
    return {int(pid) for pid in named[1].split(",")} if named else set()
