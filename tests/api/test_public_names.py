"""`import creature`: what a Python program gets, quickly, and as a good guest."""

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import creature
from helpers import ROOT
from helpers.runs import TINY


def python(code: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_there_and_listed():
    assert set(creature.__all__) <= set(dir(creature))
    for name in creature.__all__:
        assert getattr(creature, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        creature.Trainer  # type: ignore[attr-defined]  # noqa: B018


def test_importing_creature_imports_nothing_heavy():
    heavy = "{'torch', 'timm', 'numpy', 'pydantic', 'rich', 'datasets', 'PIL', 'accelerate'}"
    assert python(f"import sys, creature; print(sorted({heavy} & set(sys.modules)))") == "[]\n"


def test_the_examples_of_the_docstrings_hold(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/tiny").symlink_to(run)
    Image.new("RGB", (40, 30), "gray").save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(creature)
    assert result.attempted >= 5 and result.failed == 0


def test_training_from_python_gives_the_run_and_resumes(drawn: Path, tmp_path: Path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps({**TINY, "images": {**TINY["images"], "train": ["nowhere"]}}))
    settings = {"images.train": [str(drawn / "train")], "schedule.epochs": 1, "folds.train": [0]}
    run = creature.train(recipe, set=settings, out=tmp_path / "run")
    assert [fold.name for fold in run.folds] == ["fold-0"] and len(run.classes) == 12
    assert run.out_of_fold.score.n == run.folds[0].score.n == 24
    assert run.folds[0].score.correct == run.folds[0].result.correct
    with pytest.raises(creature.UserError, match="exists and is never overwritten"):
        creature.train(recipe, set=settings, out=tmp_path / "run")
    assert creature.load_recipe("quickstart").name == "quickstart"
    loaded = creature.load_recipe(recipe, ["seed=3"])
    again = creature.train(loaded, set={**settings, "seed": 0, "folds.train": [1]}, out=tmp_path / "run", resume=True)
    assert [fold.name for fold in again.folds] == ["fold-0", "fold-1"]
    assert [fold.name for fold in run.folds] == ["fold-0"], "what was read is kept with the object"


def test_a_mistake_is_a_user_error_with_its_cause_and_no_exit(tmp_path: Path):
    with pytest.raises(creature.UserError, match="neither a file nor the name of a recipe"):
        creature.train("lapptop", out=tmp_path / "run")
    with pytest.raises(creature.CreatureError, match="no finished fold here"):
        creature.load(tmp_path)
    try:
        creature.load_recipe(tmp_path / "nowhere.yaml")
    except creature.UserError as error:
        assert isinstance(error.__cause__, FileNotFoundError)
    assert not issubclass(creature.CreatureError, Exception) and not issubclass(creature.UserError, ValueError)


GUEST = """
import atexit, logging, multiprocessing, os, signal, sys, threading, time, warnings
registered = []
atexit.register = (lambda register: lambda f, *a, **k: (registered.append(f), register(f, *a, **k))[1])(atexit.register)
def child(): time.sleep(60)
if __name__ == "__main__":
    import numpy, torch, timm, datasets, huggingface_hub.utils, PIL.Image, safetensors, pydantic, accelerate, rich
    import timm.data, safetensors.torch, timm.optim, torchvision, pyarrow.compute, scipy.sparse, ruamel.yaml, filelock
    context = multiprocessing.get_context("fork")
    process = context.Process(target=child, daemon=True); process.start()
    torch.set_num_threads(1); torch.manual_seed(7)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    def state():
        numbers = [n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)]
        return {
            "filters": list(warnings.filters), "signals": {n: signal.getsignal(n) for n in numbers},
            "threads": torch.get_num_threads(), "random": torch.get_rng_state().tolist(),
            "children": [c.pid for c in multiprocessing.active_children()], "environment": dict(os.environ),
            "bars": huggingface_hub.utils.are_progress_bars_disabled(), "tables": datasets.are_progress_bars_disabled(),
            "logging": (logging.root.level, logging.root.manager.disable), "hooks": (sys.excepthook, sys.stdout),
            "running": sorted(t.name for t in threading.enumerate()),
        }
    registered.clear()
    before = state()
    def unchanged(when):
        changed = {key: (before[key], value) for key, value in state().items() if value != before[key]}
        assert not changed, (when, changed)
    import creature
    for name in creature.__all__: getattr(creature, name)
    from creature.data import loader, workers, image_cache, scan
    from creature.inference import members, onnx
    unchanged("importing")
    model = creature.load(sys.argv[1], device="cpu", members=True)
    unchanged("loading")
    assert [p.status for p in model.predict(sys.argv[2])] == ["ok"] * 24
    unchanged("predicting")
    assert [f for f in registered if f.__module__.startswith("creature")] == []
    process.kill()
    print("unchanged")
"""


def test_importing_loading_and_predicting_change_nothing_in_the_host_program(run: Path, drawn: Path, tmp_path: Path):
    (tmp_path / "host.py").write_text(GUEST)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "host.py"), str(run), str(drawn / "test")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout == "unchanged\n", done.stderr[-3000:]


def test_settings_from_python_may_be_paths(tmp_path):
    with pytest.raises(creature.UserError, match="nowhere"):
        creature.train("quickstart", set={"images.train": [tmp_path / "nowhere"]}, out=tmp_path / "run")
