"""Trials on a Ray cluster: `hydra/launcher=ray`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from dlrun.errors import UserError
from dlrun.search.launchers.job import Job, away
from dlrun.search.launchers.protocol import GONE, Ended, here, why, without_interrupts
from dlrun.vocabulary import Exit

__all__ = ["Ray"]


class Ray:
    """Tasks of a Ray cluster: `hydra.launcher.address=auto` or HOST:PORT; without one, a cluster of this machine.

    A trial is one task, and a task is on one node with all its GPUs: a placement group would reserve the same.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray, self._workers = ray, int(options["workers"])
        address = options["address"]
        try:
            with without_interrupts():  # for the processes of a local cluster
                ray.init(address or "local", log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            raise UserError(f"hydra.launcher.address={address}: no Ray cluster found: {why(error)}") from error
        graphics = options["gpus_per_trial"] if options["num_gpus"] is None else options["num_gpus"]
        self._needs = {"CPU": float(options["num_cpus"]), "GPU": float(graphics)}
        self.threads = max(1, int(self._needs["CPU"]))
        self.heartbeat = float(options["heartbeat"]) if address else 0.0
        keys = {"CPU": "num_cpus", "GPU": "gpus_per_trial" if options["num_gpus"] is None else "num_gpus"}
        for kind, need in self._needs.items():
            most = max((node.get(kind, 0) for node in self._nodes()), default=0)
            if not self._workers and need > most:
                ray.shutdown()
                raise UserError(
                    f"hydra.launcher.{keys[kind]}={need:g}: the largest node of the Ray cluster has {most:g}; ask for "
                    "less, or set hydra.launcher.workers= if the cluster grows by itself"
                )
        self._task = ray.remote(away).options(
            num_cpus=self._needs["CPU"], num_gpus=self._needs["GPU"], max_retries=0, name="dlrun trial"
        )
        self._busy: dict[Any, int] = {}

    @property
    def slots(self) -> int:
        """As many trials as fit on the nodes that are alive, each on one of them."""
        if self._workers:
            return self._workers
        needs = {kind: need for kind, need in self._needs.items() if need}
        fit = (
            min((int(node.get(kind, 0) // need) for kind, need in needs.items()), default=1) for node in self._nodes()
        )
        return max(1, sum(fit))

    def _nodes(self) -> list[dict[str, float]]:
        """What each living node has."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def submit(self, job: Job) -> None:
        """Hand a trial to the cluster."""
        self._busy[self._task.remote(job, here())] = job.number

    def wait(self, seconds: float) -> list[Ended]:
        """Return the trials that ended, after at most this many seconds."""
        if not self._busy:
            time.sleep(seconds)
            return []
        found = []
        for one in self._ray.wait(list(self._busy), timeout=seconds)[0]:
            number = self._busy.pop(one)
            try:
                found.append(Ended(number, *self._ray.get(one)))
            except self._ray.exceptions.RayError as error:
                found.append(Ended(number, Exit.FAILED, why(error), lost=True))
        return found

    def kill(self, number: int) -> None:
        """Kill the process of a trial; `wait` does not return it."""
        for one in [o for o, n in self._busy.items() if n == number]:
            del self._busy[one]
            self._ray.cancel(one, force=True)
            self._ray.wait([one], timeout=GONE)

    def interrupt(self) -> None:
        """Ask all trials to end at once as interrupted; they keep their last checkpoint."""
        for one in self._busy:
            self._ray.cancel(one, force=False)

    def close(self) -> None:
        """End all trials, and the cluster if the sweep started it."""
        for number in list(self._busy.values()):
            self.kill(number)
        self._ray.shutdown()
