"""The exceptions for a mistake of the user, the first line of any other, and text that is safe to show."""

from __future__ import annotations

import errno
import re

from dlrun.vocabulary import Exit

__all__ = ["DataChanged", "Surroundings", "UserError", "first_line", "legible"]

# what a disk, its permissions or the limits of a process refuse, whatever the run is
OUTSIDE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE))
OUTSIDE |= {errno.ENOLCK, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.EFBIG}
# what moves the cursor, recolours, hides or reorders text: control characters but tab and line end, C1 codes, marks of
# direction, line separators, halves of surrogate pairs
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


class UserError(Exception):
    """A mistake of the user: printed as one line without a traceback; `code` is the exit code."""

    def __init__(self, message: str, code: int = Exit.USAGE) -> None:
        super().__init__(message)
        self.code = code


class DataChanged(UserError):
    """The data of a run that continues are not those that it began with."""


class Surroundings(UserError):
    """What is around a run failed, such as a full disk: no fault of its settings, so a sweep tries it again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.FAILED)

    @staticmethod
    def caused(error: BaseException) -> bool:
        """Whether an error is one of the surroundings."""
        return isinstance(error, Surroundings) or (isinstance(error, OSError) and error.errno in OUTSIDE)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def legible(text: str) -> str:
    r"""Return a text in which control characters and marks of direction are written out, such as \x1b.

    Names and notes may come from somebody else: on a terminal they could clear the screen or pose as other text.
    """
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
