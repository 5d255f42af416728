"""The sweeper behind `dlrun train -m`, as a thin class that Hydra can find; the work is in dlrun.search.

Hydra 1.3 instantiates only sweepers whose dotted name starts with "hydra_plugins.", so this package is put
on sys.path by dlrun.composing.
"""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper


class DlrunSweeper(Sweeper):  # type: ignore[misc]
    """Hydra's interface to `dlrun.search.sweeper.Sweep`."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        from dlrun.composing import finished
        from dlrun.search.sweeper import sweep

        finished(sweep(self.config, arguments))
