"""Being asked to stop: SIGTERM, SIGINT, SIGUSR1 (spot machines, SLURM, Kubernetes, Ctrl-C), a launcher's death."""

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
    """Whether someone asked; a second time ends the process at once, as it would have without us."""

    def __init__(self) -> None:
        self.asked, self.since = False, 0.0
        self.at_once = True  # nothing is lost by leaving in the middle

    def __call__(self, number: int, _frame: Any) -> None:
        """Handle a signal."""
        # The kernel signals once for each thread of a dying launcher: what comes within a second is one request.
        if self.asked and time.monotonic() - self.since < 1:
            return
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked, self.since = True, time.monotonic()
        say(f"{signal.Signals(number).name}: saving and leaving; once more ends at once")
        if self.at_once:
            raise Interrupted("stopped as asked; --resume goes on")

    def begin(self) -> None:
        """Nothing stands unsaved: leave now if asked to, and at once when asked from here on."""
        self.at_once = True
        if self.asked:
            raise Interrupted("stopped as asked; all is saved, --resume goes on")

    @contextmanager
    def saving(self, save: Callable[[], None]) -> Iterator[None]:
        """Whatever ends the block early, save before leaving: steps were done that stand nowhere yet."""
        if self.asked:
            save()
            raise Interrupted("stopped as asked, and saved; --resume goes on")
        self.at_once = True
        try:
            yield
        except BaseException:
            save()
            raise
        finally:
            self.at_once = False


@contextmanager
def listen() -> Iterator[Stop]:
    """Take the signals within the block; Windows has no SIGUSR1."""
    stop = Stop()
    _outlive_no_launcher()
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outlive_no_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher dies: it forwards no signal, and its workers would run on.

    Not without a launcher: a training that was started in the background outlives its shell.
    """
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
