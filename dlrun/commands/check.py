"""`dlrun check`: run the checks that come before training, and nothing else."""

from __future__ import annotations

from typing import Any

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Compose and check; returns 0, or 3 when a check failed."""
    from dlrun.composing import run

    def task(cfg: Any) -> int:
        from dlrun.running import check_only

        return check_only(cfg)

    return run("check", argv, task)
