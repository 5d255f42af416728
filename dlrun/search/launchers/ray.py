"""Trials on a Ray cluster: `hydra/launcher=ray`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dlrun.errors import UserError
from dlrun.search.launchers.job import Job, away
from dlrun.search.launchers.protocol import GONE, Ended, here, why, without_interrupts
from dlrun.vocabulary import Exit

__all__ = ["Ray"]

LONG = 10.0  # seconds after which a trial that found no room is reported


@dataclass
class _Placed:
    """A trial on the cluster, and the placement group that reserves its CPUs and GPUs; None if it needs neither.

    `there` once the group was seen to have room, so that the cluster is not asked again.
    """

    number: int
    group: Any
    asked: float = field(default_factory=time.monotonic)
    there: bool = False


class Ray:
    """Tasks of a Ray cluster: `hydra.launcher.address=auto` or HOST:PORT; without one, a cluster of this machine.

    A trial is one task in a placement group of its own, all on one node. Ray reserves a group whole or not at all, so
    trials that want the same room wait in turn. Tasks that a trial starts share its group and end with it.
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
        self._task = ray.remote(away)
        self._busy: dict[Any, _Placed] = {}
        self._reported = False

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
        """Hand a trial to the cluster, which starts it when its group has room on a node."""
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group, chosen = None, "DEFAULT"
        if bundle := {kind: need for kind, need in self._needs.items() if need}:
            group = placement_group([bundle], strategy="STRICT_PACK", name=f"dlrun trial {job.number}")
            chosen = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
        cores, graphics = self._needs.values()
        task = self._task.options(
            num_cpus=cores, num_gpus=graphics, max_retries=0, name="dlrun trial", scheduling_strategy=chosen
        )
        self._busy[task.remote(job, here())] = _Placed(job.number, group)

    def waiting(self) -> str:
        """Return what a trial has been waiting for, once a sweep."""
        if self._reported:
            return ""
        for one in self._busy.values():
            waited = time.monotonic() - one.asked
            if one.group is None or one.there or waited < LONG:
                continue
            one.there = self._ray.util.placement_group_table(one.group)["state"] != "PENDING"
            if not one.there:
                self._reported = True
                free = self._ray.available_resources()
                wants = " and ".join(f"{need:g} {kind}" for kind, need in self._needs.items() if need)
                there = " and ".join(f"{free.get(kind, 0):g} {kind}" for kind, need in self._needs.items() if need)
                return (
                    f"trial {one.number} has been waiting for {waited:.0f} s for {wants} on one node of the Ray "
                    f"cluster, where {there} are free in all; `ray status` shows what is in use"
                )
        return ""

    def wait(self, seconds: float) -> list[Ended]:
        """Return the trials that ended, after at most this many seconds."""
        if not self._busy:
            time.sleep(seconds)
            return []
        found = []
        for task in self._ray.wait(list(self._busy), timeout=seconds)[0]:
            one = self._busy.pop(task)
            try:
                found.append(Ended(one.number, *self._ray.get(task)))
            except self._ray.exceptions.RayError as error:
                found.append(Ended(one.number, Exit.FAILED, why(error), lost=True))
            self._free(one)
        return found

    def _free(self, one: _Placed) -> None:
        """Give back what a trial had reserved; Ray ends what is left of it there."""
        if one.group is not None:
            self._ray.util.remove_placement_group(one.group)

    def kill(self, number: int) -> None:
        """Kill the process of a trial; `wait` does not return it."""
        for task, one in [(t, o) for t, o in self._busy.items() if o.number == number]:
            del self._busy[task]
            self._ray.cancel(task, force=True)
            self._ray.wait([task], timeout=GONE)
            self._free(one)

    def interrupt(self) -> None:
        """Ask all trials to end at once as interrupted; they keep their last checkpoint."""
        for task in self._busy:
            self._ray.cancel(task, force=False)

    def close(self) -> None:
        """End all trials, and the cluster if the sweep started it."""
        for one in list(self._busy.values()):
            self.kill(one.number)
        self._ray.shutdown()
