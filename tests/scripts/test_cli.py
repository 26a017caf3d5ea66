"""The command `creature VERB`: its table of verbs, recipes by name, and all of it from an installed wheel."""

import os
import signal
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from creature import __main__ as command
from creature import shipped
from creature.console import wait_patiently
from creature.errors import UserError
from creature.recipe_file import load_recipe
from helpers import ROOT
from helpers.processes import LAUNCH, wait_for_epoch


def creature(*words: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a program of its own."""
    return subprocess.run(
        [sys.executable, "-m", "creature", *map(str, words)],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    """The exit code of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["creature", *words])
    with pytest.raises(SystemExit) as ended:
        sys.exit(command.main())
    return ended.value.code


def test_help_lists_every_verb_and_imports_nothing_for_it():
    code = (
        "import sys; before = set(sys.modules); sys.argv = ['creature', '--help']; from creature.__main__ import main; "
        "main(); print({'rich', 'torch', 'pydantic', 'numpy', 'argparse'} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *lines, imported = done.stdout.splitlines()
    assert imported == "set()" and lines[0] == "usage: creature VERB ..."
    named = [line.split()[0] for line in lines if line.startswith("  ")]
    assert named == list(command.VERBS) and max(map(len, lines)) <= 100


def test_help_whose_reader_leaves_ends_quietly():
    with subprocess.Popen(
        [sys.executable, "-m", "creature", "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout and program.stderr
        program.stdout.close()
        assert (program.wait(), program.stderr.read()) == (141, b"")


@pytest.mark.parametrize("name", command.VERBS)
def test_a_verb_s_help_calls_it_by_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run_main(monkeypatch, name, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: creature {name} ")


def test_every_program_of_the_package_is_a_verb_and_no_module_is_run_by_itself():
    programs = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "creature").rglob("*.py")
        if "ArgumentParser(" in path.read_text()
    }
    assert programs == {verb.module for verb in command.VERBS.values() if not verb.module.endswith(".py")}
    runnable = [
        path.name for path in (ROOT / "creature").rglob("*.py") if 'if __name__ == "__main__"' in path.read_text()
    ]
    assert runnable == ["__main__.py"]


def test_a_misspelt_verb_is_answered_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run_main(monkeypatch, "trian") == 2
    assert "creature trian: no such verb; did you mean train? creature --help lists all" in capsys.readouterr().err
    assert run_main(monkeypatch, "zzzzzz") == 2
    assert "creature zzzzzz: no such verb; creature --help lists all" in capsys.readouterr().err


def test_no_verb_at_all_is_answered_with_the_overview(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run_main(monkeypatch) == 2
    assert capsys.readouterr().err.startswith("usage: creature VERB")


def test_a_script_s_own_name_stands_in_its_help():
    done = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: train.py ")


def test_a_signal_saves_and_ends_with_75(tiny: Path, tmp_path: Path):
    words = ["train", "--recipe", str(tiny), "--out", str(tmp_path / "run"), "--set", "schedule.epochs=500"]
    running = subprocess.Popen(
        [sys.executable, "-m", "creature", *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for_epoch(running)
    os.kill(running.pid, signal.SIGTERM)
    shown = running.communicate(timeout=60)[0]
    assert running.returncode == 75, shown
    assert "SIGTERM: saving and leaving" in shown and "--resume goes on" in shown


def test_the_launcher_starts_a_verb(tiny: Path, tmp_path: Path):
    words = ["--recipe", str(tiny), "--out", str(tmp_path / "run"), "--set", "folds.train=[0]"]
    done = subprocess.run(
        [*LAUNCH, "--num_processes", "1", "-m", "creature", "train", *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/fold-0/result.json").exists()


def test_a_script_is_found_by_its_path_whatever_else_is_called_train(tmp_path: Path):
    (tmp_path / "train.py").write_text("raise SystemExit('a train.py of the user')\n")
    done = creature("train", "--recipe", "nowhere.yaml", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2 and "cannot read nowhere.yaml" in done.stderr


# Recipes by name.


def test_recipes_are_listed_with_what_they_are():
    done = creature("recipes")
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == shipped.recipe_names() and "creature train --recipe NAME" in last
    assert lines[shipped.recipe_names().index("fair/all")].endswith("as baseline.yaml, with both.")


def test_a_recipe_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run_main(monkeypatch, "recipes", "paper/focal") == 0
    assert capsys.readouterr().out == (ROOT / "recipes/paper/focal.yaml").read_text()


@pytest.mark.parametrize("name", ["laptop", "fair/all", "paper/backbones/resnet152"])
def test_a_recipe_is_found_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)  # a folder of that name is no recipe
    assert shipped.find_recipe(name) == ROOT / f"recipes/{name}.yaml"


def test_a_file_goes_before_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "laptop").write_text("name: mine\n")
    assert shipped.find_recipe("laptop") == Path("laptop")


def test_a_path_that_is_not_there_stands_for_the_shipped_recipe_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(shipped.find_recipe("recipes/quickstart.yaml")).name == "quickstart"
    assert "recipes/quickstart.yaml does not exist here; the recipe quickstart that comes" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    assert shipped.find_recipe("fair/all.yaml") == ROOT / "recipes/fair/all.yaml"
    assert capsys.readouterr().out == ""


def test_other_paths_are_left_to_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for path in ("mine.yaml", "recipes/mine.yaml", "/elsewhere/recipes/laptop.yaml", "laptop.json"):
        assert shipped.find_recipe(path) == Path(path)


def test_an_unknown_recipe_is_answered_with_near_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"laptp is neither a file nor .*did you mean laptop\? `creature recipes` lists"
    ):
        shipped.find_recipe("laptp")


# Waiting threads.


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "5"}])
def test_threads_wait_patiently_unless_the_environment_says_how(given: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", dict(given))
    wait_patiently()
    assert os.environ == (given or {"GOMP_SPINCOUNT": "10000"})


@pytest.mark.parametrize("script", ["train", "predict", "ensemble"])
def test_scripts_say_how_threads_wait_before_torch_is_loaded_and_the_package_never_does(script: str):
    code = (
        f"import os, sys, {script}; from creature import console\n"
        "assert 'GOMP_SPINCOUNT' not in os.environ and 'torch' not in sys.modules\n"
        "console.run(lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules) or 0)"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "10000 False\n"), done.stderr


# From a wheel.


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked as an installer does."""
    if find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed; pip install -e '.[test]' brings it")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("creature-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_a_wheel_holds_the_package_the_scripts_and_the_recipes(installed: Path):
    tracked = subprocess.run(
        ["git", "ls-files", "creature", "recipes"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    if not tracked:
        pytest.skip("the checkout is no git repository, which tells the files that belong to it")
    wanted = {
        name.replace("recipes/", "creature/_shipped/recipes/") if name.startswith("recipes/") else name
        for name in tracked
    }
    wanted |= {f"creature/_shipped/{name}.py" for name in ("train", "predict", "ensemble")}
    assert wanted <= {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    entry_points = next(installed.glob("creature-*.dist-info/entry_points.txt")).read_text()
    assert "creature = creature.__main__:main" in entry_points


def test_a_wheel_draws_trains_and_predicts_in_an_empty_folder(installed: Path, tmp_path: Path):
    for name in ("train", "predict", "ensemble"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a script of the user')\n")

    def run(*words: str) -> str:
        done = creature(*words, cwd=tmp_path, PYTHONPATH=str(installed))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("draw", "data/drawn", "--train", "72", "--test", "24", "--size", "32")
    small = ["--set", "images.size=32", "--set", "schedule.epochs=2", "--set", "folds.train=[0]"]
    shown = run("train", "--recipe", "recipes/quickstart.yaml", *small)
    assert f"the recipe quickstart that comes with creature is used: {installed}" in shown
    run("train", "--recipe", "quickstart", *small, "--resume")
    run("ensemble", "runs/quickstart", "--images", "data/drawn/test", "--labels", "data/drawn/test_labels.csv")
    run("predict", "runs/quickstart/fold-0", "data/drawn/test", "--out", "predictions.csv")
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 25
    assert "laptop" in run("recipes") and '"properties"' in run("schema")


def test_a_folder_is_no_recipe(tmp_path):
    done = creature("train", "--recipe", ".", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2 and done.stderr.startswith("error: recipe: . is a folder; give a YAML file")


def test_a_reader_that_leaves_early_ends_a_verb_without_a_word():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "creature", "schema"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
