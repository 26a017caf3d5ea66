"""Each protection of the fault table, taken out of a copy: a test that stands for it must turn red."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from ruamel.yaml import YAML

from helpers import ROOT


class Mutation(NamedTuple):
    """In `file`, `old` becomes `new`; then one of `tests` must fail."""

    fault: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [Mutation(**each) for each in YAML(typ="safe").load(ROOT / "tests/mutations.yaml")]


def test_every_fault_has_a_mutation_that_fits_the_code():
    assert {mutation.fault for mutation in MUTATIONS} == {f"R{number}" for number in range(1, 32)}
    for mutation in MUTATIONS:
        assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1, mutation
        file, _, test = mutation.tests.partition("::")
        assert re.search(rf"^def {test or 'test_'}", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.M), (
            mutation
        )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without what is no part of it."""
    folder = tmp_path_factory.mktemp("copy") / "creature"
    unwanted = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=unwanted)
    return folder


@pytest.mark.mutation
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.fault} {m.file}: {m.old.strip()[:40]!r}")
def test_a_protection_that_is_taken_out_turns_a_test_red(copy: Path, mutation: Mutation):
    path = copy / mutation.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{mutation.tests}"],
            cwd=copy, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    finally:
        path.write_text(whole, encoding="utf-8")
    # 1: tests ran, and one failed; 2 to 5 would mean that none did.
    assert done.returncode == 1 and re.search(r"^FAILED|^ERROR", done.stdout, re.M), done.stdout[-3000:]
