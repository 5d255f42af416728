"""Whether this process is one of several that train together, and which: torchrun or Slurm say it (O10).

Only the environment is read; nothing here imports torch. torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT; of a step that `srun` started with several tasks they follow from SLURM_PROCID and the list of its hosts.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from dlrun.cores import cores
from dlrun.errors import UserError
from dlrun.folders.lease import born

__all__ = ["FOLDER", "Rank", "again", "launch", "own", "published", "threads"]

FOLDER = "DLRUN_RUN_FOLDER"  # of a run whose processes `dlrun train` starts itself
PORTS, FIRST = 20_000, 15_000  # of the jobs of a cluster: below the ports that systems give away


@dataclass(frozen=True)
class Rank:
    """The number of this process among `world`, from 0, and its number among the `near` ones of this machine."""

    rank: int
    world: int
    local: int
    near: int


def own(env: Mapping[str, str] = os.environ) -> Rank | None:
    """Return the place of this process among several; None if it trains alone. Raises UserError for strange numbers."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "MASTER_ADDR" not in env or "RANK" not in env or "WORLD_SIZE" not in env:
        # in the shell that salloc opens, SLURM_NTASKS may be that of the job
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        names = ("SLURM_PROCID", tasks, "SLURM_LOCALID", "")
        if "SLURM_STEP_ID" not in env or names[0] not in env:  # a batch script has no step of its own
            return None
    rank, world, local = (_number(env, name, default) for name, default in zip(names, ("", "1", "0"), strict=False))
    if world == 1:
        return None
    if not rank < world:
        raise UserError(f"{names[0]}={rank}: expected less than {names[1]}={world}")
    return Rank(rank, world, local, _near(env, names[3], world))


def _number(env: Mapping[str, str], name: str, default: str) -> int:
    if not (text := env.get(name, default)).isdigit():
        raise UserError(f"{name}={text}: expected a whole number, which torchrun and srun set")
    return int(text)


def _near(env: Mapping[str, str], name: str, world: int) -> int:
    """How many of the processes run on this machine: of Slurm's list of tasks per node, such as 4(x2),3, the most."""
    if name:
        return _number(env, name, str(world))
    tasks = re.findall(r"(\d+)(?:\(x\d+\))?", env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return max(map(int, tasks), default=world)


def published(rank: Rank) -> None:
    """Set what torch reads in the environment, if Slurm started this process."""
    if "MASTER_ADDR" in os.environ and "RANK" in os.environ:
        _number(os.environ, "MASTER_PORT", "")
        return
    job = _number(os.environ, "SLURM_JOB_ID", "0") + _number(os.environ, "SLURM_STEP_ID", "0")
    os.environ.setdefault("MASTER_ADDR", _first_host(os.environ.get("SLURM_STEP_NODELIST", "")))
    os.environ.setdefault("MASTER_PORT", str(FIRST + job % PORTS))
    os.environ |= {"RANK": str(rank.rank), "WORLD_SIZE": str(rank.world), "LOCAL_RANK": str(rank.local)}
    os.environ["LOCAL_WORLD_SIZE"] = str(rank.near)


def _first_host(listed: str) -> str:
    """The first host of a list of Slurm, such as gpu[03-05,09],cpu1."""
    found = re.match(r"([^,\[\]]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", listed)
    return "".join(part or "" for part in found.groups()) if found else socket.gethostname()


def threads() -> int:
    """Return how many threads of a processor a process gets: all cores that it may use, or its share of them."""
    rank, each = own(), os.environ.get("SLURM_CPUS_PER_TASK", "")
    if each.isdigit() and "SLURM_PROCID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return max(1, min(cores(), int(each)))  # srun binds each of its tasks to cores of its own
    return max(1, cores() // (1 if rank is None else rank.near))


def launch() -> str:
    """Return what stays the same when the processes are started again: a job of Slurm, or the process of torchrun.

    Empty if they train alone.
    """
    if own() is None:
        return ""
    if job := os.environ.get("SLURM_JOB_ID"):
        return f"slurm {os.environ.get('SLURM_CLUSTER_NAME', '')} {job}"
    agent = os.getppid()
    return f"torchrun {socket.gethostname()} {os.environ.get('TORCHELASTIC_RUN_ID', '')} {agent} {born(agent)}"


def again() -> bool:
    """Whether torchrun or Slurm start these processes again, after an end before the last epoch."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0").strip("0").isdigit() for name in names)
