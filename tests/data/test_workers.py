"""Worker processes: they end with the block that started them, whatever ends it, and no others do."""

import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import psutil
import pytest
import torch.utils.data._utils as torch_workers

from creature.data.workers import load_batches, note_decoding
from creature.errors import BrokenError
from helpers import ROOT


class Numbers:
    """Batches of numbers; the process that meets a number of `faults` meets its fault."""

    def __init__(self, faults: dict[int, signal.Signals] | None = None):
        self.faults = faults or {}
        self.dataset: Any = [{"id": f"image {k}"} for k in range(1000)]

    def __getitems__(self, rows: Sequence[int], /) -> list[int]:
        for row in rows:
            note_decoding(row)
            if row in self.faults:
                os.kill(os.getpid(), self.faults[row])
        return list(rows)


ONE_EACH = [[k] for k in range(1000)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_block_that_is_left_early_leaves_no_worker_behind(workers):
    before = set(multiprocessing.active_children())
    with load_batches(Numbers(), ONE_EACH, workers) as batches:
        assert next(batches) == [0] and len(set(multiprocessing.active_children()) - before) == workers
    with pytest.raises(KeyError), load_batches(Numbers(), ONE_EACH, workers) as batches:
        raise KeyError(next(batches)[0])
    assert set(multiprocessing.active_children()) == before


def test_a_worker_that_hangs_is_killed_with_the_block(monkeypatch):
    monkeypatch.setattr(torch_workers, "MP_STATUS_CHECK_INTERVAL", 0.1)  # which torch waits for
    before = set(multiprocessing.active_children())
    with load_batches(Numbers({900: signal.SIGSTOP}), [[0], [900]], 2) as batches:
        assert next(batches) == [0]
        pids = [child.pid for child in set(multiprocessing.active_children()) - before if child.pid]
        while not any(psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pids):
            pass
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert len(pids) == 2 and not left


def alive(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    return True


def test_signals_to_the_group_leave_workers_at_work():
    with load_batches(Numbers({5: signal.SIGTERM, 6: signal.SIGINT, 7: signal.SIGUSR1}), ONE_EACH[:20], 2) as batches:
        assert list(batches) == ONE_EACH[:20]


def test_an_image_that_kills_its_worker_is_named_by_the_block_that_started_it():
    quiet, deadly = Numbers(), Numbers({3: signal.SIGKILL})
    with (
        pytest.raises(BrokenError, match=r"^image 3: a process that decodes died; remove or mend"),
        load_batches(deadly, ONE_EACH, 1) as outer,
        load_batches(quiet, ONE_EACH, 1) as inner,
    ):
        for _ in range(1000):
            assert next(inner) == next(outer)
    with pytest.raises(RuntimeError, match="pid 1"), load_batches(quiet, ONE_EACH, 1):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Segmentation fault.")


def test_more_workers_than_cores_are_no_warning_and_filters_stay():
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        with load_batches(Numbers(), ONE_EACH[:3], 9) as batches:
            assert list(batches) == ONE_EACH[:3]
        assert warnings.filters == filters
    assert warnings.filters == before


GUEST = """
import multiprocessing, sys, time, warnings
sys.path.insert(0, {root!r})
def wait():
    while True:
        time.sleep(100)
if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=wait, daemon=True)
    child.start()
    before = list(warnings.filters)
    from creature.data.workers import load_batches
    from rows import Rows
    import atexit
    atexit.register(lambda: print("alive" if child.is_alive() else "dead", flush=True))
    with load_batches(Rows(), [[k] for k in range(1000)], 2) as batches:
        print(next(batches), child.is_alive())
        {end}
"""


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [("raise KeyError('an error of ours')", 1, "an error of ours"), ("sys.exit(7)", 7, ""), ("pass", 0, "")],
)
def test_a_program_ends_by_itself_and_its_own_children_outlive_the_workers(tmp_path, end, code, message):
    script = tmp_path / "script.py"
    (tmp_path / "rows.py").write_text("class Rows:\n    def __getitems__(self, rows):\n        return rows\n")
    script.write_text(GUEST.format(root=str(ROOT), end=end))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code and done.stdout == "[0] True\nalive\n" and message in done.stderr, done.stderr
