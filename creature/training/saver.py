"""A fold's checkpoints, written by a thread while its steps go on."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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

    What goes wrong in a write is raised at the next one, or at the end.
    """

    def __init__(self, accelerator: Accelerator, learner: Learner, folder: Path, *, settings: Checkpoint):
        self.accelerator, self.learner, self.folder, self.settings = accelerator, learner, folder, settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._written: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        with self._thread, self._timed():
            self._wait()  # guard: all-written

    def save(self) -> None:
        """Write a resume point of the learner as it is now."""
        self._start(lambda snapshot: checkpoint.save_state(self.folder, snapshot))

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
                self._written = self._thread.submit(write, checkpoint.take_snapshot(self.learner, self.accelerator))

    def _wait(self) -> None:
        written, self._written = self._written, None
        if written:
            written.result()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Count the seconds for which the steps wait."""
        began = time.monotonic()
        yield
        self.learner.state.saving_seconds += time.monotonic() - began
