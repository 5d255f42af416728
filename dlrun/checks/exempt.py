"""`check.skip=[gradient:blocks.3.ste]`: a check omits one module, and judges all others (C4, C9).

For what is meant to be unusual, such as a straight-through estimator, whose gradient is not the derivative on purpose.
Only checks that judge modules one by one take it; their decorator has by_module=True.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from dlrun.checks.check import Check
from dlrun.errors import UserError
from dlrun.training.experiment import Experiment

__all__ = ["exempt", "judged", "verify"]


def exempt(exp: Experiment, check: str) -> tuple[str, ...]:
    """The names of the modules that a check omits."""
    return tuple(
        word.partition(":")[2] for word in exp.cfg.check.skip if word.partition(":")[0] == check and ":" in word
    )


def judged(exp: Experiment, check: str, names: Iterable[str]) -> list[str]:
    """The names of modules or parameters that lie in no module that the check omits."""
    omitted = exempt(exp, check)
    return [n for n in names if not any(n == module or n.startswith(f"{module}.") for module in omitted)]


def verify(exp: Experiment, checks: Mapping[str, Check]) -> None:
    """Raise UserError if check.skip names a module that the model lacks, or a check that judges no single module."""
    modules = [name for name, _ in exp.model.named_modules() if name]
    for word in exp.cfg.check.skip:
        check, colon, module = word.partition(":")
        if not colon:
            continue
        if not checks[check].by_module:
            able = ", ".join(sorted(name for name, one in checks.items() if one.by_module))
            raise UserError(
                f"check.skip=[{word}]: {check} judges the whole model; expected check.skip=[{check}], or {able}"
            )
        if module not in modules:
            near = difflib.get_close_matches(module, modules, 3, 0.5) or _ending(module, modules) or modules[:3]
            hint = "; did you mean " + " or ".join(f"{check}:{name}" for name in near) + "?" if near else ""
            raise UserError(f"check.skip=[{word}]: the model has no module {module}{hint}")


def _ending(module: str, modules: Iterable[str]) -> list[str]:
    """Modules whose last name is that of the one that was asked for."""
    last = module.rpartition(".")[2]
    return [name for name in modules if name.rpartition(".")[2] == last][:3]
