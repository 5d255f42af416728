"""`hydra/launcher=ray` on clusters of several nodes: a placement group for each trial, gone when the trial is."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlrun.search.launchers.ray import LONG as LONG_WAIT
from dlrun.search.launchers.ray import Ray, _Placed
from support.moods import MOODS, MOODY, QUICK, rows, start, wait_for
from support.moods import workers as alive
from support.stored import write

ray = pytest.importorskip("ray", reason="the extra is absent: pip install 'dlrun[ray]'")
pytestmark = pytest.mark.slow

LONG = (*(w for w in QUICK if w != "trainer.epochs=1"), "trainer.epochs=4", "trainer.batch_size=4", "sweep.dir=s")
WORDS = (*(w for w in MOODS if not w.startswith("hydra")), "hydra/launcher=ray", "trainer.device=cpu")
BOTH = ("trainer.devices=2", "hydra.launcher.gpus_per_trial=2")


class Nodes:
    """A cluster of the test, of which it is a user too."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster

    def add(self, **has: float) -> Any:
        """Add a node."""
        return self.cluster.add_node(**has)

    def there(self) -> dict[str, float]:
        """Wait until all nodes are there, and connect; returns what they have."""
        self.cluster.wait_for_nodes()
        ray.init(self.cluster.address, log_to_driver=False, logging_level="ERROR")
        return self.free()

    @staticmethod
    def free() -> dict[str, float]:
        """The CPUs and GPUs that nobody has reserved."""
        return {kind: n for kind, n in ray.available_resources().items() if kind in ("CPU", "GPU")}

    @staticmethod
    def groups() -> list[dict[str, Any]]:
        """The placement groups of sweeps that are not removed."""
        table = ray.util.placement_group_table().values()
        return [one for one in table if one["name"].startswith("dlrun") and one["state"] != "REMOVED"]

    def start(self, folder: Path, *words: str) -> subprocess.Popen[str]:
        """Start a sweep on this cluster."""
        return start(folder, *WORDS, f"hydra.launcher.address={self.cluster.address}", *words)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A cluster without cores but on the nodes that a test adds."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's workers step back behind all other programs
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield Nodes(cluster)
    finally:
        ray.shutdown()
        cluster.shutdown()


def done(folder: Path, process: subprocess.Popen[str], code: int = 0) -> tuple[str, dict[str, dict[str, str]]]:
    """What a sweep printed until its end, and its table."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, out + err
    return out, rows(folder / "s")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_stays_reserved_after_a_sweep_that_is_ended(nodes: Nodes, tmp_path: Path, end: signal.Signals) -> None:
    write(tmp_path / "moody.py", MOODY)
    nodes.add(num_cpus=2)
    before = nodes.there()
    process = nodes.start(tmp_path, "+model.mood=slow", "seed=1,2,3", *LONG)
    wait_for(lambda: len(list(tmp_path.glob("s/*/checkpoints/last.pt"))) == 2, process)
    assert [(one["strategy"], one["state"]) for one in nodes.groups()] == [("STRICT_PACK", "CREATED")] * 2
    assert [[*one["bundles"].values()] for one in nodes.groups()] == [[{"CPU": 1.0}]] * 2
    assert nodes.free().get("CPU", 0) == 0
    process.send_signal(end)
    done(tmp_path, process, -9 if end == signal.SIGKILL else 130)
    wait_for(lambda: not nodes.groups() and nodes.free() == before)
    wait_for(lambda: not alive(tmp_path))
    last = start(tmp_path, "resume", "s", "trust=[moody]", f"hydra.launcher.address={nodes.cluster.address}")
    _, table = done(tmp_path, last)
    assert [(row["status"], row["epochs"]) for row in table.values()] == [("completed", "4")] * 3
    wait_for(lambda: not nodes.groups() and nodes.free() == before)


def test_nothing_stays_reserved_by_trials_that_fail_or_hang(nodes: Nodes, tmp_path: Path) -> None:
    write(tmp_path / "moody.py", MOODY)
    nodes.add(num_cpus=2)
    before = nodes.there()
    moods = ("+model.mood=ok,raise,die,hang", "search.retries=0", "search.timeout=30")
    _, table = done(tmp_path, nodes.start(tmp_path, *moods, *QUICK, "sweep.dir=s"), 5)
    assert [row["status"] for row in table.values()] == ["completed", *["failed"] * 3]
    wait_for(lambda: not nodes.groups() and nodes.free() == before)
    wait_for(lambda: not alive(tmp_path))


SEES = """
import json, os, time
from pathlib import Path
import ray
from torch import nn

def place():
    group = ray.util.get_current_placement_group()
    return [ray.get_runtime_context().get_node_id(), group.id.hex() if group else ""]

class Net(nn.Sequential):
    def __init__(self, in_channels, num_classes, image_size, hangs=False):
        super().__init__(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
        seen = {"cards": os.environ.get("CUDA_VISIBLE_DEVICES"), "rank": os.environ.get("RANK")}
        if ray.is_initialized():
            seen |= {"trial": place(), "task": ray.get(ray.remote(place).remote())}
        Path(f"seen-{os.getpid()}.json").write_text(json.dumps(seen))
        time.sleep(1000 if hangs else 0)
"""


def seen(folder: Path) -> list[dict[str, Any]]:
    """What the processes of trials saw when they built their model."""
    return [json.loads(file.read_bytes()) for file in folder.glob("seen-*.json")]


def test_the_processes_of_a_trial_have_its_gpus_and_two_trials_lie_on_two_nodes(nodes: Nodes, tmp_path: Path) -> None:
    write(tmp_path / "moody.py", SEES)
    nodes.add(num_cpus=1, num_gpus=2)
    nodes.add(num_cpus=3, num_gpus=2)
    before = nodes.there()
    process = nodes.start(tmp_path, *BOTH, "seed=1,2", *QUICK, "sweep.dir=s")
    wait_for(lambda: [one["state"] for one in nodes.groups()] == ["CREATED"] * 2, process)
    places = [one["bundles_to_node_id"] for one in nodes.groups()]
    assert [len(place) for place in places] == [1, 1]
    assert places[0] != places[1]
    _, table = done(tmp_path, process)
    assert [row["status"] for row in table.values()] == ["completed"] * 2
    assert sorted((one["rank"], one["cards"]) for one in seen(tmp_path)) == [("0", "0,1")] * 2 + [("1", "0,1")] * 2
    wait_for(lambda: nodes.free() == before)


def test_a_trial_has_whole_gpus_of_one_node_or_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    write(tmp_path / "moody.py", SEES)
    nodes.add(num_cpus=4, num_gpus=5)
    nodes.add(num_cpus=4, num_gpus=1)
    nodes.there()
    words = ("seed=1,2,3,4", *QUICK, "sweep.dir=s")
    refused = nodes.start(tmp_path, *words, "hydra.launcher.gpus_per_trial=6")  # the cluster has as many
    out, err = refused.communicate(timeout=120)
    assert (refused.returncode, err.count("\n")) == (2, 1), out + err
    assert err.startswith("dlrun: hydra.launcher.gpus_per_trial=6: ")
    assert "has 5; " in err
    done(tmp_path, nodes.start(tmp_path, *words, "hydra.launcher.gpus_per_trial=2"))
    assert {len(set(one["cards"].split(","))) for one in seen(tmp_path)} == {2}


def test_tasks_that_a_trial_starts_run_in_its_group(nodes: Nodes, tmp_path: Path) -> None:
    write(tmp_path / "moody.py", SEES)
    for _ in range(2):
        nodes.add(num_cpus=4)
    nodes.there()
    done(tmp_path, nodes.start(tmp_path, "seed=1,2,3", *QUICK, "sweep.dir=s"))
    found = seen(tmp_path)
    assert all(one["trial"][1] for one in found)
    assert all(one["task"] == one["trial"] for one in found)


@pytest.mark.parametrize("end", ["timeout", "kill"])
def test_no_process_of_a_trial_on_several_devices_outlives_it(nodes: Nodes, tmp_path: Path, end: str) -> None:
    write(tmp_path / "moody.py", SEES)
    nodes.add(num_cpus=1, num_gpus=2)
    before = nodes.there()
    limit = ("search.timeout=15", "search.retries=0") if end == "timeout" else ()
    process = nodes.start(tmp_path, *BOTH, "+model.hangs=true", "seed=1,2", *limit, *QUICK, "sweep.dir=s")
    wait_for(lambda: len(seen(tmp_path)) >= 1, process)  # the other rank waits for the config
    if end == "kill":
        process.kill()
    done(tmp_path, process, 5 if limit else -9)
    wait_for(lambda: not alive(tmp_path))
    wait_for(lambda: not nodes.groups() and nodes.free() == before)


def test_trials_that_find_no_room_wait_say_so_once_and_run(nodes: Nodes, tmp_path: Path) -> None:
    write(tmp_path / "moody.py", MOODY)
    for _ in range(3):
        nodes.add(num_cpus=3)
    before = nodes.there()
    theirs = [ray.util.placement_group([{"CPU": 2.0}]) for _ in range(3)]  # one CPU is left on each node
    ray.get([one.ready() for one in theirs])
    asks = ("hydra.launcher.num_cpus=2", "hydra.launcher.workers=5", "seed=1,2,3,4,5")  # more than ever fit
    process = nodes.start(tmp_path, *asks, *QUICK, "sweep.dir=s")
    wait_for(lambda: "has been waiting" in (tmp_path / "s/log.txt").read_text() if nodes.groups() else False, process)
    assert [one["state"] for one in nodes.groups()] == ["PENDING"] * 5
    time.sleep(1)
    for one in theirs:
        ray.util.remove_placement_group(one)
    out, table = done(tmp_path, process)
    assert [row["status"] for row in table.values()] == ["completed"] * 5
    (line,) = [line for line in out.splitlines() if "waiting" in line]
    assert re.match(r"trial \d .* for 1\d s for 2 CPU .* 3 CPU .*`ray status`", line)
    wait_for(lambda: not nodes.groups() and nodes.free() == before)


def test_a_node_that_dies_costs_its_trials_no_retry(nodes: Nodes, tmp_path: Path) -> None:
    write(tmp_path / "moody.py", MOODY)
    nodes.add(num_cpus=1)
    node = nodes.add(num_cpus=1)
    nodes.there()
    process = nodes.start(tmp_path, "+model.mood=slow", "seed=1,2,3,4", *LONG, "search.retries=0")
    wait_for(lambda: len(list(tmp_path.glob("s/*/checkpoints/last.pt"))) == 2, process)  # one trial on each
    nodes.cluster.remove_node(node, allow_graceful=False)
    _, table = done(tmp_path, process)
    assert [(row["status"], row["epochs"]) for row in table.values()] == [("completed", "4")] * 4
    assert sorted(row["attempts"] for row in table.values()) == ["1", "1", "1", "2"]
    wait_for(lambda: not nodes.groups() and nodes.free() == {"CPU": 1.0})


def test_a_trial_that_has_room_is_not_asked_for_again() -> None:
    asked, states = list[str](), {"runs": "CREATED", "waits": "PENDING"}

    def table(group: str) -> dict[str, str]:
        asked.append(group)
        return {"state": states[group]}

    launcher = object.__new__(Ray)  # without a cluster
    launcher._reported, launcher._needs = False, {"CPU": 1.0, "GPU": 0.0}
    launcher._ray = SimpleNamespace(
        util=SimpleNamespace(placement_group_table=table), available_resources=lambda: {"CPU": 0.0}
    )
    launcher._busy = {"first": _Placed(1, "runs", asked=time.monotonic() - 2 * LONG_WAIT)}
    assert [launcher.waiting() for _ in range(3)] == [""] * 3
    assert asked == ["runs"]
    launcher._busy["second"] = _Placed(2, "waits", asked=time.monotonic() - 2 * LONG_WAIT)
    assert [launcher.waiting()[:7] for _ in range(2)] == ["trial 2", ""]
    assert asked == ["runs", "waits"]
