"""`dlrun train`: check a setup, train it, test it once (`-m` sweeps; `check=none` skips the checks)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlrun.config.settings import Settings

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Compose and run; returns the exit code."""
    from dlrun.config.compose import run
    from dlrun.search.sweeper import sweep

    def task(cfg: Settings, record: dict[str, Any]) -> int:
        from dlrun.folders.run import claim
        from dlrun.run.execute import execute, label

        return execute(cfg, claim(cfg.run_dir, label(cfg)), record=record)

    return run("train", argv, task, sweep)
