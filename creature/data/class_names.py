"""Names of classes: those that look the same to a reader, and those that one source has and another lacks."""

import unicodedata
from collections.abc import Sequence, Set
from itertools import pairwise

from creature.console import warn
from creature.data.files import natural_key
from creature.errors import UserError


def refuse_look_alikes(class_names: Sequence[str], field: str) -> None:
    """Refuse classes that differ in blanks or Unicode form alone; warn of those that differ in case (`a` and `A`)."""
    by_look = sorted(class_names, key=lambda name: (_look(name).casefold(), _look(name)))
    for name, other in pairwise(by_look):
        both = f"{field}: {name!a} and {other!a} are classes that differ in"
        if _look(name) == _look(other):
            raise UserError(f"{both} blanks or Unicode form alone; give all their images one name")
        if _look(name).casefold() == _look(other).casefold():
            warn(f"{both} upper and lower case alone; where one class is meant, give all its images one name")


def check_classes(where: str, classes: Set[str], class_names: Sequence[str], *, complete: bool) -> None:
    """Raises UserError where a source has other classes than the training data; `complete`: it names all it has."""

    def listed(names: Set[str]) -> str:
        return ", ".join(sorted(names, key=natural_key)[:10]) + (", ..." if len(names) > 10 else "")

    known = {_look(name).casefold(): name for name in class_names}
    if extra := classes - set(class_names):
        meant = {name: known[look] for name in extra if (look := _look(name).casefold()) in known}
        spelled = [f"{name!a} is {meant[name]!a} there" for name in sorted(meant)[:10]]
        hint = f" ({', '.join(spelled)}; give all their images one name)" if meant else ""
        raise UserError(f"{where} has classes that the training data lacks: {listed(extra)}{hint}")
    if complete and (missing := set(class_names) - classes):
        raise UserError(f"{where} lacks the classes {listed(missing)}; if it has no image of them, add empty folders")


def _look(name: str) -> str:
    """The name as a reader sees it: composed characters, single blanks, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", name).split())
