"""A process that forks a run's workers: they hold nothing of the main process, neither its threads nor its device."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, get_all_start_methods
from types import ModuleType
from typing import Any

START_METHOD = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
STOPPING = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)}


@contextmanager
def fork_server(*modules: str) -> Iterator[None]:
    """Have a server within the block that forks workers quickly: a process that holds nothing of this one.

    It starts at once and imports the modules that workers need while this process goes on. One that runs already is
    used instead.
    """
    server: Any = forkserver._forkserver
    if START_METHOD != "forkserver" or server._forkserver_pid is not None:
        yield
        return
    preload = server._preload_modules
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # which the server and its workers inherit
    try:
        forkserver.set_forkserver_preload(list(modules))
        with without_main_module():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield
    finally:
        server._preload_modules = preload
        server._stop()


@contextmanager
def without_main_module() -> Iterator[None]:
    """Hide the program from processes that start in the block, which would run its file to import it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
