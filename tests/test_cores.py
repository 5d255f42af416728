"""How many cores a process uses: its mask, the quota of its container, its part among processes that train together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlrun.config import ranks
from dlrun.cores import cores

MASKED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "123"}
SRUN |= {"SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
OTHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OTHERS += ("SLURM_CPUS_PER_TASK", "SLURM_STEP_NUM_TASKS", "TORCHELASTIC_RUN_ID")

MASKED_RUN = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from dlrun.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
import torch
print("threads", torch.get_num_threads())
"""


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Write the files of control groups beneath a folder."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "most"),
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),  # half a core is one thread
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, MASKED),
        ("0::/a/b\n", {"sys/fs/cgroup/a/cpu.max": "90000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 1),
        ("4:cpu,cpuacct:/x\n0::/\n", {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, MASKED),
        (
            "4:cpu,cpuacct:/x\n",  # a path of the host, which the container does not see
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        ("0::/../..\n", {"sys/fs/cgroup/cpu.max": "strange\n"}, MASKED),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "100000 0\n"}, MASKED),
        ("nothing\n", {}, MASKED),
    ],
)
def test_a_quota_bounds_the_cores(tmp_path: Path, groups: str, files: dict[str, str], most: int) -> None:
    assert cores(system(tmp_path, groups, files)) == most


def test_a_quota_above_the_mask_changes_nothing(tmp_path: Path) -> None:
    assert cores(system(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": f"{100000 * (MASKED + 7)} 100000\n"})) == MASKED


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no masks of cores")
def test_a_run_on_one_core_of_many_has_one_thread(tmp_path: Path) -> None:
    words = ["train", "dataset=digits", "dataset.limit=60", "trainer.epochs=1", "check=none", "trainer.report=false"]
    words += ["run.dir=run", "trainer.device=cpu"]
    done = subprocess.run([sys.executable, "-c", MASKED_RUN, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "threads 1", done.stderr


def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SRUN, *OTHERS):
        monkeypatch.setenv(name, "")  # so that the end of the test removes what dlrun sets
        monkeypatch.delenv(name)


def srun(monkeypatch: pytest.MonkeyPatch) -> None:
    bare(monkeypatch)
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)


def test_processes_that_train_together_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "cores", lambda: 12)
    bare(monkeypatch)
    assert ranks.threads() == 12
    torchrun = {"RANK": "1", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert ranks.threads() == 3
    monkeypatch.setenv("SLURM_PROCID", "0")  # torchrun as the one task of a node: its processes share what it has
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert ranks.threads() == 3


def test_a_task_of_slurm_has_its_own_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    srun(monkeypatch)
    monkeypatch.setattr(ranks, "cores", lambda: 6)  # as srun --cpus-per-task=6 binds each task
    assert ranks.threads() == 1  # nothing tells that the six are not shared
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert ranks.threads() == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")  # more than there are
    assert ranks.threads() == 6


def test_what_is_published_for_torch_gives_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    srun(monkeypatch)
    place = ranks.own()
    assert place is not None
    assert place.near == 4
    ranks.published(place)
    assert ranks.own() == place
