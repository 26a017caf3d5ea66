"""A fold's checkpoints, written by a thread while its steps go on."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from accelerate import Accelerator

from creature.metrics.predictions import Predictions
from creature.recipe import Checkpoint
from creature.training import checkpoint
from creature.training.checkpoint import Snapshot
from creature.training.learner import Learner


class Saver:
    """Writes checkpoints one after another, on the main process; left as a context, all of them are on disk.

    A write that fails is tried once more, for there may be room by then; if that fails, too, its error is raised by
    whichever of the methods comes next.
    """

    def __init__(self, accelerator: Accelerator, learner: Learner, folder: Path, *, settings: Checkpoint):
        self.accelerator, self.learner, self.folder, self.settings = accelerator, learner, folder, settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._write: Callable[[], None] | None = None  # the last one, until it is known to have ended well
        self._written: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        with self._thread, self._timed():
            self._wait()  # guard: all-written

    def check(self) -> None:
        """See whether the last write has failed, without waiting for one that goes on."""
        if self._written and self._written.done():
            self._wait()

    def save(self) -> None:
        """Write a resume point of the learner as it is now."""
        self._start(lambda snapshot: checkpoint.save_state(self.folder, snapshot))

    def save_now(self) -> None:
        """Write a resume point, and return when it is on disk: what leaves afterwards may end the other processes."""
        self.save()
        with self._timed():
            self._wait()  # guard: saved-before-leaving

    def save_epoch(self, predictions: Predictions) -> None:
        """Keep the epoch just ended, with its predictions of held-out rows, if it is asked for, and a resume point."""

        def write(snapshot: Snapshot) -> None:
            checkpoint.keep_epoch(self.folder, snapshot, predictions, settings=self.settings)
            checkpoint.save_state(self.folder, snapshot)
            checkpoint.prune_epochs(self.folder, snapshot.state, self.settings)

        self._start(write)

    def _start(self, write: Callable[[Snapshot], None]) -> None:
        if self.accelerator.is_main_process:
            with self._timed():
                self._wait()  # so that one copy of the training lies in memory
                self._write = partial(write, checkpoint.take_snapshot(self.learner, self.accelerator))
                self._written = self._thread.submit(self._write)

    def _wait(self) -> None:
        written, write, self._written, self._write = self._written, self._write, None, None
        if written and write and written.exception():
            write()  # guard: write-again

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count the seconds for which the steps wait."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.learner.state.saving_seconds += time.monotonic() - began
