"""`dlrun train -m key=a,b,c`: every point is validated before the first starts, and each fails alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dlrun.config import UserError

if TYPE_CHECKING:
    from dlrun.composing import Composer

__all__ = ["points", "sweep"]

SOME_FAILED, INTERRUPTED = 5, 130


def sweep(composer: Composer, overrides: Sequence[str]) -> int:
    """Run every combination of the comma lists in a numbered folder; returns 0, or 5 when some failed."""
    jobs = list(points(composer, overrides))  # all of them: a typo in the last point must not cost the first
    from omegaconf import OmegaConf

    from dlrun import rundir
    from dlrun.running import execute

    folder = rundir.claim_sweep(jobs[0][1]["sweep"]["dir"])
    print(f"{len(jobs)} runs in {folder}", flush=True)
    failed = 0
    for number, (words, cfg) in enumerate(jobs):
        print(f"\n[{number + 1}/{len(jobs)}] {' '.join(words)}", flush=True)
        try:
            code = execute(OmegaConf.create(cfg), rundir.claim(str(folder / f"{number:04d}"), ""))
        except UserError as error:
            print(f"dlrun: {error}", flush=True)
            code = error.code
        if code == INTERRUPTED:
            print(f"\n{number} of {len(jobs)} runs were done, {folder / f'{number:04d}'} was interrupted")
            return INTERRUPTED
        failed += code != 0
    print(f"\n{len(jobs) - failed} of {len(jobs)} runs completed; lay them side by side: dlrun compare {folder}")
    return SOME_FAILED if failed else 0


def points(composer: Composer, overrides: Sequence[str]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yield the swept words and the config of every point, the last list turning fastest, as Hydra does.

    Raises UserError for the first point that is wrong, by number.
    """
    parsed = composer.parse(overrides)
    if any(o.key_or_group == "run.dir" for o in parsed):
        raise UserError("run.dir= names the folder of one run; type sweep.dir=FOLDER with -m")
    axes = [_values(composer, o) if o.is_sweep_override() else [o] for o in parsed]
    for number, point in enumerate(itertools.product(*axes), start=1):
        words = [o.input_line for o, asked in zip(point, parsed, strict=True) if asked.is_sweep_override()]
        try:
            cfg = composer.config(point)
        except UserError as error:
            raise UserError(
                f"point {number} of the sweep ({' '.join(words)}): {error}" if words else str(error)
            ) from error
        yield words, cfg


def _values(composer: Composer, override: Any) -> list[Any]:
    from hydra.core.override_parser.types import Transformer

    key = override.get_key_element()
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: expected a list such as {key}=1,2,3")
    return composer.parse([f"{key}={word}" for word in override.sweep_iterator(transformer=Transformer.encode)])
