"""The rooms: each imports only from rooms before it, and no import goes in a circle; long arguments have names."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers import ROOT

# Rooms of one line are siblings, and know nothing of each other. The first line's modules need one another.
ORDER = (
    (
        "errors",
        "console",
        "storage",
        "device",
        "hub_download",
        "recipe",
        "recipe_file",
        "samples",
        "shipped",
        "species",
    ),
    ("data",),
    ("metrics",),
    ("results",),
    ("run",),
    ("member_folds",),
    ("training", "inference"),
    ("ensembling",),
    ("reporting",),
    ("publishing",),
)
BASICS = set(ORDER[0])
LEVELS = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
FRONT = len(ORDER)  # the scripts, the command and the public names: they may import every room
SCRIPTS = ("train.py", "predict.py", "ensemble.py")
# Imports against the order that are still there; what is mended must go from here.
KNOWN: set[tuple[str, str]] = set()


class Import(NamedTuple):
    """Module `source` imports module `target`; `typing_only` where it is under TYPE_CHECKING."""

    source: str
    target: str
    typing_only: bool
    deferred: bool  # within a function


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted((ROOT / "creature").rglob("*.py"))}
FILES |= {Path(name).stem: ROOT / name for name in SCRIPTS}


def targets(node: ast.AST) -> list[str]:
    """The project's modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in FILES]
    if isinstance(node, ast.ImportFrom) and node.module in FILES:
        return [
            f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in FILES else node.module
            for alias in node.names
        ]
    return []


def imports_of(module: str, node: ast.AST, typing_only: bool = False, deferred: bool = False) -> list[Import]:
    """Every import in the module, also within functions."""
    actual = [Import(module, target, typing_only, deferred) for target in targets(node)]
    typing_block = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    deferred |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for child in ast.iter_child_nodes(node):
        actual += imports_of(module, child, typing_only or typing_block, deferred)
    return actual


IMPORTS = sorted({each for module, path in FILES.items() for each in imports_of(module, ast.parse(path.read_bytes()))})


def room(module: str) -> str:
    return module.split(".")[1] if module.startswith("creature.") else ""


def level(module: str) -> int:
    return LEVELS.get(room(module), FRONT)


def against_the_order(actual: Import) -> bool:
    source, target = room(actual.source), room(actual.target)
    if actual.target == "creature" or source == target:  # creature/__init__.py imports nothing until it is asked
        return False
    return level(actual.target) > level(actual.source) or (
        level(actual.target) == level(actual.source) and source not in BASICS and level(actual.source) < FRONT
    )


def test_every_module_is_in_a_room_that_the_order_names():
    unplaced = {module for module in FILES if level(module) == FRONT and module.startswith("creature.")}
    assert unplaced == {"creature.__main__", "creature.train_api"}
    assert {room(module) for module in FILES} - {""} >= set(LEVELS)


def test_no_import_goes_against_the_order_of_the_rooms():
    wrong = {(each.source, each.target) for each in IMPORTS if against_the_order(each) and not each.typing_only}
    assert wrong - KNOWN == set(), "import from rooms before your own, or move what both need to an earlier room"
    assert KNOWN - wrong == set(), "these are mended: take them out of KNOWN"


def test_types_are_taken_from_rooms_before_too():
    wrong = {(each.source, each.target) for each in IMPORTS if against_the_order(each) and each.typing_only}
    assert wrong - KNOWN == set()


@pytest.mark.parametrize(("one", "other"), [("training", "inference"), ("inference", "training")])
def test_training_and_inference_do_not_know_each_other(one: str, other: str):
    assert [each for each in IMPORTS if room(each.source) == one and room(each.target) == other] == []


def test_no_imports_go_in_a_circle():
    graph: dict[str, set[str]] = {}
    for each in IMPORTS:
        if not each.typing_only and each.target != "creature" and each.source != each.target:
            graph.setdefault(each.source, set()).add(each.target)
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


def functions() -> list[tuple[str, ast.FunctionDef]]:
    return [
        (module, node)
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.FunctionDef)
    ]


def test_arguments_past_the_third_have_names():
    """Drawing's primitives take coordinates in a row, and torch calls what it calls as it does."""
    many = {
        f"{module}.{node.name}"
        for module, node in functions()
        if len([a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]) > 3
    }
    assert {name for name in many if not name.startswith("creature.species.")} == {
        "creature.inference.fuse_batchnorm.__torch_dispatch__"
    }, "put a * before the fourth argument"
