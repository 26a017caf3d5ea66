"""The README's commands: each is parsed by the script that it names, with the recipe that it names."""

import re
import shlex

import pytest

import train
from creature.__main__ import VERBS, load_verb
from creature.recipe_file import load_recipe
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
    program = next((word for word in words if word in ("train.py", "creature")), None)
    argv = words[words.index(program) + 1 :] if program else []
    if program == "train.py":
        args = train.parse(argv)
        load_recipe(ROOT / args.recipe, args.set)
    elif program:
        load_verb(argv[0]).parse(argv[1:])
    else:
        assert words[0] in ("python3", ".", "pip", "pytest", "hf"), f"nothing tests {command}"


def test_the_docs_have_commands_for_every_verb():
    for name in VERBS:
        assert re.search(rf"\bcreature {name}\b|\b{name}\.py\b", README), name
    assert any(command.startswith("python train.py") for command in COMMANDS)
    assert len(COMMANDS) >= 15 and len(HEADERS) >= 6


def test_ci_runs_what_the_readme_says():
    ci = (ROOT / ".ci/run").read_text()
    wanted = [c for block in (BLOCKS[0], BLOCKS[-1]) for c in block.strip().split(" && ") if not c.startswith("pip")]
    assert [command for command in wanted if command not in ci] == []
    assert "-e '.[test]'" in BLOCKS[-1] and "-e '.[test]'" in ci


def test_the_readme_names_every_recipe():
    for path in (ROOT / "recipes").rglob("*.yaml"):
        assert path.stem in README and path.relative_to(ROOT / "recipes").parts[0] in README
