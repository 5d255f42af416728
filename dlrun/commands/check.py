"""`dlrun check [--json]`: run the checks that precede training, and nothing else (C1-C10).

Each check is printed in full, so `-v` changes nothing here; it is accepted since `dlrun train -v` prints the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlrun.config.settings import Settings

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run the checks; returns 0, or 3 if one failed. `--json` prints the results as JSON and nothing else."""
    from dlrun.commands.arguments import verbose
    from dlrun.config.compose import run

    _, argv = verbose(argv)
    as_json = "--json" in argv

    def task(cfg: Settings, _: dict[str, Any]) -> int:
        from dlrun.run.gate import check_only

        return check_only(cfg, as_json=as_json)

    return run("check", [a for a in argv if a != "--json"], task)
