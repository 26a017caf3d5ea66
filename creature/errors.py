"""What creature raises on purpose: a mistake of the user's, something broken, stopped as asked."""


class CreatureError(BaseException):
    """All that creature raises on purpose; `except Exception` catches only those that are errors."""


class UserError(CreatureError, Exception):
    """A mistake that the user can mend; its message names the field, the rule, the value and the way out."""


class BrokenError(CreatureError, Exception):
    """Something that worked is broken: a damaged file, a full disk, a lost process; the message names the way out."""


class Interrupted(CreatureError):
    """The run was asked to stop, and stands saved where its message says; no `except Exception` may eat it."""


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line of at most 200 characters; its type's name where it says nothing."""
    return (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
