"""The errors of Hydra, OmegaConf and YAML in one line each (`dlrun train model=resnt18`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dlrun.config.schema import unknown
from dlrun.errors import UserError, first_line

__all__ = ["in_one_line"]


@contextmanager
def in_one_line() -> Iterator[None]:
    """Raise UserError in place of such an error: a sentence that says what to type."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(_sentence(error)) from error


def _sentence(error: BaseException) -> str:
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if not str(error).strip() and error.__cause__ is not None:
        error = error.__cause__  # Hydra wraps OmegaConf's errors in an empty one
    first = first_line(error)
    if isinstance(error, OverrideParseException):
        how = "expected key=value or group=option; quote it for the shell: 'key=value'"
        return f"cannot read {error.override!r}: {how}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group:
            return f"{group}={option}: no such option; a file conf/{group}/{option}.yaml would make it one"
        return f"{option}: no such config; a file conf/{option}.yaml would make it one"
    if isinstance(error, OmegaConfBaseException):
        key = str(error.full_key or "")
        return first if not key or key in first else f"{key}: {first}"
    if first.startswith("Could not override '"):
        return unknown(first.split("'")[1], ())
    if first.startswith("Multiple values for "):
        return f"{first.split()[3].rstrip('.')} is chosen already; leave the + away"
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        problem = getattr(error, "problem", None) or first
        return f"{mark.name}, line {mark.line + 1}: not YAML that dlrun reads: {problem}"
    return first
