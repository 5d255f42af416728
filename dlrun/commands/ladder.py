"""`dlrun ladder model.depth=2,4,6,8 model.width=16,32,64`: add capacity until validation stops improving (M8).

Trains the smallest network first, without regularisation, with three seeds; then the next value of one key after the
other, as long as validation improves by more than noise. The last improvement is then regularised. It is a sweep:
`dlrun resume`, `dlrun compare` and `dlrun report` take its folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlrun.commands.arguments import described

if TYPE_CHECKING:
    from dlrun.config.compose import Composer
    from dlrun.config.flags import Flags
    from dlrun.config.settings import Settings

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Climb a ladder of capacities; returns the exit code of a sweep."""
    from dlrun.config.compose import run

    if {"-h", "--help"} & set(argv):
        print(described(__doc__ or ""))
        return run("ladder", argv, _single)

    def sweep(composer: Composer, overrides: list[str], flags: Flags) -> int:
        from dlrun.search import ladder, starting

        seeds = [] if any(word.lstrip("+").startswith("seed=") for word in overrides) else [ladder.SEEDS]
        return starting.sweep(composer, [*overrides, *seeds], dict(flags), asked=ladder.asked)

    return run("ladder", ["-m", *(word for word in argv if word not in ("-m", "--multirun"))], _single, sweep)


def _single(cfg: Settings, record: dict[str, Any]) -> int:
    raise AssertionError("a ladder is a sweep")
