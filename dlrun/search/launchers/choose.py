"""The launcher that runs the trials of a sweep: dlrun's pool, joblib, a Ray cluster, or Slurm.

`hydra/launcher=pool|joblib|ray|submitit_slurm`; `pip install 'dlrun[ray]'`. All run the same function on the same job
and communicate through folders, so other machines must see the sweep's folder under the same path. A trial that loses
its process, job or node is returned as `lost` with the reason; the sweep then retries it. Nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dlrun.search.launchers.joblib import Joblib
from dlrun.search.launchers.pool import Pool
from dlrun.search.launchers.protocol import Launcher
from dlrun.search.launchers.ray import Ray
from dlrun.search.launchers.slurm import Submitit

__all__ = ["launcher"]


def launcher(options: Mapping[str, Any], sweep: Path, soon: int = 0, devices: Collection[str] = ("auto",)) -> Launcher:
    """Return the chosen launcher for a sweep's folder, ready for `soon` trials at once, on `devices`.

    Raises UserError for one that cannot be reached.
    """
    if options["name"] != "pool" and not os.path.samefile(Path(__file__).parents[3], os.getcwd()):
        # their processes would look for Python's own modules in the current folder first; Python 3.11 has this variable
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    if options["name"] == "joblib":
        return Joblib(int(options["workers"]), sweep, devices, int(options["gpus_per_trial"]))
    if options["name"] == "ray":
        return Ray(options)
    if options["name"] == "submitit_slurm":
        return Submitit(options, sweep)
    pool = Pool(int(options["workers"]), devices, int(options["gpus_per_trial"]))
    pool.warm(soon)
    return pool
