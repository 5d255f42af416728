"""Parameter groups and learning-rate schedules (`optimizer=`, `scheduler=`; practices O1–O3, O7)."""

from __future__ import annotations

from dlrun.optim.groups import parameter_groups
from dlrun.optim.schedulers import Scheduler

__all__ = ["Scheduler", "parameter_groups"]
