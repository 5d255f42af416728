"""Real torchrun: `dlrun train trainer.devices=2` starts it, `torchrun -m dlrun train` is it, kills and restarts."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from support.ranks import CLEAN, unexpected

pytestmark = pytest.mark.slow

WORDS = (
    "train", "dataset=digits", "trainer.device=cpu", "check=none", "trainer.report=false", "model=cnn",
    "model.width=8", "regularizer=dropout", "augment=crop_flip", "augment.pad=1", "trainer.ema=0.9",
    "optimizer=sgd", "optimizer.lr=0.05", "run.dir=run",
)  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A command of Python in a session of its own, which a test may kill as a whole."""
    folder.mkdir(exist_ok=True)
    usual = {key: value for key, value in os.environ.items() if key not in CLEAN}
    return subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=usual, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def below(pid: int) -> dict[int, dict[str, str]]:
    """The living processes that a process started, at any depth, with their environments."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                parents[int(entry.name)] = int(fields[1])
    found, wave = dict[int, dict[str, str]](), [pid]
    while wave:
        wave = [child for child, parent in parents.items() if parent in wave]
        for child in wave:
            try:
                content = Path(f"/proc/{child}/environ").read_text(errors="replace")
            except OSError:
                continue
            found[child] = dict(pair.partition("=")[::2] for pair in content.split("\0"))
    return found


def ranks(pid: int) -> dict[int, int]:
    """The processes that train, by their ranks."""
    return {int(env["RANK"]): child for child, env in below(pid).items() if "RANK" in env}


def epochs(folder: Path) -> int:
    """How many epochs a run has finished."""
    file = folder / "run/metrics.csv"
    return max(0, file.read_text().count("\n") - 1) if file.exists() else 0


def until(wanted: Any, seconds: float = 180) -> None:
    """Wait for something to be true."""
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.02)


def weights(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    found: dict[str, Any] = torch.load(folder / "run/checkpoints/last.pt", weights_only=True)
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether weights and their average are bit for bit the same."""
    return all(torch.equal(one[k][n], other[k][n]) for k in ("model", "ema") for n in one[k])


def test_dlrun_starts_torchrun_for_itself_and_one_process_writes(tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "dlrun", *WORDS, "trainer.devices=2", "trainer.epochs=2")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, unexpected(err)) == (0, "")
    assert [out.count(f"epoch {number}/2") for number in (1, 2)] == [1, 1]
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["status"], result["processes"]) == ("completed", 2)


SOFT = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, in_channels, num_classes, image_size):
        super().__init__(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes), nn.Softmax(1))
"""


def test_a_failed_check_ends_all_with_its_code_and_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "soft.py").write_text(SOFT)
    words = ("train", "dataset=digits", "trainer.device=cpu", "trainer.epochs=1", "check.only=[probabilities]")
    words += ("model=custom", "model._target_=soft.Net", "trust=[soft]")
    found = []
    for more in ("trainer.devices=2", "trainer.threads=1"):
        process = start(tmp_path, "-m", "dlrun", *words, more)
        out, err = process.communicate(timeout=300)
        found.append((process.returncode, unexpected(err), out.splitlines()[-3:]))
    assert found[0] == found[1]
    assert found[0][:2] == (3, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_dlrun_ends_all_in_a_checkpoint(number: int, tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "dlrun", *WORDS, "trainer.devices=2", "trainer.epochs=500")
    until(lambda: epochs(tmp_path) > 1)
    children = below(process.pid)
    process.send_signal(number)
    out, err = process.communicate(timeout=90)
    assert (process.returncode, unexpected(err)) == (130, "")
    assert "`dlrun resume run`" in out
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "interrupted"
    assert weights(tmp_path)["epoch"] >= 1


def test_the_others_end_if_whoever_started_them_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "dlrun", *WORDS, "trainer.devices=2", "trainer.epochs=500")
    until(lambda: epochs(tmp_path) > 0)
    children = below(process.pid)
    process.kill()
    process.communicate(timeout=90)
    until(lambda: not [pid for pid in children if Path(f"/proc/{pid}").exists()], 30)


def test_torchrun_restarts_a_killed_run_and_it_continues(tmp_path: Path) -> None:
    more = (*WORDS, "trainer.epochs=8")
    whole = start(tmp_path / "whole", *TORCHRUN, "-m", "dlrun", *more)
    assert whole.wait(300) == 0
    process = start(tmp_path / "cut", *TORCHRUN, "--max-restarts=3", "-m", "dlrun", *more)
    for rank, after in ((1, 1), (0, 3)):
        until(lambda after=after: epochs(tmp_path / "cut") >= after)
        os.kill(ranks(process.pid)[rank], signal.SIGKILL)
        time.sleep(0.5)
    assert process.wait(300) == 0
    result = json.loads((tmp_path / "cut/run/result.json").read_text())
    assert (result["status"], epochs(tmp_path / "cut")) == ("completed", 8)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    for one in (whole, process):
        one.communicate()


KILLS, EPOCHS = 20, 60


def killed(process: Any, folder: Path, chance: random.Random, *, after_epoch: bool) -> set[int]:
    """Kill a random one of the processes at a random moment, after an epoch or at any time; return their ports.

    No kill waits for a second epoch, so that a fast machine does not end before all of them. All others must end at
    once, without leaving a process.
    """
    until(lambda: len(ranks(process.pid)) == 2 or process.poll() is not None)
    before, end = epochs(folder), time.monotonic() + chance.uniform(0.0, 6.0)
    until(lambda: epochs(folder) > before or process.poll() is not None or (not after_epoch and time.monotonic() > end))
    time.sleep(chance.uniform(0.0, 0.2))
    children, victims = below(process.pid), ranks(process.pid)
    assert victims, process.communicate()
    os.kill(chance.choice([*victims.values()]), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    return {int(env["MASTER_PORT"]) for env in children.values() if "MASTER_PORT" in env}


def test_twenty_kills_of_a_random_process_change_no_bit(tmp_path: Path) -> None:
    more = (*WORDS[1:], f"trainer.epochs={EPOCHS}", "trainer.devices=2")
    whole = start(tmp_path / "whole", "-m", "dlrun", "train", *more)
    whole.communicate(timeout=300)
    folder, ports, chance = tmp_path / "cut", set[int](), random.Random(0)
    folder.mkdir()
    for number in range(KILLS):
        begun = (folder / "run/config.yaml").exists()
        process = start(folder, "-m", "dlrun", *(("resume", "run") if begun else ("train", *more)))
        # at any moment: of the start, of training, of a checkpoint; every second one has got further
        ports |= killed(process, folder, chance, after_epoch=number % 2 == 1)
        assert epochs(folder) < EPOCHS
    process = start(folder, "-m", "dlrun", "resume", "run")
    out, err = process.communicate(timeout=300)
    assert (whole.returncode, process.returncode) == (0, 0), out + err
    assert same(weights(tmp_path / "whole"), weights(folder))
    assert epochs(folder) == EPOCHS
    for port in ports:
        with socket.socket() as free:
            free.bind(("127.0.0.1", port))  # nobody listens there
