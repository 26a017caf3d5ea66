"""The README's commands: each is parsed by the script that it names, with the recipe that it names."""

import re
import shlex
from importlib import import_module

import pytest

import ensemble
import predict
import train
from creature.recipe import load_recipe
from helpers import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [command for block in BLOCKS for line in block.splitlines() for command in line.split(" && ")]
HEADERS = [
    match.group(1)
    for path in (ROOT / "recipes").rglob("*.yaml")
    for match in re.finditer(r"^# +(?:Run|Then): +(\S.*)$", path.read_text(), re.M)
]


@pytest.mark.parametrize("command", COMMANDS + HEADERS)
def test_a_command_of_the_docs_can_be_typed(command: str):
    words = shlex.split(command, comments=True)
    assert command.count("[") == len(re.findall(r"'[^']*\[[^']*'", command)), "zsh needs quotes around [ ]"
    script = next((word for word in words if word in ("train.py", "ensemble.py", "predict.py")), None)
    if script == "train.py":
        args = train.parse(words[words.index(script) + 1 :])
        load_recipe(ROOT / args.recipe, args.set)
    elif script:
        {"ensemble.py": ensemble, "predict.py": predict}[script].parse(words[words.index(script) + 1 :])
    elif words[:2] == ["python", "-m"]:
        module = import_module(words[2])
        if hasattr(module, "parse"):
            module.parse(words[3:])
    else:
        assert words[0] in ("python3", ".", "pip", "pytest", "hf"), f"nothing tests {command}"


def test_the_docs_have_commands_for_every_script():
    for script in ("train.py", "ensemble.py", "predict.py"):
        assert any(script in command for command in COMMANDS)
    assert len(COMMANDS) >= 15 and len(HEADERS) >= 6


def test_ci_runs_what_the_readme_says():
    ci = (ROOT / ".ci/run").read_text()
    wanted = [c for block in (BLOCKS[0], BLOCKS[-1]) for c in block.strip().split(" && ") if not c.startswith("pip")]
    assert [command for command in wanted if command not in ci] == []
    assert "-e '.[test]'" in BLOCKS[-1] and "-e '.[test]'" in ci


def test_the_readme_names_every_recipe():
    for path in (ROOT / "recipes").rglob("*.yaml"):
        assert path.stem in README and path.relative_to(ROOT / "recipes").parts[0] in README
