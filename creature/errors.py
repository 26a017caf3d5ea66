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
        except ModuleNotFoundError as error:
            message = f"{what} needs {error.name or package}, which is not installed: pip install -e '.[{extra}]'"
            raise UserError(message) from error
        except ImportError as error:
            raise UserError(f"{what} needs {package}, which cannot be imported: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of a library's error, at most 200 characters; the name of its type where it has no message."""
    return (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__


def network_reason(error: BaseException) -> str:
    """Why a host was not reached: the proxy or token of the environment that is wrong, else the error's first line."""
    if isinstance(error, UnicodeEncodeError):  # of a header
        return "the token for the Hub (HF_TOKEN, or that of `hf auth login`) holds characters that no token has"
    if isinstance(error, ImportError) and "SOCKS" in str(error):
        return "ALL_PROXY or HTTPS_PROXY names a SOCKS proxy, which needs another package: pip install socksio"
    return first_line(error)


def first_problem(error: "ValidationError") -> str:
    """The first problem that pydantic has with a value: where, and what."""
    problem = error.errors()[0]
    place, message = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
