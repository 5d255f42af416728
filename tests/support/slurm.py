"""A queue with Slurm's commands and one node, for tests: `install` puts sbatch, srun, sacct and scancel into a folder.

Jobs run one after the other, as processes; their states are files that a lock guards. With the file
`nodes`, of lines of words before a command that run it elsewhere, each job is on the next of them, and that a node has
died is not known.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Jobs = dict[str, dict[str, Any]]


def install(folder: Path) -> Path:
    """Write the commands into a new folder, which belongs at the head of PATH, and return it."""
    folder.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel"):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {folder} {name} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def states(folder: Path) -> list[tuple[str, str]]:
    """Return the states of all jobs by their numbers."""
    return [(number, job["state"]) for number, job in _changed(folder, lambda jobs: None).items()]


def _changed(folder: Path, change: Callable[[Jobs], None]) -> Jobs:
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = folder / "jobs.json"
        jobs: Jobs = json.loads(file.read_text()) if file.exists() else {}
        change(jobs)
        if not any(job["state"] == "RUNNING" for job in jobs.values()):
            for number, job in jobs.items():
                if job["state"] == "PENDING":
                    _start(folder, number, job)
                    break
        file.write_text(json.dumps(jobs))
        return jobs


def _start(folder: Path, number: str, job: dict[str, Any]) -> None:
    env = {
        **os.environ,
        "SLURM_JOB_ID": number.replace("_", "0"),
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_JOB_NUM_NODES": "1",
    }
    if "_" in number:
        env["SLURM_ARRAY_JOB_ID"], env["SLURM_ARRAY_TASK_ID"] = number.split("_")
    ended = f"{sys.executable} {__file__} {folder} ended {number}"
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # the group may be killed, and who tells of its end must outlive it
    nodes = _nodes(folder)
    node = nodes[len([*folder.glob("*.pid")]) % len(nodes)] if nodes else ""
    line = f"setsid {node} bash {job['script']} & echo $! > {folder}/{number}.pid; wait $!; {ended} $?"
    subprocess.Popen(["bash", "-mc", line], env=env, start_new_session=True, **quiet)  # type: ignore[call-overload]
    job["state"] = "RUNNING"


def _nodes(folder: Path) -> list[str]:
    return (folder / "nodes").read_text().splitlines() if (folder / "nodes").exists() else []


def sbatch(folder: Path, *words: str) -> None:
    script = Path(words[0]).read_text()
    name = script.split("--job-name=")[1].split()[0]
    array = re.search(r"--array=0-(\d+)", script)
    about = {"name": name, "user": pwd.getpwuid(os.getuid()).pw_name, "state": "PENDING"}

    def add(jobs: Jobs) -> None:
        number = str(100 + len(jobs))
        file = folder / f"{number}.sh"
        file.write_text(script)
        for one in [f"{number}_{task}" for task in range(int(array[1]) + 1)] if array else [number]:
            jobs[one] = {**about, "script": str(file)}
        print(f"Submitted batch job {number}")

    _changed(folder, add)


def srun(folder: Path, *words: str) -> None:
    put = {"%j": os.environ["SLURM_JOB_ID"], "%t": "0"}
    put |= {"%A": os.environ.get("SLURM_ARRAY_JOB_ID", ""), "%a": os.environ.get("SLURM_ARRAY_TASK_ID", "")}
    names = [re.sub("%[jtAa]", lambda found: put[found[0]], word) for word in words]
    at = names.index("--error") + 2
    for stream, option in ((1, "--output"), (2, "--error")):
        os.dup2(os.open(names[names.index(option) + 1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)
    os.execvp(names[at], names[at:])


def sacct(folder: Path, *words: str) -> None:
    print("JobID|State|NodeList", *(f"{number}|{state}|here" for number, state in states(folder)), sep="\n")


def scancel(folder: Path, *words: str) -> None:
    asked = dict(word[2:].split("=") for word in words if word.startswith("--"))
    numbers = [word for word in words if not word.startswith("--")]

    def cancel(jobs: Jobs) -> None:
        for number, job in jobs.items():
            if number in numbers if numbers else all(job[key] == value for key, value in asked.items()):
                if job["state"] == "RUNNING":
                    with suppress(ProcessLookupError):
                        os.killpg(int((folder / f"{number}.pid").read_text()), signal.SIGTERM)
                job["state"] = "CANCELLED"

    _changed(folder, cancel)


def ended(folder: Path, number: str, code: str) -> None:
    if _nodes(folder) and int(code) == 128 + signal.SIGKILL:
        return

    def end(jobs: Jobs) -> None:
        if jobs[number]["state"] == "RUNNING":
            jobs[number]["state"] = "FAILED" if int(code) else "COMPLETED"

    _changed(folder, end)


if __name__ == "__main__":
    globals()[sys.argv[2]](Path(sys.argv[1]), *sys.argv[3:])
