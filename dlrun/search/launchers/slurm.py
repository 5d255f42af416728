"""Trials as jobs of Slurm: `hydra/launcher=submitit_slurm`."""

from __future__ import annotations

import hashlib
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlrun.cores import cores
from dlrun.errors import UserError
from dlrun.folders import sweep as sweep_folder
from dlrun.folders.outputs import new_folder
from dlrun.search.launchers.job import Job, Remote
from dlrun.search.launchers.protocol import GONE, Ended, here, why, without_interrupts
from dlrun.vocabulary import Exit

__all__ = ["ASK", "POLL", "Submitit", "cancel_waiting", "job_name"]


POLL = 0.1  # seconds between two checks for the result files of jobs


ASK = 30.0  # seconds between two queries to Slurm, which all users share


def job_name(folder: Path) -> str:
    """Return the name of the jobs of a folder, by which `cancel_waiting` finds them."""
    return f"dlrun_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"


def cancel_waiting(jobs: Path) -> None:
    """Cancel waiting Slurm jobs that an earlier process of this sweep left in the queue; running ones may end.

    They are found by user and by a name that is derived from their folder: job numbers in a folder copied from
    elsewhere could be those of other jobs.
    """
    for folder in {file.parent for file in jobs.glob("*/*_submitted.pkl")}:
        mine = [f"--user={pwd.getpwuid(os.getuid()).pw_name}", "--state=PENDING", f"--name={job_name(folder)}"]
        # if that fails they run, at worst a second time, which changes nothing
        with suppress(OSError, KeyError, subprocess.SubprocessError):
            subprocess.run(["scancel", *mine], capture_output=True, timeout=ASK, check=False)


class Submitit:
    """One Slurm job per trial, through submitit; `hydra.launcher.cluster=local` runs the same jobs on this machine.

    Trials that begin together are one array of jobs. A job that Slurm preempts or that nears its time limit is queued
    again and continues from the trial's checkpoint.
    """

    def __init__(self, options: Mapping[str, Any], sweep: Path) -> None:
        import submitit

        self._local = options["cluster"] == "local"
        self._place = here(sweep if self._local else None)
        folder = new_folder(sweep_folder.jobs(sweep), "jobs")
        options = {**options, "gpus_per_node": options["gpus_per_node"] or options["gpus_per_trial"]}
        cpus = int(options["cpus_per_task"])
        self.threads, self.heartbeat = cpus, float(options["heartbeat"])
        self.slots = int(options["workers"]) or (max(1, cores() // cpus) if self._local else 16)
        shared = {k: options[k] for k in ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")}
        own = ("name", "workers", "cluster", "gpus_per_trial", "heartbeat", *shared)
        slurm = {f"slurm_{k}": v for k, v in options.items() if k not in own and v not in (None, {}, [])}
        slurm["slurm_array_parallelism"] = self.slots
        shared = {k: v for k, v in shared.items() if v is not None}
        try:
            # a new folder: local jobs are numbered by process ids, which repeat
            self._executor: Any = submitit.AutoExecutor(folder, cluster=str(options["cluster"]))
            self._executor.update_parameters(name=job_name(folder), **shared, **slurm)
        except (RuntimeError, ValueError, NameError, AssertionError) as error:
            raise UserError(f"hydra/launcher=submitit_slurm: {' '.join(str(error).split())[:300]}") from error
        self._busy: dict[int, Any] = {}
        self._new: list[Job] = []  # not in the queue yet
        self._asked = time.monotonic()
        if not self._local:
            cancel_waiting(sweep_folder.jobs(sweep))

    def submit(self, job: Job) -> None:
        """Hand a trial to the queue with the next `wait`."""
        self._new.append(job)

    def _queue(self) -> None:
        new, self._new = self._new, []
        with without_interrupts(), self._executor.batch():
            jobs = [self._executor.submit(Remote(job, self._place)) for job in new]
        self._busy |= {job.number: queued for job, queued in zip(new, jobs, strict=True)}

    def wait(self, seconds: float) -> list[Ended]:
        """Return the trials that ended, after at most this many seconds."""
        if self._new:
            self._queue()
        until = time.monotonic() + seconds
        while True:
            if time.monotonic() - self._asked > ASK and self._busy and not self._local:
                self._asked = time.monotonic()
                next(iter(self._busy.values())).watcher.update()
            found = [self._outcome(n, self._busy.pop(n)) for n in list(self._busy) if self._busy[n].done()]
            if found or time.monotonic() > until:
                return found
            time.sleep(POLL)

    def _outcome(self, number: int, job: Any) -> Ended:
        if job.paths.result_pickle.exists():
            try:
                ended = Ended(number, *job.result())
                if ended.code == Exit.INTERRUPTED and not self._local:
                    job.cancel(check=False)  # it was preempted: the sweep queues it anew, and Slurm must not as well
                return ended
            except Exception as error:  # what the job raised, or a result that cannot be read
                return Ended(number, Exit.FAILED, why(error), lost=True)
        reason = f"its job {job.job_id} ended without a result ({job.state.lower()}): killed? see {job.paths.stderr}"
        return Ended(number, Exit.FAILED, reason, lost=True)

    def waiting(self) -> str:
        """Return "": its queue makes trials wait for hours, and `squeue` says for what."""
        return ""

    def kill(self, number: int) -> None:
        """Kill the job of a trial; `wait` does not return it."""
        self._new = [job for job in self._new if job.number != number]
        if (job := self._busy.pop(number, None)) is None:
            return
        self._signal(job, signal.SIGKILL)
        until = time.monotonic() + GONE
        while not job.done() and time.monotonic() < until:
            time.sleep(POLL)

    def interrupt(self) -> None:
        """Ask all trials to end at once as interrupted; they keep their last checkpoint."""
        self._new.clear()
        for job in self._busy.values():
            self._signal(job, signal.SIGTERM)

    def close(self) -> None:
        """End all jobs."""
        for number in list(self._busy):
            self.kill(number)

    def _signal(self, job: Any, number: int) -> None:
        """A local job has the id of the process that leads it; Slurm sends SIGTERM and, after its grace, SIGKILL."""
        if not self._local:
            job.cancel(check=False)
            return
        leader = int(job.job_id)
        with suppress(OSError):
            led = Path(f"/proc/{leader}/task/{leader}/children").read_text().split() if number == signal.SIGKILL else []
            for process in led:  # a stopped one would not notice that its leader is gone
                os.kill(int(process), number)
        with suppress(ProcessLookupError):
            os.kill(leader, number)
