"""The exceptions for a mistake of the user, and the first line of any other."""

from __future__ import annotations

from dlrun.vocabulary import Exit

__all__ = ["DataChanged", "UserError", "first_line"]


class UserError(Exception):
    """A mistake of the user: printed as one line without a traceback; `code` is the exit code."""

    def __init__(self, message: str, code: int = Exit.USAGE) -> None:
        super().__init__(message)
        self.code = code


class DataChanged(UserError):
    """The data of a run that continues are not those that it began with."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
