"""Other numbers of processes, and how long they wait for each other."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from filelock import FileLock
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from creature.errors import BrokenError
from creature.training import checkpoint
from helpers import ROOT, faults
from helpers.processes import LAUNCH, launch, wait_for_epoch
from helpers.runs import losses, read_history, start

TWO = ("--multi_gpu", "--num_processes", "2")
# A backbone without batch statistics: any number of processes computes the same.
PLAIN = ("folds.train=[0]", "backbone.name=test_vit", "batch_size=15", "checkpoint.every_minutes=0")


def test_one_process_then_two_then_one_see_the_same_batches_and_losses(tiny, tmp_path):
    settings, out = (*PLAIN, "schedule.epochs=3"), tmp_path / "run"
    start(tiny, tmp_path / "whole", *settings)

    faults.start_until_step(2, tiny, out, *settings)
    # The same step is asked of both: a driver that stops after three.
    stops = driver(tmp_path, "faults.stop_after_steps(patch, 3)")
    done = launch(*TWO, stops, *words(tiny, out, *settings, resume=True))
    assert "step 1 of epoch 2 of fold 0" in done.stderr, done.stderr
    assert start(tiny, out, *settings, resume=True) == 0
    np.testing.assert_allclose(losses(out / "fold-0"), losses(tmp_path / "whole/fold-0"), atol=1e-5)
    # The first epoch's held-out rows were predicted by two, after a resume: each once, and as one does.
    scores = [[(row["correct"], row["n"]) for row in read_history(run / "fold-0")] for run in (out, tmp_path / "whole")]
    assert scores[0] == scores[1] and all(n == 24 for _, n in scores[0])


def test_a_step_waits_less_than_anything_else(monkeypatch):
    from types import SimpleNamespace

    from creature.training import distributed

    message = []
    monkeypatch.setattr(distributed, "_set_timeout", message.append)
    two: Any = SimpleNamespace(num_processes=2)
    step, fold, other = distributed.WAIT_IN_STEP, distributed.WAIT_IN_FOLD, distributed.WAIT
    with pytest.raises(ZeroDivisionError), distributed.wait_limit(two, step, after=fold):
        assert message == [step]
        raise ZeroDivisionError
    assert message == [step, fold]
    assert step.total_seconds() < 60 < fold.total_seconds() < other.total_seconds()


@pytest.mark.parametrize(
    ("processes_there", "message", "expected"),
    [
        (
            2,
            "[/x/gloo/pair.cc:545] Read error [127.0.0.1]:8398: Connection reset by peer. This is typically",
            BrokenError,
        ),
        (2, "Application timeout caused pair closure", BrokenError),
        (1, "[/x/gloo/pair.cc:545] Connection reset by peer", RuntimeError),
        (2, "mat1 and mat2 shapes cannot be multiplied", RuntimeError),
    ],
)
def test_the_loss_of_another_process_is_a_sentence_and_other_errors_are_not(processes_there, message, expected):
    from types import SimpleNamespace

    from creature.training import distributed

    some: Any = SimpleNamespace(num_processes=processes_there)
    with pytest.raises((BrokenError, RuntimeError)) as caught, distributed.naming_lost_process(some):
        raise RuntimeError(message)
    assert type(caught.value) is expected
    if expected is BrokenError:
        assert "gone or hangs" in str(caught.value) and "/x/gloo" not in str(caught.value)


DRIVER = """
import os, signal, subprocess, sys
from datetime import timedelta
sys.path[:0] = [{root!r}, {tests!r}]
import pytest, train
from creature.training import loop, distributed
from creature.console import run
from helpers import faults
patch, rank = pytest.MonkeyPatch(), int(os.environ["RANK"])
{faults}
run(train.main)
"""


def driver(folder: Path, *lines: str) -> str:
    """A train.py whose processes run these lines first, with `patch` and their `rank`."""
    path = folder / "driver.py"
    text = DRIVER.format(root=str(ROOT), tests=str(ROOT / "tests"), faults="\n".join(lines))
    path.write_text(text)
    return str(path)


def words(tiny: Path, out: Path, *settings: str, resume: bool = False) -> list[str]:
    overrides = [word for setting in settings for word in ("--set", setting)]
    return ["--recipe", str(tiny), "--out", str(out), *overrides, *["--resume"] * resume]


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """A test that fails leaves no launcher behind, and none of those that it started."""
    yield
    for launcher in STARTED:
        if launcher.poll() is None:
            children = psutil.Process(launcher.pid).children(recursive=True)
            for process in (launcher, *children):  # the launcher first, which would start others
                process.kill()
            launcher.wait()
    STARTED.clear()


def program(*line: str, **more: str) -> subprocess.Popen[str]:
    STARTED.append(
        subprocess.Popen(
            line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=os.environ | {"ACCELERATE_USE_CPU": "true"} | more,
        )
    )  # fmt: skip
    return STARTED[-1]


@pytest.mark.full
@pytest.mark.parametrize(
    ("where", "limit"),
    [
        ("faults.at_step(patch, 6, hang)", ""),
        ("faults.at_prediction(patch, 2, hang)", "distributed.WAIT_IN_FOLD = timedelta(seconds=30)"),
    ],
)
def test_a_process_that_hangs_is_given_up_by_itself(tiny, tmp_path, where, limit):
    hangs = driver(
        tmp_path,
        "def hang():",
        "    print('HANGS', os.getpid(), flush=True)",
        "    os.kill(os.getpid(), signal.SIGSTOP)",
        f"if rank == 1: {where}",
        limit,
    )
    running = program(*LAUNCH, *TWO, hangs, *words(tiny, tmp_path / "run", *PLAIN))
    assert running.stdout
    pid = next(int(line.split()[1]) for line in running.stdout if line.startswith("HANGS"))
    began = time.monotonic()
    late = threading.Timer(90, os.kill, (pid, signal.SIGKILL))  # or the test would hang, too
    late.start()
    message = next((line for line in running.stdout if "is gone or hangs" in line), "")
    waited, took = late.is_alive(), time.monotonic() - began
    running.communicate(timeout=60)  # the launcher ends the one that hangs
    late.cancel()
    print(f"given up after {took:.1f} s")
    assert message and waited and running.returncode != 0


def ids_of_ranks(launcher: subprocess.Popen[str]) -> list[int]:
    """The launcher's children by their rank."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        if actual := re.search(rb"(?:^|\0)RANK=(\d+)", Path(f"/proc/{child}/environ").read_bytes()):
            ranks[int(actual[1])] = int(child)
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc on this system")
@pytest.mark.parametrize("whom", ["rank 1", "launcher"])
def test_two_processes_stop_at_the_same_step_and_one_goes_on(tiny, tmp_path, whom):
    settings, out = (*PLAIN, "schedule.epochs=40", "checkpoint.every_minutes=60"), tmp_path / "run"
    start(tiny, tmp_path / "whole", *settings)
    running = program(*LAUNCH, *TWO, "train.py", *words(tiny, out, *settings))
    wait_for_epoch(running)
    one, other = ids_of_ranks(running)
    os.kill(running.pid if whom == "launcher" else other, signal.SIGKILL if whom == "launcher" else signal.SIGTERM)
    shown = running.communicate(timeout=60)[0]
    assert running.returncode != 0 and "--resume goes on" in shown, shown
    FileLock(out / "fold-0/fold.lock").acquire(timeout=10).lock.release()  # held as long as an orphan lives
    assert not any(Path(f"/proc/{pid}/fd/0").exists() for pid in (one, other)), "an orphan"
    steps = [path.name for path in (out / "fold-0/state").iterdir()]
    assert steps and all(checkpoint.verifies(out / "fold-0/state" / step) for step in steps)
    assert start(tiny, out, *settings, resume=True) == 0
    np.testing.assert_allclose(losses(out / "fold-0"), losses(tmp_path / "whole/fold-0"), atol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc on this system")
def test_a_process_notices_that_the_other_is_gone(tiny, tmp_path):
    running = program(*LAUNCH, *TWO, "train.py", *words(tiny, tmp_path / "run", *PLAIN, "schedule.epochs=500"))
    wait_for_epoch(running)
    os.kill(ids_of_ranks(running)[1], signal.SIGKILL)
    shown = running.communicate(timeout=60)[0]
    assert running.returncode != 0
    # Who is first: the other process, or the launcher that ends it.
    assert "another process of this training is gone" in shown or "SIGTERM: saving and leaving" in shown, shown[-3000:]


@pytest.mark.parametrize(("every", "last"), [(1, 2), (3, 3)])
def test_one_that_asks_stops_all_at_its_step(tiny, tmp_path, every, last):
    settings, out = (*PLAIN, "checkpoint.every_minutes=60"), tmp_path / "run"
    # Its wish to stop, in its sixth step; all see it when they next read what became of their steps.
    asks = driver(
        tmp_path, f"loop.steps_per_read = lambda _: {every}", "if rank == 1: faults.ask_at_step(patch, 6, stop=True)"
    )
    done = launch(*TWO, asks, *words(tiny, out, *settings))
    assert done.returncode != 0 and f"after step {last} of epoch 2 of fold 0, and saved" in done.stderr, done.stderr
    state = json.loads((sorted((out / "fold-0/state").iterdir())[-1] / "state.json").read_text())
    assert (state["epoch"], state["batch"]) == (1, last)  # the main process was not asked, and it alone saves


def test_several_processes_find_the_micro_batches_that_fit_the_one_with_least_memory(tiny, tmp_path):
    settings = (*PLAIN, "schedule.epochs=2")
    start(tiny, tmp_path / "whole", *settings)
    least = "if rank == 1: faults.fail_in_loss(patch, torch.OutOfMemoryError('no room'), room=4)"
    done = launch(*TWO, driver(tmp_path, "import torch", least), *words(tiny, tmp_path / "run", *settings))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("8 images at once do not fit into the memory; each step takes 2 micro-batches") == 1
    np.testing.assert_allclose(losses(tmp_path / "run/fold-0"), losses(tmp_path / "whole/fold-0"), atol=1e-5)


def test_each_attempt_of_the_launcher_meets_by_keys_of_its_own(tiny, tmp_path, monkeypatch):
    from creature.training import distributed

    kept = HashStore()  # as the launcher keeps one
    monkeypatch.setattr(distributed, "rendezvous", lambda url, **_: iter([(kept, 0, 1)]))
    actual = []
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        ((store, rank, world),) = distributed.rendezvous_of_attempt(f"{distributed.RENDEZVOUS}://")
        actual.append((store.check(["address"]), rank, world))
        store.set("address", "of a process that will be dead")
    assert actual == [(False, 0, 1), (False, 0, 1)]

    class Started(Exception):
        pass

    def accelerator(**options):
        raise Started(*(handler.init_method for handler in options["kwargs_handlers"]))

    monkeypatch.setattr(distributed, "Accelerator", accelerator)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Started, match=f"{distributed.RENDEZVOUS}://"):
        start(tiny, tmp_path / "run")


def test_what_the_launcher_starts_again_after_a_loss_goes_on_by_itself(tiny, tmp_path):
    settings, out = (*PLAIN, "schedule.epochs=3"), tmp_path / "run"
    start(tiny, tmp_path / "whole", *settings)
    first = "if rank == 1 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':"
    dies = driver(tmp_path, first, "    faults.signal_at_step(patch, 6, signal.SIGKILL)")
    running = program(*LAUNCH, *TWO, "--max_restarts", "1", dies, *words(tiny, out, *settings))
    shown = running.communicate(timeout=120)[0]
    assert running.returncode == 0 and shown.count("images to train on") == 2, shown
    assert json.loads((out / "fold-0/result.json").read_text())["processes"] == 2
    np.testing.assert_allclose(losses(out / "fold-0"), losses(tmp_path / "whole/fold-0"), atol=1e-5)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def cable() -> Iterator[list[str]]:
    """Two namespaces that see each other alone."""
    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("two hosts need iproute2 and root, who may make network namespaces")
    hosts = [f"creature{os.getpid()}{side}" for side in "ab"]
    try:
        for host in hosts:
            ip("netns", "add", host)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", "wire", "netns", hosts[0], "type", "veth", "peer", "name", "wire", "netns", hosts[1])
        for number, host in enumerate(hosts, 1):
            ip("-n", host, "addr", "add", f"10.77.0.{number}/24", "dev", "wire")
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", host, "link", "set", "wire", "up")
        yield hosts
    finally:
        for host in hosts:
            ip("netns", "del", host)


def on_two_hosts(hosts: list[str], *line: str) -> list[subprocess.Popen[str]]:
    shared = ("--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--main_process_ip", "10.77.0.1",
              "--main_process_port", "29511")  # fmt: skip
    return [
        program(
            "ip", "netns", "exec", host, *LAUNCH, *shared, "--machine_rank", str(k), *line, GLOO_SOCKET_IFNAME="wire"
        )
        for k, host in enumerate(hosts)
    ]


@pytest.mark.full
def test_two_hosts_stop_when_their_cable_is_cut_and_go_on_together_or_alone(cable, tiny, tmp_path):
    settings, out = (*PLAIN, "schedule.epochs=3"), tmp_path / "run"
    start(tiny, tmp_path / "whole", *settings)
    cut = driver(
        tmp_path,
        "def cut():",
        "    subprocess.run(['ip', 'link', 'set', 'wire', 'down'])",
        "    print('CUT', flush=True)",
        "if rank == 0: faults.at_step(patch, 6, cut)",
    )
    both = on_two_hosts(cable, cut, *words(tiny, out, *settings))
    assert both[0].stdout
    message = next((line for line in both[0].stdout if line.startswith("CUT")), "")
    began, shown, took = time.monotonic(), [], []
    for each in both:
        try:
            shown.append(each.communicate(timeout=180)[0])
        except subprocess.TimeoutExpired:
            os.killpg(each.pid, signal.SIGKILL)
            shown.append("STILL THERE " + each.communicate()[0])
        took.append(round(time.monotonic() - began, 1))
    print(f"left {took} s after the cut")
    assert message and all("is gone or hangs" in text for text in shown), shown
    assert all(each.returncode != 0 for each in both), shown
    ip("-n", cable[0], "link", "set", "wire", "up")
    shutil.copytree(out, tmp_path / "alone")
    both = on_two_hosts(cable, "train.py", *words(tiny, out, *settings, resume=True))
    shown = [each.communicate(timeout=120)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], shown
    assert start(tiny, tmp_path / "alone", *settings, resume=True) == 0
    for run in (out, tmp_path / "alone"):
        np.testing.assert_allclose(losses(run / "fold-0"), losses(tmp_path / "whole/fold-0"), atol=1e-5)
    assert json.loads((out / "fold-0/result.json").read_text())["processes"] == 2
