"""Requests to stop: SIGTERM, SIGINT, SIGUSR1 (spot machines, SLURM, Kubernetes, Ctrl-C), a launcher's death."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from creature.console import say
from creature.errors import Interrupted

PR_SET_PDEATHSIG = 1


class Stop:
    """Whether the training was asked to stop; a second request ends the process as if nobody had listened."""

    def __init__(self) -> None:
        self.asked, self.asked_at = False, 0.0
        self.at_once = True  # nothing is lost by leaving at any line

    def __call__(self, number: int, _frame: Any) -> None:
        """Handle a signal; raises Interrupted where nothing is lost by it."""
        # The kernel signals once for each thread of a dying launcher: what comes within a second is one request.
        if self.asked and time.monotonic() - self.asked_at < 1:
            return
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked, self.asked_at = True, time.monotonic()
        say(f"{signal.Signals(number).name}: saving and leaving; once more ends at once")
        if self.at_once:
            raise Interrupted("stopped as asked; --resume goes on")

    def leave_at_once(self) -> None:
        """Nothing is unsaved: raise Interrupted now if asked to stop, and from here on as soon as asked."""
        self.at_once = True
        if self.asked:
            raise Interrupted("stopped as asked; all is saved, --resume goes on")

    @contextmanager
    def saving(self, save: Callable[[], None]) -> Iterator[None]:
        """Save before whatever ends the block early leaves: it holds steps that are nowhere on disk yet."""
        if self.asked:
            save()
            raise Interrupted("stopped as asked, and saved; --resume goes on")
        self.at_once = True
        try:
            yield
        except BaseException:  # guard: failure-saves
            save()
            raise
        finally:
            self.at_once = False


@contextmanager
def listen() -> Iterator[Stop]:
    """Handle the signals within the block, for scripts; Windows has no SIGUSR1."""
    stop = Stop()
    _die_with_launcher()
    # guard: signals
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _die_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher dies: it forwards no signal, and its workers would run on.

    Not without a launcher: a training that was started in the background outlives its shell.
    """
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and sys.platform == "linux":  # guard: parent-death
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
