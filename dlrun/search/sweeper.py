"""`dlrun train -m key=a,b,c`: every point is validated before the first run starts, and none takes the others along."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from dlrun.config import UserError

__all__ = ["points", "sweep"]

SOME_FAILED = 5


def sweep(config: Any, arguments: list[str]) -> int:
    """Run every combination of the comma lists in a numbered folder; returns 0, or 5 when some did not complete."""
    jobs = list(points(config, arguments))  # all of them: a typo in the last point must not cost the first
    from dlrun import rundir
    from dlrun.running import execute

    folder = rundir.claim_sweep(config.sweep.dir)
    print(f"{len(jobs)} runs in {folder}")
    failed = 0
    for number, (words, cfg) in enumerate(jobs):
        print(f"\n[{number + 1}/{len(jobs)}] {' '.join(words)}")
        try:
            code = execute(cfg, rundir.claim(str(folder / f"{number:04d}"), ""))
        except UserError as error:
            print(f"dlrun: {error}")
            code = error.code
        if code == 130:
            raise KeyboardInterrupt
        failed += code != 0
    print(f"\n{len(jobs) - failed} of {len(jobs)} runs completed; lay them side by side: dlrun compare {folder}")
    return SOME_FAILED if failed else 0


def points(config: Any, arguments: list[str]) -> Iterator[tuple[list[str], Any]]:
    """Yield the swept words and the resolved config of every point, in the order that Hydra's users expect.

    A config is composed once for every choice of options and then only gets its values, so a thousand points
    take seconds. Raises UserError for the first point that is wrong, by number.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from dlrun.composing import checked, in_one_line, loader

    parsed = OverridesParser.create(config_loader=loader()).parse_overrides(arguments)
    fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
    swept = [o for o in parsed if o.is_sweep_override()]
    axes = [[(o, word) for word in _words(o)] for o in swept]
    bases: dict[tuple[str, ...], Any] = {}
    for number, point in enumerate(itertools.product(*axes), start=1):
        words = [word for _, word in point]
        composed = tuple(word for o, word in point if _needs_composing(o))
        try:
            if composed not in bases:
                bases[composed] = _compose([*fixed, *composed])
            yield words, checked(_with_values(bases[composed], [w for o, w in point if not _needs_composing(o)]))
        except Exception as error:
            told = error if isinstance(error, UserError) else in_one_line(error)
            raise UserError(f"point {number} of the sweep ({' '.join(words)}): {told}") from error


def _words(override: Any) -> list[str]:
    from hydra.core.override_parser.types import Transformer

    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: expected a list such as {override.key_or_group}=1,2,3")
    key = override.get_key_element()
    return [f"{key}={word}" for word in override.sweep_iterator(transformer=Transformer.encode)]


def _needs_composing(override: Any) -> bool:
    from dlrun.composing import loader

    return bool(override.is_delete() or override.is_force_add() or loader().get_group_options(override.key_or_group))


def _compose(overrides: list[str]) -> Any:
    from hydra.types import RunMode

    from dlrun.composing import loader

    return loader().load_configuration("train", overrides, run_mode=RunMode.RUN)


def _with_values(base: Any, words: list[str]) -> Any:
    import copy

    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    cfg = copy.deepcopy(base)
    for override in OverridesParser.create().parse_overrides(words):
        OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=override.is_add())
    cfg.hydra.overrides.task = [*cfg.hydra.overrides.task, *words]
    return cfg
