"""Trainings in processes of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def launch(*words: str, cpu: bool = True) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})
    return subprocess.run(
        [*LAUNCH, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def read_only(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a verb while nothing in a folder may be written to, not by root either."""
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []
    if drop and not shutil.which("setpriv"):
        pytest.skip("root writes everywhere, and setpriv is not installed: apt-get install util-linux")
    for place in places:
        place.chmod(0o555)
    try:
        command = [*drop, sys.executable, "-m", "creature", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    finally:
        for place in places:
            place.chmod(0o755)


def wait_for_epoch(running: subprocess.Popen[str]) -> None:
    """Until the third line of the table."""
    assert running.stdout
    for line in running.stdout:
        if line.split()[:1] == ["3"]:
            return
    pytest.fail("it ended before its third epoch")
