"""Recipe files: YAML in and out, `--set` merged before the check, and every mistake worded with its way out.

`creature schema` prints the JSON schema, for editors that complete and check recipes.
"""

import argparse
import difflib
import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from creature.console import printable, warn
from creature.errors import UserError
from creature.recipe import OLDER_KEYS, Recipe

# What a recipe never needs and a hostile file may have.
MAX_BYTES, MAX_VALUES, MAX_DEPTH, MAX_MISTAKES = 2**20, 50_000, 20, 50


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe, with overrides such as `schedule.epochs=5` merged before the check.

    Raises UserError with all mistakes at once.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"recipe: {path} is larger than {MAX_BYTES >> 20} MiB, which no recipe is")
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"recipe: cannot read {path}: {reason}") from error
    settings = _parse_yaml(text, str(path))
    if not isinstance(settings, dict):
        given = "nothing" if settings is None else f"a {type(settings).__name__}"
        raise UserError(f"{path}: a recipe is a mapping of settings (`name: first`, one a line), got {given}")
    mistakes = _rename_older_keys(settings)
    for override in overrides:
        mistakes += _merge(settings, override)
    return _validate(settings, f"{path}, with --set" if overrides else str(path), mistakes)


def check_recipe(settings: dict[str, Any], source: str) -> Recipe:
    """A Recipe from plain values; raises UserError with all mistakes at once, after the name of their source."""
    settings = deepcopy(settings)
    return _validate(settings, source, _rename_older_keys(settings))


def override_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with overrides such as `schedule.epochs=5`; raises UserError with all mistakes at once."""
    settings = json.loads(recipe.model_dump_json())
    mistakes = [mistake for override in overrides for mistake in _merge(settings, override)]
    return _validate(settings, "the recipe", mistakes)


def _rename_older_keys(settings: dict[str, Any]) -> list[str]:
    """Give settings in an older spelling their present names, in place; the mistakes where both spellings are there."""
    mistakes = []
    for older, key in OLDER_KEYS.items():
        group, _, name = key.rpartition(".")
        older_name = older.rpartition(".")[2]
        values = settings.get(group) if group else settings
        if isinstance(values, dict) and older_name in values:
            value = values.pop(older_name)
            if name in values:
                mistakes.append(f"{key}: given twice, also by its older name {older}; remove {older}")
            values.setdefault(name, value)
    return mistakes


def _validate(settings: dict[str, Any], source: str, mistakes: list[str]) -> Recipe:
    """The Recipe of settings in the present spelling; `mistakes` are those that are known already."""
    backbone = settings.get("backbone")
    if isinstance(backbone, dict) and backbone.get("compile") == "auto":
        warn(f"{source}: backbone.compile: auto is no longer offered, and taken as false; write true or false")
        backbone["compile"] = False
    try:
        # Through JSON: strict types without refusing a list where the frozen model holds a tuple.
        text = json.dumps(settings, default=str)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: the names of settings are plain words: {error}") from error
    try:
        recipe = Recipe.model_validate_json(text)
    except ValidationError as error:
        problems = list(_of_settings(error))
        explained = [_explain(problem) for problem in problems[:MAX_MISTAKES]]
        lines = [*mistakes, *"\n".join(explained).split("\n")]
        count = max(len(mistakes) + len(problems), len(lines))
        more = [f"and {len(problems) - MAX_MISTAKES} more"] if len(problems) > MAX_MISTAKES else []
        raise _mistakes_error(source, count, [*lines, *more]) from error
    if mistakes:
        raise _mistakes_error(source, len(mistakes), mistakes)
    return recipe


def _mistakes_error(source: str, count: int, lines: Sequence[str]) -> UserError:
    return UserError("\n  ".join([f"{source}: {count} mistake{'s' * (count > 1)}", *lines]))


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, with every setting."""
    text = recipe.model_dump_json()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.allow_unicode = "\x85" not in text  # a line end to YAML, which the writer does not escape
    writer.dump(json.loads(text), out := StringIO())
    return out.getvalue()


class _Constructor(SafeConstructor):
    """YAML 1.2's values: a date is a string."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def _parse_yaml(text: str, source: str) -> Any:
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _Constructor
    try:
        _refuse_bombs(text, source)
        return reader.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{where}: {error.problem or error.context}") from error
    except (YAMLError, ValueError) as error:
        raise UserError(f"{source}: no YAML: {error}") from error


def _refuse_bombs(text: str, source: str) -> None:
    """Read no more than the syntax: a few lines of aliases can stand for gigabytes, and a deep nest ends the stack."""
    depth = 0
    for n, event in enumerate(YAML(typ="safe", pure=True).parse(text)):
        where = f"{source}, line {event.start_mark.line + 1}"
        if isinstance(event, AliasEvent):
            raise UserError(f"{where}: *{event.anchor} is an alias, which recipes do not have; write the value itself")
        if tag := getattr(event, "tag", None):
            raise UserError(f"{where}: {tag} is a tag, which recipes do not have; write the value alone, or in quotes")
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UserError(f"{where}: nested too deeply, {MAX_DEPTH} levels are the most")
        if n > MAX_VALUES:
            raise UserError(f"{where}: too many values, {MAX_VALUES} are the most")


def _merge(settings: dict[str, Any], override: str) -> list[str]:
    """Put an override into the settings, in place; gives the mistakes of spelling, as _rename_older_keys does."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set: must look like schedule.epochs=5, got {override!r}")
    value = _parse_yaml(text, f"--set {key}")
    key = OLDER_KEYS.get(key, key)
    mistakes = _rename_older_keys({key: value})  # within a whole group, such as optimizer={average: 0.9}
    *parents, last = key.split(".")
    for i, parent in enumerate(parents):
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise UserError(f"--set {override}: {'.'.join(parents[: i + 1])} is one value and has no settings inside")
    settings[last] = value
    return mistakes


def _keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")


def _nearest(key: str) -> str:
    """The setting that a wrong key most likely means: alike in the last part, of the same group if possible."""
    group, _, name = key.rpartition(".")

    def likeness(other: str) -> tuple[float, bool]:
        other_group, _, other_name = other.rpartition(".")
        return difflib.SequenceMatcher(None, name, other_name).ratio(), other_group == group

    best = max([*_keys(), *OLDER_KEYS], key=likeness)
    return OLDER_KEYS.get(best, best) if likeness(best)[0] >= 0.6 else ""


def _of_settings(error: ValidationError) -> Iterator[dict[str, Any]]:
    """A problem a setting: pydantic has one for each kind of value, where a setting is a number or `auto`."""
    for problem in error.errors():
        loc = problem["loc"]
        if loc[-1:] == ("constrained-int",):
            yield {**problem, "loc": loc[:-1], "msg": f"{problem['msg']}, or auto"}
        elif loc[-1:] != ("literal['auto']",):
            yield {**problem}


def _explain(problem: dict[str, Any]) -> str:
    """The mistakes of one pydantic error, one a line: setting, rule, value and way out."""
    key, given = _short(printable(".".join(str(part) for part in problem["loc"]))), problem["input"]
    shown = _short(json.dumps(given))
    match problem["type"]:
        case "extra_forbidden":
            if key in _keys():
                return f"{key}: no such setting here; write it within {key.rpartition('.')[0]}"
            near = _nearest(key)
            way_out = f"did you mean {near}?" if near else "`creature schema` lists all"
            return f"{key}: no such setting; {way_out}"
        case "json_invalid":
            return "a text holds half a character (a lone surrogate, such as \\ud800); name files in UTF-8"
        case "missing":
            return f"{key}: required, and not given"
        case "value_error":
            return str(problem["ctx"]["error"])
        case "literal_error":
            choices = _choices(problem["loc"])
            near = difflib.get_close_matches(str(given)[:60], choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return f"{key}: must be one of {', '.join(choices)}, got {shown}{hint}"
        case "model_type":
            return f"{key}: must hold settings, indented below it, got {shown}"
        case "tuple_type":
            return f"{key}: must be a list, such as [a, b], got {shown}"
        case "too_short" if not given:
            return f"{key}: must hold one value or more, such as [a, b], got {shown}"
        case "string_type":
            return f"{key}: must be text, in quotes where it looks like a number, got {shown}"
        case _:
            return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {shown}"


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."


def _choices(loc: Sequence[str | int]) -> list[str]:
    model: Any = Recipe
    for part in loc:
        model = model.model_fields[part].annotation
    return [choice if isinstance(choice, str) else json.dumps(choice) for choice in get_args(model)]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    description = "Print every setting of a recipe with its meaning: creature schema > recipe.schema.json"
    return argparse.ArgumentParser(prog="creature schema", description=description).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the JSON schema of a recipe."""
    parse(argv)
    print(json.dumps(Recipe.model_json_schema(), indent=2))
    return 0
