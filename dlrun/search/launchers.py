"""Other ways to run the trials of a sweep than dlrun's own pool: joblib, a Ray cluster, Slurm's queue.

`hydra/launcher=joblib|ray|submitit_slurm`; `pip install 'dlrun[ray]'`. All run the same function on the same job and
have the methods of `Pool`; folders are the channel, so other machines must see the sweep's folder under the same path.
A trial that loses its process, job or node comes back as `lost` with the reason; the sweep then tries it again. Nothing
here imports torch.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from dlrun.errors import UserError
from dlrun.folders import sweep as sweep_folder
from dlrun.folders.outputs import new_folder
from dlrun.search.pool import Ended, Pool, cores, gpus
from dlrun.search.worker import Job, Place, Remote, away

__all__ = ["Launcher", "launcher"]

GONE = 10.0  # seconds for the process of a killed trial to be gone
POLL = 0.1  # seconds between two looks at the result files of jobs
ASK = 30.0  # seconds between two questions to Slurm, whose accounting is shared by all


class Launcher(Protocol):
    """What runs up to `slots` trials at a time, each with `threads` threads."""

    threads: int

    @property
    def slots(self) -> int: ...
    def submit(self, job: Job) -> None: ...
    def wait(self, seconds: float) -> list[Ended]: ...
    def kill(self, number: int) -> None: ...
    def interrupt(self) -> None: ...
    def close(self) -> None: ...


def launcher(options: Mapping[str, Any], sweep: Path, soon: int = 0) -> Launcher:
    """Return the chosen launcher for a sweep's folder, ready for as many trials as come `soon`.

    Raises UserError for one that is not there.
    """
    if options["name"] == "joblib":
        return Joblib(int(options["workers"]), sweep)
    if options["name"] == "ray":
        return Ray(options)
    if options["name"] == "submitit_slurm":
        return Submitit(options, sweep)
    pool = Pool(int(options["workers"]))
    pool.warm(soon)
    return pool


def _here(sweep: Path | None = None) -> Place:
    return Place(os.getcwd(), tuple(sys.path), sweep)


def _why(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if (found := text.rpartition("exit codes of the workers are "))[0]:  # loky's guesses come before
        return f"its process died, {found[2]}: out of memory?"
    return f"{type(error).__name__}: {text[:200]}"


@contextmanager
def _deaf() -> Iterator[None]:
    """Let processes that start here not hear Ctrl-C, which is the parent's business; the parent hears it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Joblib:
    """Processes of joblib's loky on this machine, one to an executor: a death breaks an executor, not the sweep."""

    def __init__(self, workers: int, sweep: Path) -> None:
        self._place = _here(sweep)
        self.slots = workers or gpus() or cores()
        self.threads = max(1, cores() // self.slots)
        self._cards = [n % gpus() for n in range(self.slots)] if gpus() else []
        self._idle: list[tuple[Any, Any, int | None]] = []
        self._busy: dict[Any, tuple[int, tuple[Any, Any, int | None]]] = {}  # by future: trial and executor

    def submit(self, job: Job) -> None:
        """Start a trial in a process that is free."""
        with _deaf():
            one = self._idle.pop() if self._idle else self._start()
            self._busy[one[0].submit(away, job, self._place)] = (job.number, one)

    def _start(self) -> tuple[Any, Any, int | None]:
        """An executor, the future of its process's id, its card."""
        from joblib.externals.loky import ProcessPoolExecutor

        env = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        card = self._cards.pop() if self._cards else None
        if card is not None:
            env["CUDA_VISIBLE_DEVICES"] = str(card)
        executor = ProcessPoolExecutor(max_workers=1, env=env)
        return executor, executor.submit(os.getpid), card

    def wait(self, seconds: float) -> list[Ended]:
        """Return the trials that ended, after at most this many seconds."""
        from concurrent.futures import FIRST_COMPLETED, wait

        if not self._busy:
            time.sleep(seconds)
        found = []
        for future in wait(self._busy, seconds, FIRST_COMPLETED).done:
            number, one = self._busy.pop(future)
            if error := future.exception():
                self._drop(one)
                found.append(Ended(number, 1, _why(error), lost=True))
            else:
                self._idle.append(one)
                found.append(Ended(number, *future.result()))
        return found

    def kill(self, number: int) -> None:
        """Kill the process of a trial; nothing more is heard of it."""
        for future in [f for f, (n, _) in self._busy.items() if n == number]:
            self._drop(self._busy.pop(future)[1])

    def interrupt(self) -> None:
        """Ask all trials to end at once as interrupted, keeping their last checkpoint."""
        for _, (_, process, _) in self._busy.values():
            with suppress(Exception):  # one that is gone or has not begun
                os.kill(process.result(1), signal.SIGTERM)

    def close(self) -> None:
        """End all processes."""
        for one in [*self._idle, *(one for _, one in self._busy.values())]:
            self._drop(one)
        self._idle, self._busy = [], {}

    def _drop(self, one: tuple[Any, Any, int | None]) -> None:
        executor, _, card = one
        executor.shutdown(wait=True, kill_workers=True)
        if card is not None:
            self._cards.append(card)


class Ray:
    """Tasks of a Ray cluster: `hydra.launcher.address=auto` or HOST:PORT; without one, a cluster of this machine."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray, self._workers = ray, int(options["workers"])
        address = options["address"]
        try:
            with _deaf():  # the processes of a cluster of its own
                ray.init(address or "local", log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            raise UserError(f"hydra.launcher.address={address}: no Ray cluster there: {_why(error)}") from error
        self._needs = {"CPU": float(options["num_cpus"]), "GPU": float(options["num_gpus"])}
        self.threads = max(1, int(self._needs["CPU"]))
        has = ray.cluster_resources()
        for kind, need in self._needs.items():
            if not self._workers and need > has.get(kind, 0):
                ray.shutdown()
                raise UserError(
                    f"hydra.launcher.num_{kind.lower()}s={need:g}: the Ray cluster has {has.get(kind, 0):g}; ask for "
                    "less, or set hydra.launcher.workers= where it grows by itself"
                )
        self._task = ray.remote(away).options(
            num_cpus=self._needs["CPU"], num_gpus=self._needs["GPU"], max_retries=0, name="dlrun trial"
        )
        self._busy: dict[Any, int] = {}

    @property
    def slots(self) -> int:
        """As many as the nodes that are alive have room for."""
        if self._workers:
            return self._workers
        has = self._ray.cluster_resources()
        return max(1, min(int(has.get(kind, 0) // need) for kind, need in self._needs.items() if need))

    def submit(self, job: Job) -> None:
        """Hand a trial to the cluster."""
        self._busy[self._task.remote(job, _here())] = job.number

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
                found.append(Ended(number, 1, _why(error), lost=True))
        return found

    def kill(self, number: int) -> None:
        """Kill the process of a trial; nothing more is heard of it."""
        for one in [o for o, n in self._busy.items() if n == number]:
            del self._busy[one]
            self._ray.cancel(one, force=True)
            self._ray.wait([one], timeout=GONE)

    def interrupt(self) -> None:
        """Ask all trials to end at once as interrupted, keeping their last checkpoint."""
        for one in self._busy:
            self._ray.cancel(one, force=False)

    def close(self) -> None:
        """End what runs, and the cluster where the sweep started it."""
        for number in list(self._busy.values()):
            self.kill(number)
        self._ray.shutdown()


def _job_name(folder: Path) -> str:
    return f"dlrun_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"


def _cancel_waiting(jobs: Path) -> None:
    """Take jobs out of Slurm's queue that an earlier process of this sweep left there; those that run may end.

    Told by their owner and by a name that follows from where they were submitted: the numbers in a folder of somebody
    else could be those of other jobs that wait.
    """
    for folder in {file.parent for file in jobs.glob("*/*_submitted.pkl")}:
        mine = [f"--user={pwd.getpwuid(os.getuid()).pw_name}", "--state=PENDING", f"--name={_job_name(folder)}"]
        # where that fails they run: at worst what is done is looked at again
        with suppress(OSError, KeyError, subprocess.SubprocessError):
            subprocess.run(["scancel", *mine], capture_output=True, timeout=ASK, check=False)


class Submitit:
    """A Slurm job a trial, through submitit; `hydra.launcher.cluster=local` runs the same jobs on this machine.

    A job that Slurm preempts or that nears its time limit is queued again and goes on from the trial's checkpoint.
    """

    def __init__(self, options: Mapping[str, Any], sweep: Path) -> None:
        import submitit

        self._local = options["cluster"] == "local"
        self._place = _here(sweep if self._local else None)
        folder = new_folder(sweep_folder.jobs(sweep), "jobs")
        self.threads = int(options["cpus_per_task"])
        self.slots = int(options["workers"]) or (max(1, cores() // self.threads) if self._local else 16)
        own = ("name", "workers", "cluster", "timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")
        slurm = {f"slurm_{k}": v for k, v in options.items() if k not in own and v not in (None, {}, [])}
        shared = {k: options[k] for k in own[3:] if options[k] is not None}
        try:
            # a folder of its own: a local job is numbered by its process, and numbers come again
            self._executor: Any = submitit.AutoExecutor(folder, cluster=str(options["cluster"]))
            self._executor.update_parameters(name=_job_name(folder), **shared, **slurm)
        except (RuntimeError, ValueError, NameError, AssertionError) as error:
            raise UserError(f"hydra/launcher=submitit_slurm: {' '.join(str(error).split())[:300]}") from error
        self._busy: dict[int, Any] = {}
        self._asked = time.monotonic()
        if not self._local:
            _cancel_waiting(sweep_folder.jobs(sweep))

    def submit(self, job: Job) -> None:
        """Hand a trial to the queue."""
        with _deaf():
            self._busy[job.number] = self._executor.submit(Remote(job, self._place))

    def wait(self, seconds: float) -> list[Ended]:
        """Return the trials that ended, after at most this many seconds."""
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
                return Ended(number, *job.result())
            except Exception as error:  # what the job raised, or a result that cannot be read
                return Ended(number, 1, _why(error), lost=True)
        why = f"its job {job.job_id} ended without a result ({job.state.lower()}): killed? see {job.paths.stderr}"
        return Ended(number, 1, why, lost=True)

    def kill(self, number: int) -> None:
        """Kill the job of a trial; nothing more is heard of it."""
        job = self._busy.pop(number)
        self._signal(job, signal.SIGKILL)
        until = time.monotonic() + GONE
        while not job.done() and time.monotonic() < until:
            time.sleep(POLL)

    def interrupt(self) -> None:
        """Ask all trials to end at once as interrupted, keeping their last checkpoint."""
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
        with suppress(ProcessLookupError):
            os.kill(int(job.job_id), number)
