"""Each protection of the fault table, taken out of a copy: a test that stands for it must turn red."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from helpers import ROOT

GUARD = re.compile(r"# guard: ([a-z-]+)$")
CODE = sorted([*(ROOT / "creature").rglob("*.py"), *(ROOT / f"{name}.py" for name in ("train", "predict", "ensemble"))])


@dataclass(frozen=True)
class Mutation:
    """The line of a guard becomes `instead`; then one of `tests` must fail."""

    fault: str
    guard: str
    instead: str
    tests: str


@dataclass(frozen=True)
class GuardedLine:
    """A line of code that a guard's comment ends, or stands above."""

    path: Path  # in the checkout
    number: int  # from 0

    def replaced(self, instead: str) -> str:
        """The file's text with other lines in the place of this one, as far indented."""
        lines = (ROOT / self.path).read_text(encoding="utf-8").splitlines()
        indentation = re.match(" *", lines[self.number]).group()  # type: ignore[union-attr]
        lines[self.number : self.number + 1] = [indentation + line for line in instead.split("\n")]
        return "\n".join(lines) + "\n"


def guarded_lines() -> list[tuple[str, GuardedLine]]:
    """Every guard in the code, by name."""
    actual = []
    for path in CODE:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            if guard := GUARD.search(line):
                above = line.strip() == guard.group()
                actual.append((guard[1], GuardedLine(path.relative_to(ROOT), number + above)))
    return actual


MUTATIONS = [Mutation(**entry) for entry in YAML(typ="safe").load(ROOT / "tests/mutations.yaml")]


def test_every_fault_has_a_mutation_and_every_guard_stands_once_in_the_code():
    assert {mutation.fault for mutation in MUTATIONS} == {f"R{number}" for number in range(1, 32)}
    assert Counter(name for name, _ in guarded_lines()) == dict.fromkeys((m.guard for m in MUTATIONS), 1)


def test_a_mutation_s_test_exists():
    for mutation in MUTATIONS:
        file, _, test = mutation.tests.partition("::")
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {test or 'test_'}", text, re.M), mutation


def test_a_mutation_is_code_without_undefined_names(tmp_path: Path):
    """Or a test would turn red for that alone."""
    lines = dict(guarded_lines())
    for number, mutation in enumerate(MUTATIONS):
        (tmp_path / f"{number}.py").write_text(lines[mutation.guard].replaced(mutation.instead), encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "concise"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without what is no part of it."""
    folder = tmp_path_factory.mktemp("copy") / "creature"
    unwanted = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=unwanted)
    return folder


@pytest.mark.mutation
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.fault} {m.guard} {m.tests.partition('::')[2]}")
def test_a_protection_that_is_taken_out_turns_a_test_red(copy: Path, mutation: Mutation):
    line = dict(guarded_lines())[mutation.guard]
    text = (copy / line.path).read_text(encoding="utf-8")
    (copy / line.path).write_text(line.replaced(mutation.instead), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{mutation.tests}"],
            cwd=copy, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    finally:
        (copy / line.path).write_text(text, encoding="utf-8")
    # 1: tests ran, and one failed; 2 to 5 would mean that none did.
    assert done.returncode == 1 and re.search(r"^FAILED|^ERROR", done.stdout, re.M), done.stdout[-3000:]
