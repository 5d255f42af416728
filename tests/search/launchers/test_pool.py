"""The workers of a sweep: warm, as many as cores or cards, never waiting for each other, alive after any trial."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dlrun.config.compose import composer
from dlrun.errors import UserError
from dlrun.folders import sweep as sweep_folder
from dlrun.search import starting
from dlrun.search.launchers import choose, pool, protocol
from dlrun.search.launchers.job import Job
from support.moods import MOODY, QUICK, rows, start, starts, workers

# the first trial does not end before three others stand in the table; the last asks for more memory than there is
PATIENT = """
import csv, time
import torch
from moody import Net

class Patient(Net):
    def forward(self, x):
        if self.mood == "memory":
            torch.empty(1 << 52)
        deadline = time.monotonic() + 60
        while self.mood == "patient" and time.monotonic() < deadline:
            try:
                table = list(csv.DictReader(open("s/table.csv")))
            except FileNotFoundError:
                table = []
            if sum(row["status"] == "completed" for row in table) >= 3:
                self.mood = "ok"
            time.sleep(0.05)
        assert self.mood != "patient", "the others wait for this one"
        return super().forward(x)
"""


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A sweep of two workers, run to its end in a process of its own."""
    folder = tmp_path_factory.mktemp("patient")
    (folder / "moody.py").write_text(MOODY)
    (folder / "patient.py").write_text(PATIENT)
    words = ("train", "-m", "model=custom", "model._target_=patient.Patient", "trust=[patient]")
    more = ("+model.mood=patient,a,b,c,memory", "hydra.launcher.workers=2", "search.retries=0", "sweep.dir=s")
    process = start(folder, *words, *QUICK, *more, real=True)
    out, err = process.communicate(timeout=120)
    return folder, process.returncode, out + err


def test_a_free_worker_takes_the_next_trial_while_another_is_busy(patient: tuple[Path, int, str]) -> None:
    folder, _, said = patient
    assert [r["status"] for r in rows(folder / "s").values()] == ["completed"] * 4 + ["failed"], said


def test_workers_stay_warm(patient: tuple[Path, int, str]) -> None:
    folder, _, _ = patient
    pids = [json.loads((folder / f"s/{n:04d}/result.json").read_text())["pid"] for n in range(5)]
    assert len(set(pids)) == 2
    assert pids[1] == pids[2] == pids[3] != pids[0]


def test_no_memory_is_a_row_with_what_to_try(patient: tuple[Path, int, str]) -> None:
    folder, code, said = patient
    assert code == 5
    assert re.match(r"out of memory\b.*\btrainer\.accumulate=2\b", rows(folder / "s")["4"]["reason"])
    assert "4 completed, 1 failed" in said
    assert workers(folder) == []


def test_the_columns_of_the_table(patient: tuple[Path, int, str]) -> None:
    folder, _, _ = patient
    first = ["trial", "stage", "status", "model.mood"]
    scores = ["val_loss", "val_acc", "test_loss", "test_acc", "epochs", "seconds"]
    found = list(sweep_folder.table(folder / "s")[0])
    assert [c for c in found if c != "checks"] == [*first, *scores, "verdicts", "reason", "attempts", "folder"]
    assert [r["folder"] for r in sweep_folder.table(folder / "s")] == [f"{n:04d}" for n in range(5)]


def test_failed_trials_are_tried_again_as_often_as_asked_and_no_more(moody: tuple[Path, int, str]) -> None:
    folder, _, _ = moody
    before, table = starts(folder / "s"), rows(folder / "s")
    process = start(folder, "resume", "s", "trust=[moody]")
    process.communicate(timeout=60)
    assert (process.returncode, starts(folder / "s"), rows(folder / "s")) == (5, before, table)


@pytest.mark.parametrize(
    ("asked", "cards", "slots", "threads"), [(0, 0, 8, 1), (2, 0, 2, 4), (3, 0, 3, 2), (9, 0, 9, 1), (0, 2, 2, 4)]
)
def test_one_worker_a_core_or_card_with_a_share_of_the_threads(
    monkeypatch: pytest.MonkeyPatch, asked: int, cards: int, slots: int, threads: int
) -> None:
    monkeypatch.setattr(pool, "cores", lambda: 8)
    monkeypatch.setattr(protocol, "cores", lambda: 8)
    names = [f"GPU-{n}" for n in range(cards)]
    monkeypatch.setattr(protocol, "gpus", lambda: names)
    started: list[tuple[int, str | None]] = []

    class Started:
        def __init__(self, threads: int, gpu: str | None) -> None:
            started.append((threads, gpu))
            self.job, self.connection = None, self

        def send(self, job: Job) -> None:
            pass

    monkeypatch.setattr(pool, "_Worker", Started)
    made = pool.Pool(asked)
    assert (made.slots, made.threads) == (slots, threads)
    for number in range(slots):
        made.submit(Job(number, {}, ""))
    assert [t for t, _ in started] == [threads] * slots
    assert sorted(g for _, g in started if g is not None) == names


@pytest.mark.parametrize(
    ("visible", "found"),
    [("", []), ("-1", []), ("2,3", ["2", "3"]), ("GPU-5a, GPU-7", ["GPU-5a", "GPU-7"]), ("1,-1,0", ["1"])],
)
def test_workers_get_cards_by_the_names_that_are_visible_here(
    monkeypatch: pytest.MonkeyPatch, visible: str, found: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert protocol.gpus() == found


@pytest.mark.parametrize(
    ("devices", "workers", "slots", "cards"),
    [
        (("auto",), 0, 2, ["7", "9"]),
        (("cuda",), 3, 3, ["7", "9", "7"]),
        (("cuda:1",), 0, 1, []),
        (("cuda:0", "cuda:1"), 0, 2, []),
        (("cuda:1",), 4, 4, []),
        (("auto", "cuda:1"), 0, 2, []),
        (("cpu",), 0, 8, []),
    ],
)
def test_a_trial_that_names_its_card_sees_all_cards(
    monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], workers: int, slots: int, cards: list[str]
) -> None:
    monkeypatch.setattr(protocol, "cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,9")
    assert protocol.shares(workers, devices) == (slots, cards)


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        (["trainer.device=cuda:1"], ("cuda:1",)),
        (["trainer.device=cuda:0,cuda:1"], ("cuda:0", "cuda:1")),
        ([], ("auto",)),
    ],
)
def test_a_sweep_starts_its_workers_for_the_devices_of_its_trials(
    here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], devices: tuple[str, ...]
) -> None:
    class Reached(Exception):
        pass

    def launcher(options: object, sweep: Path, soon: int, named: tuple[str, ...]) -> None:
        raise Reached(named)

    monkeypatch.setattr(choose, "launcher", launcher)
    with composer({}) as made, pytest.raises(Reached) as reached:
        starting.sweep(made, ["seed=1,2", "sweep.dir=s", *words])
    assert reached.value.args == (devices,)


@pytest.mark.parametrize(
    ("each", "workers", "slots", "cards"),
    [
        (2, 0, 2, ["7,9", "1,3"]),  # the fifth is nobody's
        (3, 0, 1, ["7,9,1"]),
        (5, 0, 1, ["7,9,1,3,4"]),
        (2, 3, 3, ["7,9", "1,3", "7,9"]),
        (1, 0, 5, ["7", "9", "1", "3", "4"]),
    ],
)
def test_each_trial_gets_a_set_of_cards(
    monkeypatch: pytest.MonkeyPatch, each: int, workers: int, slots: int, cards: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,9,1,3,4")
    assert protocol.shares(workers, ("auto",), each) == (slots, cards)


def test_without_cards_each_trial_gets_cores_and_too_few_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert protocol.shares(0, ("auto",), 2) == (4, [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,9")
    assert protocol.shares(0, ("cpu",), 4) == (2, [])
    with pytest.raises(UserError, match=r"gpus_per_trial=4: expected at most 2"):
        protocol.shares(0, ("auto",), 4)
