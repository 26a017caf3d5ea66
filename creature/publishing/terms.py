"""What only a person can say of a model: the license of its weights, and where its images come from."""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from creature.errors import BrokenError, UserError, first_problem

FILE = "sharing.json"  # in a run's folder: the terms of its last publication


@dataclass(frozen=True)
class Terms:
    """The license, as the Hub writes it, and a sentence on the images' origin."""

    license: str
    data: str


def add_terms(parser: argparse.ArgumentParser) -> None:
    """Add --license and --data."""
    parser.add_argument("--license", metavar="NAME", help="of the weights, as the Hub writes it: apache-2.0, cc-by-4.0")
    parser.add_argument("--data", metavar="TEXT", help="where the images come from, and under which terms")


def find_terms(folder: Path, license: str | None, data: str | None) -> Terms:
    """The given terms, else those of the run's last publication, else what is answered on the terminal.

    Raises UserError where no terminal can be asked, or for an answer that is no license or is empty.
    """
    before = read_terms(folder)
    license = license or (before and before.license)
    data = data or (before and before.data)
    if not (license and data) and not sys.stdin.isatty():
        missing = " and ".join(name for name, value in (("--license", license), ("--data", data)) if not value)
        raise UserError(
            f"{missing}: needed for the model card, and never guessed: --license apache-2.0 (of the weights; "
            "mind the terms of your images and of the pretrained weights) --data 'where the images come from'"
        )
    from rich.prompt import Prompt

    license = license or Prompt.ask("License of the weights, as the Hub writes it (apache-2.0, cc-by-4.0, other)")
    data = data or Prompt.ask("Where do the images come from, and under which terms? A sentence for the card")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise UserError(f"--license: must be a name such as apache-2.0, cc-by-4.0 or other, got {license!r}")
    if not data.strip():
        raise UserError("--data: say in a sentence where the images come from, got nothing")
    return Terms(license, data.strip())


def read_terms(folder: Path) -> Terms | None:
    """The terms of a run's last publication; None where there was none."""
    from pydantic import TypeAdapter, ValidationError  # here, for train.py --help need not wait for it

    path = folder / FILE
    if not path.exists():
        return None
    try:
        return TypeAdapter(Terms).validate_json(path.read_bytes())
    except ValidationError as error:
        raise BrokenError(f"{path}: {first_problem(error)}; delete it, and name --license and --data again") from error
