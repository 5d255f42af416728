"""The origin of a run for result.json: config, versions, commit, machine (`dlrun train`, S10)."""

from __future__ import annotations

import os
import platform
import socket
import time
from pathlib import Path
from typing import Any

from dlrun import __version__
from dlrun.config.settings import Settings
from dlrun.run.commit import commit

__all__ = ["origin"]


def origin(cfg: Settings) -> dict[str, Any]:
    """Return the keys of result.json that are known before training."""
    import numpy
    import torch

    return {
        "seed": cfg.seed,
        "name": cfg.name,
        "tags": list(cfg.tags),
        "note": cfg.note,
        "monitor": cfg.trainer.monitor,
        "config": cfg.plain,
        "versions": {
            "dlrun": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
        "git": commit(Path.cwd()),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
