"""`dlrun train -m` with one worker a card, what is said when memory runs out, and the measuring verbs."""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.commands import Outcome
from support.stored import write

NOTED = """
import os
import re
from pathlib import Path
import torch
from torch import nn

class Net(nn.Module):
    # runs out of memory in training steps of more than `most` images
    def __init__(self, in_channels, num_classes, image_size, most=0, hold=0):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
        self.most, self.hold = most, hold
        name = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        folder = os.environ.get("NOTES")
        if folder:
            reserved = torch.cuda.memory_reserved() >> 20 if torch.cuda.is_initialized() else 0
            with open(Path(folder, f"{os.getpid()}.txt"), "a") as file:
                print(name, seen, reserved, file=file)

    def forward(self, x):
        if self.training and self.most and len(x) > self.most:
            torch.empty(1 << 52, device=x.device)
        if self.hold:
            torch.empty(self.hold << 20, dtype=torch.uint8, device=x.device)
        return self.net(x)
"""
OWN = ("model=custom", "model._target_=noted.Net", "trust=[noted]", "check=none", "trainer.report=false")
QUICK = ("dataset.limit=200", "trainer.epochs=2", "trainer.threads=1", "trainer.batch_size=32")


@pytest.fixture
def noted(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model that notes which cards its process sees, and the folder of its notes."""
    write(here / "noted.py", NOTED)
    monkeypatch.syspath_prepend(str(here))
    (here / "notes").mkdir()
    return here / "notes"


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_gives_each_worker_a_card_of_its_own(
    started: Callable[..., subprocess.Popen[str]], here: Path, noted: Path, device: str
) -> None:
    # where there is no card the names of two are made up, which reach the workers all the same
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    names = visible.split(",") if device == "cuda" else ["5", "GPU-b1"]
    asked = device if device == "cuda" else "auto"  # trials that ask for the processor get no card
    words = ("train", "-m", "seed=1,2,3", *OWN, *QUICK, f"trainer.device={asked}", "sweep.dir=s")
    process = started(*words, NOTES=str(noted), CUDA_VISIBLE_DEVICES=",".join(names))
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    assert [row["status"] for row in table(here / "s")] == ["completed"] * 3
    notes = sorted(file.read_text().split()[:2] for file in noted.iterdir())
    workers = min(len(names), 3)
    assert len(notes) <= workers, "more processes than cards"
    assert len({name for name, _ in notes}) == len(notes), "two workers at one card"
    assert {name for name, _ in notes} <= set(names)
    if device == "cuda":
        assert {seen for _, seen in notes} == {"1"}
    for number in range(3):
        assert f"; {device} " in (here / "s" / f"{number:04d}" / "log.txt").read_text()


def test_two_workers_share_a_card(
    started: Callable[..., subprocess.Popen[str]], here: Path, noted: Path, device: str
) -> None:
    words = ("train", "-m", "seed=1,2,3,4", *OWN, *QUICK, f"trainer.device={device}", "hydra.launcher.workers=2")
    process = started(*words, "sweep.dir=s", NOTES=str(noted))
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    assert [row["status"] for row in table(here / "s")] == ["completed"] * 4
    names = [file.read_text().split()[0] for file in noted.iterdir()]
    assert 1 <= len(names) <= 2
    if device == "cuda":
        assert "None" not in names, "the pool has found no card"


def test_a_worker_gives_back_what_a_trial_held_of_the_card(
    started: Callable[..., subprocess.Popen[str]], here: Path, noted: Path, device: str
) -> None:
    words = ("train", "-m", "seed=1,2,3", *OWN, *QUICK, f"trainer.device={device}", "hydra.launcher.workers=1")
    process = started(*words, "+model.hold=1024", "sweep.dir=s", NOTES=str(noted))
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    (file,) = noted.iterdir()  # one worker ran them all, each beginning without the gibibyte of the one before
    reserved = [int(line.split()[2]) for line in file.read_text().splitlines()]
    assert len(reserved) == 3
    assert max(reserved) < 512


def test_a_trial_that_runs_out_of_memory_is_advised_and_the_others_go_on(
    started: Callable[..., subprocess.Popen[str]], here: Path, noted: Path, device: str
) -> None:
    words = ("train", "-m", "+model.most=16,64", *OWN, *QUICK, f"trainer.device={device}", "search.retries=0")
    process = started(*words, "hydra.launcher.workers=1", "sweep.dir=s")
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 5, said  # some failed
    rows = {row["model.most"]: row for row in table(here / "s")}
    assert (rows["16"]["status"], rows["64"]["status"]) == ("failed", "completed")
    assert re.search(r"\bmemory\b.*\btrainer\.accumulate=2\b.*\btrainer\.batch_size\b", rows["16"]["reason"])


def test_the_advice_when_memory_runs_out_helps(train: Callable[..., Any], noted: Path) -> None:
    words = (*OWN[:3], *QUICK, "+model.most=16")
    failed = train(*words, folder="failed", code=1)
    assert re.search(r"\bmemory\b.*\btrainer\.accumulate=2\b", failed.result["reason"])
    assert train(*words, "trainer.accumulate=2", folder="parts").result["status"] == "completed"


def test_batch_time_ends_where_memory_does(dlrun: Callable[..., Outcome], noted: Path, device: str) -> None:
    words = (*OWN[:4], "dataset.limit=400", "trainer.threads=1", f"trainer.device={device}")
    outcome = dlrun("batch_time", *words, "+model.most=64")
    assert outcome.code == 0, outcome.err
    assert re.search(r"\bmemory\b.*\b128\b.*\b64\b", outcome.out)
    assert "trainer.batch_size=" in outcome.out


def test_a_range_test_suggests_a_rate(dlrun: Callable[..., Outcome], arrays: Path, device: str, here: Path) -> None:
    words = ("dataset=arrays", f"dataset.path={arrays}", "model.width=8", "optimizer=sgd", "trainer.threads=1")
    outcome = dlrun("lr_range", *words, f"trainer.device={device}", "check=none")
    assert outcome.code == 0, outcome.err
    assert "optimizer.lr=" in outcome.out
    (file,) = here.rglob("lr_range.csv")
    assert len(file.read_text().splitlines()) > 10
