"""Training images that could not be read, counted once training has ended (`dlrun train dataset.on_bad=drop`, D1).

Only with dataset.audit below 1, where they were not found before; another image took the place of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlrun.data.splits import Bad
    from dlrun.training.experiment import Experiment
    from dlrun.training.group import Group

__all__ = ["counted"]


@contextmanager
def counted(
    exp: Experiment, group: Group | None, report: Callable[[Sequence[Bad]], None] | None = None
) -> Iterator[None]:
    """The context of training; the first process then reports what all processes met, and the others tell it."""
    from dlrun.training.loop import Diverged, Stopped

    known, ended = exp.data.stand_ins, True
    try:
        yield
    except (Diverged, Stopped):  # in which all processes end alike
        raise
    except BaseException:
        ended = False
        raise
    finally:
        if known is not None and ended:
            for number, reason in (one for found in _met(group, known.found) for one in found):
                known.note(number, reason)
            if report is not None:
                report(known.bad)


def _met(group: Group | None, found: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
    return [found] if group is None else group.collected("replaced", found)
