"""dlrun: an experiment runner for image classifiers, driven by config files.

From Python: `dlrun.train`, `dlrun.load` and `dlrun.runs`, described in dlrun/python.py and imported when first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # that of typing, whose import takes time
if TYPE_CHECKING:
    from dlrun.python import Trained, load, runs, train

__all__ = ["Trained", "__version__", "load", "runs", "train"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("dlrun.python"), name)
