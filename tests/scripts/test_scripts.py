"""The scripts as programs: quick help, no traceback, no torch before it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from creature.device import usable_cores
from helpers import ROOT


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


HEAVY = "import sys; heavy = {'torch', 'timm', 'datasets', 'accelerate', 'numpy', 'sklearn'} & set(sys.modules); "


@pytest.mark.parametrize("script", ["train", "predict", "ensemble", "creature.reporting.labels"])
def test_help_imports_nothing_heavy(script: str):
    done = python(
        "-c",
        f"import {script}\ntry: {script}.main(['--help'])\nexcept SystemExit: pass\n{HEAVY}assert not heavy, heavy",
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_a_recipe_s_mistakes_are_told_without_importing_anything_heavy(tmp_path: Path):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("name: bad\nlearning_rate: 3\n")
    attempt = f"try: train.main(['--recipe', {str(recipe)!r}])\nexcept UserError as e: print(e)\n"
    code = f"import train\nfrom creature.errors import UserError\n{attempt}{HEAVY}assert not heavy, heavy"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "images: required" in done.stdout and "learning_rate: no such setting" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("train.py", "--recipe", "nowhere.yaml"),
        (
            "train.py",
            "--recipe",
            "recipes/laptop.yaml",
            "--set",
            "images.train=[nowhere]",
            "--set",
            "backbone.pretrained=false",
        ),
        ("predict.py", "nowhere", "photo.jpg"),
        ("ensemble.py", "nowhere"),
        ("-m", "creature", "schemes"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(words: tuple[str, ...], tmp_path: Path):
    out = ["--out", str(tmp_path / "run")] if words[0] == "train.py" else []
    done = python(*words, *out)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "error: " in done.stderr


def test_more_workers_than_cores_are_warned_of_in_one_line(tiny: Path, tmp_path: Path):
    cores = usable_cores()
    settings = (f"images.workers={cores + 1}", "folds.train=[0]", "schedule.epochs=1")
    words = [word for setting in settings for word in ("--set", setting)]
    done = python("train.py", "--recipe", str(tiny), "--out", str(tmp_path / "run"), *words)
    assert done.returncode == 0, done.stderr
    line = f"images.workers: should be at most the cores that may be used, {cores}, got {cores + 1}"
    assert done.stderr == f"warning: {line}; more save no time, images.workers={cores} takes less memory\n"


def test_predict_needs_nothing_that_only_posix_has():
    code = (
        "import sys\nfor name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'): sys.modules.setdefault(name, None)\n"
    )
    done = python("-c", code + "import predict, creature.data.decode, creature.data.loader, creature.metrics.blend")
    assert done.returncode == 0, done.stderr
