"""The exceptions that creature raises on purpose."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class CreatureError(BaseException):
    """The base of them all; `except Exception` catches those that are errors, and lets `Interrupted` pass."""


class UserError(CreatureError, Exception):
    """A mistake that the user can mend; its message names the field, the rule, the value and the way out."""


class BrokenError(CreatureError, Exception):
    """Something that worked is broken: a damaged file, a full disk, a lost process; the message names the way out."""


class Interrupted(CreatureError):
    """The run was asked to stop, and stands saved where its message says; no `except Exception` may eat it."""


def check_installed(extra: str, what: str, *packages: str) -> None:
    """Raise UserError where one of the packages that `what` needs is missing; `extra` is creature's that brings it."""
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            message = f"{what} needs {error.name or package}, which is not installed: pip install 'creature[{extra}]'"
            raise UserError(message) from error


def first_line(error: BaseException) -> str:
    """The first line of a library's error, at most 200 characters; the name of its type where it has no message."""
    return (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__


def first_problem(error: "ValidationError") -> str:
    """The first problem that pydantic has with a value: where, and what."""
    problem = error.errors()[0]
    place, message = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
