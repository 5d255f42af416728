"""`dlrun train`: check a setup, train it, and test it once (`-m` runs a sweep; `check=none` skips the checks)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlrun.config.compose import Composer
    from dlrun.config.flags import Flags
    from dlrun.config.settings import Settings

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Train, or with -m run a sweep; returns the exit code."""
    from dlrun.config.compose import run

    def task(cfg: Settings, record: dict[str, Any]) -> int:
        from dlrun.folders.run import claim
        from dlrun.run.execute import execute, label

        return execute(cfg, claim(cfg.run_dir, label(cfg)), record=record)

    def sweep(composer: Composer, overrides: list[str], flags: Flags) -> int:
        from dlrun.search import sweeper

        return sweeper.sweep(composer, overrides, flags)

    return run("train", argv, task, sweep)
