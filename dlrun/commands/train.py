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
    from dlrun.training.group import Group

__all__ = ["main"]


def main(argv: list[str], begun: Callable[[Path], object] | None = None) -> int:
    """Train, or with -m run a sweep; returns the exit code. `-v` prints each check in full.

    `begun` gets the folder of the run or sweep before it starts.
    """
    from dlrun.commands.arguments import verbose
    from dlrun.config.compose import run

    in_full, argv = verbose(argv)

    def task(cfg: Settings, record: dict[str, Any]) -> int:
        from dlrun.run import together
        from dlrun.run.beginning import folder, new_run
        from dlrun.run.execute import execute

        if together.starts(cfg):
            path = folder(cfg)
            if begun is not None:
                begun(path)
            return together.launch(["train", *["-v"] * in_full, *argv], cfg, path)
        if (before := together.began(record["typed"])) is not None:
            from dlrun.commands import resume

            return resume.main([str(before), *(word for word in argv if word.startswith("trust="))])

        def work(group: Group | None) -> int:
            run = new_run(cfg)
            if begun is not None:
                begun(run.path)
            return execute(cfg, run, record=record | together.about(), verbose=in_full, group=group)

        return together.first(work)

    def sweep(composer: Composer, overrides: list[str], flags: Flags) -> int:
        from dlrun.search import starting

        if in_full:
            raise UserError(
                "-v: shows the checks of one run; a trial of a sweep has each check in its log.txt; omit it"
            )
        return starting.sweep(composer, overrides, flags, begun)

    return run("train", argv, task, sweep)
