"""The origin of a run for result.json: config, versions, commit, machine (`dlrun train`, S10)."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import time
from typing import Any

from dlrun import __version__
from dlrun.config.settings import Settings

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
        "git": _git(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git() -> str | None:
    """The commit of the working folder, which holds the user's code and configs; None without git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
