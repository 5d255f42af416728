"""Persistent worker processes of this machine: a free one takes the next trial, a dead one is replaced (S6).

`hydra/launcher=pool`, the default; `hydra.launcher.workers=4`. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from dlrun.cores import cores
from dlrun.search.launchers.job import Job
from dlrun.search.launchers.protocol import Ended, shares
from dlrun.vocabulary import Exit

__all__ = ["Pool"]

# the first entry is the current folder, whose files are not Python's: a json.py there would run
CODE = (
    "import sys; sys.path[:] = filter(None, sys.path); import json; sys.path[:] = json.loads(sys.argv[3]); "
    "from dlrun.search.launchers.job import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)


class _Worker:
    def __init__(self, threads: int, gpu: str | None) -> None:
        ours, theirs = socket.socketpair()
        reading, self._lifeline = os.pipe()
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        if gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = gpu
        words = [sys.executable, "-c", CODE, str(theirs.fileno()), str(reading), json.dumps(sys.path)]
        # a new session: Ctrl-C in the terminal reaches the parent alone
        self.process = subprocess.Popen(
            words, pass_fds=[theirs.fileno(), reading], env=env, start_new_session=True, stdin=subprocess.DEVNULL
        )
        theirs.close()
        os.close(reading)
        self.connection = Connection(ours.detach())
        self.gpu = gpu
        self.job: Job | None = None

    def close(self) -> None:
        self.connection.close()
        os.close(self._lifeline)
        self.process.kill()
        with suppress(OSError):  # what its trial has started is in its session
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Pool:
    """Runs up to `slots` trials at a time; a worker starts with its first trial, or earlier by `warm`."""

    heartbeat = 0.0

    def __init__(self, workers: int, devices: Collection[str] = ("auto",), each: int = 1) -> None:
        self.slots, self._free_gpus = shares(workers, devices, each)
        self.threads = max(1, cores() // self.slots)
        self._workers: list[_Worker] = []

    def warm(self, trials: int) -> None:
        """Start workers for this many trials; they import torch while the parent composes."""
        while len(self._workers) < min(trials, self.slots):
            self._started()

    def _started(self) -> _Worker:
        self._workers.append(_Worker(self.threads, self._free_gpus.pop() if self._free_gpus else None))
        return self._workers[-1]

    def submit(self, job: Job) -> None:
        """Start a trial on a free worker."""
        free = next((w for w in self._workers if w.job is None), None)
        if free is None:
            free = self._started()
        free.job = job
        with suppress(OSError):  # it died while idle: `wait` reports it
            free.connection.send(job)

    def wait(self, seconds: float) -> list[Ended]:
        """Return the trials that ended, after at most this many seconds."""
        busy = {w.connection: w for w in self._workers if w.job is not None}
        found = []
        for connection in wait(list(busy), timeout=seconds):
            worker = busy[connection]  # type: ignore[index]
            number = worker.job.number if worker.job else -1
            try:
                code, why = worker.connection.recv()
                worker.job = None
                found.append(Ended(number, code, why))
            except (EOFError, OSError):
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(2)  # it is ending: report its own exit code, not our kill
                self._drop(worker)
                found.append(Ended(number, Exit.FAILED, _how(worker.process.returncode), lost=True))
        return found

    def waiting(self) -> str:
        """Return "": a trial that is submitted has a free worker."""
        return ""

    def kill(self, number: int) -> None:
        """Kill the process of a trial; `wait` does not return it."""
        for worker in [w for w in self._workers if w.job is not None and w.job.number == number]:
            self._drop(worker)

    def interrupt(self) -> None:
        """Ask all trials to end at once as interrupted; they keep their last checkpoint."""
        for worker in self._workers:
            if worker.job is not None:
                worker.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._workers):
            self._drop(worker)

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.close()
        if worker.gpu is not None:
            self._free_gpus.append(worker.gpu)


def _how(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9): out of memory?"
    return f"its process died (signal {-code})" if code and code < 0 else f"its process ended with code {code}"
