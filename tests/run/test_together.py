"""Several processes that train one run take the steps of one, end together, and go on where they were (real ones)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dlrun.config.ranks import Rank, launch, own, published
from dlrun.errors import UserError
from dlrun.run import together
from dlrun.training import arrival, meeting
from dlrun.vocabulary import Exit
from support import warm
from support.commands import Outcome
from support.ranks import TINY, ended, environment, free_port, rows, started, unexpected

PLAIN = ("model=cnn", "model.width=4", "model.norm=group", "augment=crop_flip")


def train(folder: Path, name: str, world: int, *words: str, **env: str) -> Any:
    """Outcomes of all processes of a run."""
    return ended(started(folder, world, *TINY, *words, f"run.dir={name}", **env))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The last weights of a run."""
    found: dict[str, torch.Tensor] = torch.load(folder / "checkpoints/last.pt", weights_only=True)["model"]
    return found


SETUPS = {
    "conv": (2, PLAIN),
    # 108 training images: the last batch has 4, too few for three processes, and is computed whole by each
    "three": (3, ("model=mlp", "model.norm=layer", "trainer.batch_size=26", "trainer.ema=0.9")),
    "mixed": (2, (*PLAIN, "objective=mixup", "objective.cutmix=1", "loss.weight=balanced", "trainer.accumulate=2")),
    "batch norm": (2, ("model=cnn", "model.width=4", "trainer.sync_batchnorm=true", "trainer.swa=0.5")),
    "sam": (2, ("model=mlp", "model.norm=none", "optimizer.sam=0.05", "regularizer.l2=1e-2", "trainer.clip_norm=0.5")),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [*SETUPS])
def test_several_processes_take_the_batches_of_one_and_their_losses_agree(name: str, tmp_path: Path) -> None:
    world, words = SETUPS[name]
    both = [started(tmp_path, count, *TINY, *words, f"run.dir=of{count}") for count in (1, world)]
    alone, together = map(ended, both)
    assert [one.code for one in [*alone, *together]] == [0] * (1 + world), together
    assert all(one.out == one.err == "" for one in together[1:])  # one writes
    expected, found = rows(tmp_path / "of1"), rows(tmp_path / f"of{world}")
    assert len(found) == 2
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=2e-3, abs=1e-5)
    result = json.loads((tmp_path / f"of{world}/result.json").read_text())
    assert (result["status"], result["processes"]) == ("completed", world)


@pytest.mark.slow
def test_without_synchronised_norms_each_process_normalises_its_own_images(tmp_path: Path) -> None:
    words = ("model=cnn", "model.width=4", "trainer.sync_batchnorm=false", "trainer.epochs=1")
    train(tmp_path, "synced", 2, *words[:2], "trainer.sync_batchnorm=true", "trainer.epochs=1")
    assert train(tmp_path, "apart", 2, *words)[0].code == 0
    one, other = rows(tmp_path / "apart")[0], rows(tmp_path / "synced")[0]
    assert one["train_loss"] != pytest.approx(other["train_loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_started_on_some_processes_continues_on_another_number(before: int, after: int, tmp_path: Path) -> None:
    train(tmp_path, "whole", before, *PLAIN)
    train(tmp_path, "paused", before, *PLAIN, "trainer.stop_after=1")
    found = ended(started(tmp_path, after, "resume", "paused"))
    assert [one.code for one in found] == [0] * after, found
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "paused"), strict=True):
        assert other == pytest.approx(one, rel=2e-3, abs=1e-5)


def test_a_resumed_run_has_the_same_weights_also_with_dropout(tmp_path: Path) -> None:
    words = ("model=cnn", "model.width=4", "regularizer=dropout", "trainer.ema=0.9")
    train(tmp_path, "whole", 2, *words)
    train(tmp_path, "paused", 2, *words, "trainer.stop_after=1")
    assert ended(started(tmp_path, 2, "resume", "paused"))[0].code == 0
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "paused")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


FAILING = """
import os
from torch import nn

class Net(nn.Module):
    def __init__(self, in_channels, num_classes, image_size):
        super().__init__()
        self.line, self.calls = nn.Linear(in_channels * image_size**2, num_classes), 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > 3 and os.environ.get("RANK") == os.environ.get("FAILS"):
            raise RuntimeError("no fan")
        return self.line(x.flatten(1))
"""
OWN = ("model=custom", "model._target_=failing.Net", "trust=[failing]")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
@pytest.mark.parametrize("rank", ["1", "0"])
def test_all_processes_fail_with_the_reason_of_the_first_in_one_line(rank: str, sharding: str, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    began = time.monotonic()
    found = train(tmp_path, "run", 2, *OWN, f"trainer.sharding={sharding}", FAILS=rank)
    assert time.monotonic() - began < 60
    assert [one.code for one in found] == [1, 1]
    reason = "RuntimeError: no fan"
    reason = reason if rank == "0" else f"process 1 of 2: {reason}"
    (line,) = [line for line in found[0].out.splitlines() if "failed" in line]
    assert all(part in line for part in (f"dlrun: failed: {reason}; ", "run/log.txt", "`dlrun resume run`"))
    assert found[0].err == found[1].out == found[1].err == ""
    assert "in forward" in (tmp_path / "run/log.txt").read_text()
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["status"], result["reason"]) == ("failed", reason)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("objective=simclr",), 2, "objective=simclr: "),
        (("trainer.batch_size=3",), 2, "trainer.batch_size=3: expected 4 or more"),
        (("trainer.devices=3",), 2, "trainer.devices=3: 2 processes"),
        (("check=default",), 2, "check=none check=default"),
        (("optimizer.lr=1e30",), 4, "stopped: "),
    ],
)
def test_what_ends_one_process_ends_all_with_its_code(
    words: tuple[str, ...], code: int, line: str, tmp_path: Path
) -> None:
    found = train(tmp_path, "run", 2, "model=mlp", *words)
    assert [one.code for one in found] == [code, code]
    assert line in found[0].out + found[0].err
    assert found[1].out == found[1].err == ""


def test_a_killed_process_ends_the_others_within_seconds_and_the_run_continues(tmp_path: Path) -> None:
    words = (*PLAIN, "trainer.epochs=60", "dataset.limit=600")
    processes = started(tmp_path, 2, *TINY, *words, "run.dir=run")
    table = tmp_path / "run/metrics.csv"
    while not table.exists():
        time.sleep(0.02)
        assert all(one.poll() is None for one in processes)
    processes[1].kill()
    began = time.monotonic()
    found = ended(processes, timeout=30)
    assert time.monotonic() - began < 15
    assert [one.code for one in found] == [1, -signal.SIGKILL]
    assert "dlrun: failed: process 1 of 2 ended" in found[0].out
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "failed"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_all_ends_in_a_checkpoint(number: int, tmp_path: Path) -> None:
    processes = started(tmp_path, 2, *TINY, *PLAIN, "trainer.epochs=60", "dataset.limit=600", "run.dir=run")
    last = tmp_path / "run/checkpoints/last.pt"
    while not last.exists():
        time.sleep(0.02)
    for process in processes:
        process.send_signal(number)
    found = ended(processes, timeout=30)
    assert [one.code for one in found] == [130, 130]
    assert "`dlrun resume run`" in found[0].out
    assert found[1].out == found[1].err == ""
    assert torch.load(last, weights_only=True)["epoch"] > 0


SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "123"}


def test_slurm_says_who_a_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"SLURM_STEP_NODELIST": "gpu[03-04,09]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    env = SRUN | nodes
    place = own(env)
    assert place == Rank(5, 8, 1, 4)
    assert own({**env, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    assert own({key: value for key, value in env.items() if key != "SLURM_STEP_ID"}) is None  # a batch script
    assert own({**env, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None  # a shell in a larger job
    with pytest.raises(UserError, match="SLURM_PROCID=9"):
        own({**env, "SLURM_PROCID": "9"})
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert place is not None
    published(place)
    assert [os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "RANK")] == ["gpu03", "15123", "5"]
    assert launch() == "slurm  123"
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(UserError, match="MASTER_PORT="):
        published(place)


def test_a_sweep_whose_trials_have_too_few_devices_is_refused(dlrun: Callable[..., Outcome], here: Path) -> None:
    for words in (("trainer.devices=2", "seed=0,1"), ("trainer.devices=1,2",)):
        found = dlrun("train", "-m", *words)
        assert (found.code, "trainer.devices=2: " in found.err, [*here.glob("outputs/sweeps/*")]) == (2, True, [])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"trainer": 5}, "config.yaml: trainer is "),
        ({"trainer": {"devices": "lots"}}, "config.yaml: trainer.devices=lots: "),
        ({"trainer": {"devices": 100_000, "device": "cpu"}}, "trainer.devices=100000: found"),
    ],
)
def test_a_damaged_number_of_devices_is_one_line(
    damage: dict[str, Any], reason: str, dlrun: Callable[..., Outcome], here: Path
) -> None:
    assert dlrun("train", "dataset=digits", "model=mlp", "trainer.epochs=1", "check=none", "run.dir=r").code == 0
    config = yaml.safe_load((here / "r" / "config.yaml").read_text())
    trainer = damage["trainer"]
    config["trainer"] = {**config["trainer"], **trainer} if isinstance(trainer, dict) else trainer
    (here / "r" / "config.yaml").write_text(yaml.safe_dump(config))
    found = dlrun("resume", "r", "trainer.epochs=2")
    assert found.code == 2, found
    assert reason in found.err
    assert "Traceback" not in found.err


def met(monkeypatch: pytest.MonkeyPatch, world: int, *ranks: int, seconds: float = 1.0, **env: str) -> list[UserError]:
    """What some processes of a training raise that wait for the others, each in a thread."""
    monkeypatch.setattr(arrival, "SILENT", 0.3)
    port = str(free_port())
    about = {"RANK": "0", "WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in {**about, **env}.items():
        monkeypatch.setenv(name, value)
    raised: list[UserError] = []
    there: list[meeting.Meeting] = []  # the first one has the store, which the others still read

    def meet(rank: int) -> None:
        try:
            there.append(meeting.Meeting(Rank(rank, world, rank, world), timedelta(seconds=seconds)))
        except UserError as error:
            raised.append(error)

    threads = [threading.Thread(target=meet, args=[rank]) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_processes_that_wait_say_for_whom_and_where_and_give_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    raised = met(monkeypatch, 4, 0, 2)
    port = os.environ["MASTER_PORT"]
    assert [error.code for error in raised] == [Exit.FAILED] * 2
    assert sorted(map(str, raised))[0].startswith("process 0 of 4 ")
    for text in (*map(str, raised), said := capfd.readouterr().err):
        assert f"at localhost:{port} for processes 1, 3; " in text
        assert "MASTER_ADDR" in text
    assert said.count("\n") == 1  # the first of them says it
    assert (unexpected(said), unexpected(f"{said}{said[7:]}")) == ("", said[7:])
    assert met(monkeypatch, 2, 0, 1) == []
    assert capfd.readouterr().err == ""


def test_a_process_that_cannot_reach_the_first_one_says_where_it_should_be(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (error,) = met(monkeypatch, 2, 1, SLURM_STEP_ID="0")
    line = f"at localhost:{os.environ['MASTER_PORT']} for process 0; "
    assert line in str(error)
    assert "`env -u SLURM_STEP_ID dlrun …`" in str(error)
    found = capfd.readouterr().err.splitlines()
    assert [line in one for one in found] == [True]  # and no trace of torch


def test_a_port_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("", 0))
        held.listen()
        (error,) = met(monkeypatch, 2, 0, MASTER_PORT=str(held.getsockname()[1]))
    assert "MASTER_PORT" in str(error)
    assert "\n" not in str(error)


def test_those_that_did_not_meet_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[timedelta | None] = []

    def alone(self: meeting.Meeting, place: Rank, within: timedelta | None = None) -> None:
        waits.append(within)
        raise UserError("nobody")

    monkeypatch.setattr(meeting.Meeting, "__init__", alone)
    monkeypatch.setattr(together, "_tried", [])
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)

    def wrong() -> int:
        raise UserError("of the user")

    with pytest.raises(UserError, match="of the user"):  # which counts more than that nobody was told
        together.leading(wrong)
    assert waits == [together.ENDING]
    together._tried.clear()
    with pytest.raises(UserError, match="nobody"):
        together.leading(lambda: together.first(lambda group: 0))
    assert waits == [together.ENDING, None]  # and not once more to say that this process ends


@pytest.mark.slow
def test_a_process_that_comes_late_is_waited_for_with_a_line(tmp_path: Path) -> None:
    port, words = free_port(), [sys.executable, "-m", "dlrun", *TINY, "model=mlp", "run.dir=run"]
    processes = []
    for rank in (1, 0):
        env = environment(rank, 2, port)
        processes.append(warm.popen(words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        time.sleep(0 if len(processes) > 1 else arrival.SILENT + 2)
    late, first = ended(processes)
    assert (late.code, first.code, first.err) == (0, 0, "")
    assert f"for 10 s at 127.0.0.1:{port} for process 0; " in late.err
    assert (late.err.count("\n"), unexpected(late.err)) == (1, "")
