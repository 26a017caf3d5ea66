"""Processes that are lost or hang, restarts by the launcher, and two hosts: network namespaces joined by a cable."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_faults import wait_for_epoch
from test_processes import LAUNCH
from test_train import losses, start, weights_hash

import train
from creature.learning import loop
from creature.learning.processes import WAIT_IN_STEP

ROOT = Path(__file__).parent.parent
TWO = ("--multi_gpu", "--num_processes", "2")
# A backbone without batch statistics: any number of processes computes the same.
PLAIN = ("folds.train=[0]", "backbone.name=test_vit", "batch_size=15", "checkpoint.every_minutes=0")
LONG = (*PLAIN, "schedule.epochs=500")


def script(tiny: Path, out: Path, *settings: str, resume: bool = False) -> list[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    return ["train.py", "--recipe", str(tiny), "--out", str(out), *words, *["--resume"] * resume]


def launched(*words: str, launcher: tuple[str, ...] = (), **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*launcher, *LAUNCH, *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"} | more,
    )  # fmt: skip


def child_of_rank(launcher: int, rank: int) -> int:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    mark = f"\0RANK={rank}\0".encode()
    return next(int(c) for c in children if mark in b"\0" + Path(f"/proc/{c}/environ").read_bytes())


def test_one_process_then_two_then_one_see_the_same_batches_and_losses(tiny, tmp_path):
    settings, out = (*PLAIN, "schedule.epochs=3"), tmp_path / "run"
    start(tiny, tmp_path / "whole", *settings)

    def stopped_after(steps: int) -> pytest.MonkeyPatch:
        step, done, patch = loop.train_step, [0], pytest.MonkeyPatch()

        def stopping(*words):
            done[0] += 1
            return step(*words)._replace(stop=done[0] == steps)

        patch.setattr(loop, "train_step", stopping)
        return patch

    patch = stopped_after(2)
    with pytest.raises(train.Interrupted):
        start(tiny, out, *settings)
    patch.undo()
    # The same step is asked of both: a driver that stops after three.
    driver = tmp_path / "driver.py"
    driver.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport train\nfrom creature.learning import loop\n"
        "from creature.terminal import run\nstep, done = loop.train_step, []\n"
        "def stopping(*words):\n    done.append(1)\n"
        "    return step(*words)._replace(stop=len(done) == 3)\n"
        "loop.train_step = stopping\nrun(train.main)\n"
    )
    words = script(tiny, out, *settings, resume=True)[1:]
    shown = launched(*TWO, str(driver), *words).communicate(timeout=120)[0]
    assert "step 1 of epoch 2 of fold 0" in shown, shown[-3000:]
    assert start(tiny, out, *settings, resume=True) == 0
    np.testing.assert_allclose(losses(out / "fold-0"), losses(tmp_path / "whole/fold-0"), atol=1e-5)


def test_a_signal_to_one_process_stops_all_after_the_same_step(tiny, tmp_path):
    running = launched(*TWO, *script(tiny, tmp_path / "run", *LONG))
    wait_for_epoch(running)
    os.kill(child_of_rank(running.pid, 1), signal.SIGTERM)
    shown = running.communicate(timeout=60)[0]
    assert (
        shown.count("stopped as asked after step") == 2
        and 'Traceback (most recent call last):\n  File "train' not in shown
    )
    where = {line.split("after ")[1].split(", and")[0] for line in shown.splitlines() if "asked after step" in line}
    assert len(where) == 1


@pytest.mark.full
def test_a_process_that_hangs_is_given_up_within_a_minute(tiny, tmp_path):
    running = launched(*TWO, *script(tiny, tmp_path / "run", *LONG))
    wait_for_epoch(running)
    hangs = child_of_rank(running.pid, 1)
    began = time.monotonic()
    os.kill(hangs, signal.SIGSTOP)
    try:
        assert running.stdout
        said = next((line for line in running.stdout if "is gone or hangs" in line), "")
        took = time.monotonic() - began
    finally:
        os.kill(hangs, signal.SIGKILL)
    running.communicate(timeout=60)
    assert said and took < WAIT_IN_STEP.total_seconds() + 15 <= 60


def test_a_step_waits_less_than_anything_else(monkeypatch):
    from types import SimpleNamespace

    from creature.learning import processes

    said = []
    monkeypatch.setattr(processes, "_set_timeout", said.append)
    with pytest.raises(ZeroDivisionError), processes.waiting_less(SimpleNamespace(num_processes=2)):  # type: ignore[arg-type]
        assert said == [processes.WAIT_IN_STEP]
        raise ZeroDivisionError
    assert said == [processes.WAIT_IN_STEP, processes.WAIT]
    assert processes.WAIT_IN_STEP.total_seconds() < 60 < processes.WAIT.total_seconds()


def test_what_the_launcher_starts_again_goes_on_to_the_same_weights(tiny, tmp_path):
    settings = ("folds.train=[0]", "schedule.epochs=40", "checkpoint.every_minutes=0", "backbone.name=test_vit")
    whole = launched(*TWO, *script(tiny, tmp_path / "whole", *settings)).communicate(timeout=300)[0]
    assert "next: python ensemble.py" in whole, whole[-3000:]
    running = launched(*TWO, "--max_restarts", "1", *script(tiny, tmp_path / "run", *settings))
    wait_for_epoch(running)
    os.kill(child_of_rank(running.pid, 1), signal.SIGKILL)
    shown = running.communicate(timeout=300)[0]
    assert running.returncode == 0, shown[-3000:]
    assert weights_hash(tmp_path / "run/fold-0") == weights_hash(tmp_path / "whole/fold-0")


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


def on_two_hosts(hosts: list[str], words: list[str]) -> list[subprocess.Popen[str]]:
    shared = ("--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--main_process_ip", "10.77.0.1",
              "--main_process_port", "29511")  # fmt: skip
    return [
        launched(
            *shared, "--machine_rank", str(rank), *words,
            launcher=("ip", "netns", "exec", host), GLOO_SOCKET_IFNAME="wire",
        )
        for rank, host in enumerate(hosts)
    ]  # fmt: skip


@pytest.mark.full
def test_two_hosts_train_stop_when_the_cable_is_cut_and_go_on_together_or_alone(cable, tiny, tmp_path):
    settings, out = (*PLAIN, "schedule.epochs=60"), tmp_path / "run"
    start(tiny, tmp_path / "whole", *settings)
    both = on_two_hosts(cable, script(tiny, out, *settings))
    wait_for_epoch(both[0])
    ip("-n", cable[0], "link", "set", "wire", "down")
    began = time.monotonic()
    shown = [each.communicate(timeout=120)[0] for each in both]
    took = time.monotonic() - began
    print(f"both ends had left {took:.1f} s after the cut")
    assert took < 60 and all(each.returncode != 0 for each in both)
    assert all("is gone or hangs" in text for text in shown), shown
    for host in cable:
        ip("-n", host, "link", "set", "wire", "up")
    shutil.copytree(out, tmp_path / "alone")
    both = on_two_hosts(cable, script(tiny, out, *settings, resume=True))
    shown = [each.communicate(timeout=300)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], shown
    assert start(tiny, tmp_path / "alone", *settings, resume=True) == 0
    for run in (out, tmp_path / "alone"):
        np.testing.assert_allclose(losses(run / "fold-0"), losses(tmp_path / "whole/fold-0"), atol=1e-4)
    assert json.loads((out / "fold-0/result.json").read_text())["processes"] == 2
