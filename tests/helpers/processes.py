"""Trainings in processes of their own."""

import os
import subprocess
import sys

import pytest

from helpers import ROOT

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def launch(*words: str, cpu: bool = True) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})
    return subprocess.run(
        [*LAUNCH, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def wait_for_epoch(running: subprocess.Popen[str]) -> None:
    """Until the third line of the table."""
    assert running.stdout
    for line in running.stdout:
        if line.split()[:1] == ["3"]:
            return
    pytest.fail("it ended before its third epoch")
