"""`dlrun train [-v]`: check a setup, train it, and test it once (`-m` runs a sweep; `check=none` skips the checks)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlrun.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dlrun.config.compose import Composer
    from dlrun.config.flags import Flags
    from dlrun.config.settings import Settings

__all__ = ["main"]


def main(argv: list[str], begun: Callable[[Path], object] | None = None) -> int:
    """Train, or with -m run a sweep; returns the exit code. `-v` prints each check in full.

    `begun` gets the folder of the run or sweep before it starts.
    """
    from dlrun.commands.arguments import verbose
    from dlrun.config.compose import run

    in_full, argv = verbose(argv)

    def task(cfg: Settings, record: dict[str, Any]) -> int:
        from dlrun.folders.run import claim
        from dlrun.run.execute import execute, label

        run = claim(cfg.run_dir, label(cfg))
        if begun is not None:
            begun(run.path)
        return execute(cfg, run, record=record, verbose=in_full)

    def sweep(composer: Composer, overrides: list[str], flags: Flags) -> int:
        from dlrun.search import starting

        if in_full:
            raise UserError(
                "-v: shows the checks of one run; a trial of a sweep has each check in its log.txt; omit it"
            )
        return starting.sweep(composer, overrides, flags, begun)

    return run("train", argv, task, sweep)
