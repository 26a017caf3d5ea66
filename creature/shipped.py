"""What ships beside the package: the three scripts and the recipes.

They lie at the root of a checkout, and within the package where it was installed from a wheel.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from creature.console import say
from creature.errors import UserError

_IN_WHEEL = Path(__file__).parent / "_shipped"
ROOT = _IN_WHEEL if _IN_WHEEL.is_dir() else Path(__file__).parent.parent
RECIPES = ROOT / "recipes"


@cache
def load_script(name: str) -> ModuleType:
    """Import the script `train`, `predict` or `ensemble` by its path.

    By path, because `import train` would take a user's own train.py where that comes first on sys.path.
    """
    spec = spec_from_file_location(f"creature.shipped.{name}", ROOT / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe_names() -> list[str]:
    """The names of the shipped recipes, such as `laptop` and `fair/all`; folders come last."""
    paths = (path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.yaml"))
    return [path.as_posix() for path in sorted(paths, key=lambda path: (len(path.parts), path))]


def find_recipe(wanted: str) -> Path:
    """The recipe's file: a path, or the name of a shipped recipe.

    A path that does not exist and names a shipped recipe, such as recipes/laptop.yaml, stands for that, and a line says
    so. Any other path with an ending is left to its reader. Raises UserError for an unknown name.
    """
    path = Path(wanted)
    if path.exists() and not path.is_dir():
        return path
    if not path.name:
        raise UserError(f"recipe: {wanted or 'nothing'} is a folder; give a YAML file, or a name of `creature recipes`")
    name = path.with_suffix("").as_posix().removeprefix("recipes/")
    if path.suffix not in ("", ".yaml") or (path.suffix and name not in recipe_names()):
        return path
    shipped = _shipped_recipe(name)
    if path.suffix and os.environ.get("RANK", "0") == "0":
        say(f"{wanted} does not exist here; the recipe {name} that comes with creature is used: {shipped}")
    return shipped


def _shipped_recipe(name: str) -> Path:
    if name in (names := recipe_names()):
        return RECIPES / f"{name}.yaml"
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"recipe: {name} is neither a file nor the name of a recipe that comes with creature; {hint}"
        "`creature recipes` lists all"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="creature recipes", description="List the recipes that come with creature, or print one to start from."
    )
    parser.add_argument("name", nargs="?", help="print this recipe: creature recipes laptop > mine.yaml")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """List the recipes with what each is, or print one."""
    args = parse(argv)
    if args.name:
        print(_shipped_recipe(args.name).read_text(encoding="utf-8"), end="")
        return 0
    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        first_line, _, _ = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")
        say(f"{name:{width}}  {first_line.removeprefix('# ')}")
    say("next: creature train --recipe NAME, or creature recipes NAME > mine.yaml for one of your own")
    return 0
