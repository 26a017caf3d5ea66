"""Training from Python: the loops of train.py, with a run to read at the end."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from creature import recipe_file
from creature.recipe import Recipe
from creature.recipe_file import override_recipe
from creature.run import Run
from creature.shipped import find_recipe, load_script


def load_recipe(recipe: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of a YAML file, or one that comes with creature, by its name (`laptop`); `overrides` as `key=value`.

    Raises UserError with all that is wrong in it.
    """
    return recipe_file.load_recipe(find_recipe(os.fspath(recipe)), overrides)


def train(
    recipe: str | os.PathLike[str] | Recipe,
    *,
    set: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Run:
    """Train the folds of a recipe, and give the run.

    `recipe` is a YAML file, the name of a recipe that comes with creature (`laptop`), or a Recipe; `set` overrides
    settings, as `{"images.train": ["photos"]}`; the run's folder is `out`, or `runs/NAME`. `resume` goes on with folds
    that exist, which are never overwritten otherwise. Raises UserError for a mistake in the recipe or the images, with
    all that is wrong, and BrokenError for what breaks on the way.
    """
    overrides = [f"{key}={json.dumps(value, default=os.fspath)}" for key, value in (set or {}).items()]
    settings = override_recipe(recipe, overrides) if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    folder = Path(out) if out is not None else Path("runs") / settings.name
    load_script("train").train(settings, folder, resume=resume)
    return Run(folder)
