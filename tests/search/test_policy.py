"""What a sweep does of itself: stops bad trials, ranks by any metric, kills what hangs, says what to type next (S6)."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dlrun.folders.run import Run, take
from dlrun.search import sweeper
from dlrun.search.launchers import choose
from dlrun.search.launchers.job import Job
from dlrun.search.launchers.protocol import Ended
from dlrun.vocabulary import minimised
from support.commands import TINY, Outcome
from support.moods import MOODY, QUICK, rows

# four trials that learn, then two whose rate is nothing; a worker at a time, so that the good ones are known first
LEARNERS = ("train", "-m", "optimizer.lr=0.05,1e-9", "seed=1,2,3,4", "model=custom", "model._target_=moody.Net")
LEARNERS += ("+model.mood=slow", "trust=[moody]", *QUICK, "trainer.batch_size=50", "scheduler=constant")
LEARNERS += ("hydra.launcher.workers=1", "sweep.dir=s")


@pytest.fixture
def watchful(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep that looks at its trials all the time; an epoch of theirs takes longer than a look."""
    (here / "moody.py").write_text(MOODY)
    monkeypatch.setattr(sweeper, "LOOK", 0.05)
    return here


@pytest.mark.slow
def test_the_median_stops_bad_trials(watchful: Path, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun(*LEARNERS, "trainer.epochs=4", "search.prune=median", "search.metric=val_loss")
    assert outcome.code == 0, outcome.out + outcome.err
    table = list(rows(watchful / "s").values())
    assert [r["status"] for r in table] == ["completed"] * 4 + ["pruned"] * 4
    assert all(int(r["epochs"]) < 4 for r in table[4:])  # that is what pruning saves
    assert all("search.prune" in r["reason"] for r in table[4:])
    assert {r["folder"] for r in table} == {f"{n:04d}" for n in range(8)}


@pytest.mark.slow
def test_hyperband_stops_bad_trials_by_any_metric(watchful: Path, dlrun: Callable[..., Outcome]) -> None:
    more = ("trainer.epochs=6", "search.prune=hyperband", "search.metric=update_ratio", "search.direction=max")
    outcome = dlrun(*LEARNERS, *more)
    assert outcome.code == 0, outcome.out + outcome.err
    table = list(rows(watchful / "s").values())
    pruned = [r for r in table if r["status"] == "pruned"]
    assert pruned, table
    assert all(int(r["epochs"]) < 6 for r in pruned)
    assert len([r for r in pruned if float(r["optimizer.lr"]) < 1e-8]) >= len(pruned) / 2
    best = max((r for r in table if r["status"] == "completed"), key=lambda r: float(r["update_ratio"]))
    assert float(best["optimizer.lr"]) == 0.05
    three = outcome.out.split(" trials: ")[1].splitlines()[1:4]
    assert three[0].split()[:3] == [best["folder"], "update_ratio", f"{float(best['update_ratio']):.4f},"]
    ranked = [float(line.split()[2].rstrip(",")) for line in three]
    assert ranked == sorted(ranked, reverse=True)


def test_which_way_is_better() -> None:
    assert [minimised(m, "auto") for m in ("val_acc", "val_loss", "update_ratio", "train_seconds")] == [
        False,
        True,
        True,
        True,
    ]
    assert minimised("val_acc", "min")
    assert not minimised("val_loss", "max")


@pytest.mark.slow
def test_page_tables_and_last_words_rank_by_the_metric_and_direction_of_the_search(
    here: Path, dlrun: Callable[..., Outcome]
) -> None:
    words = ("optimizer.lr=1e-5,0.03", "seed=1,2", "search.metric=train_loss", "search.direction=max")
    outcome = dlrun("train", "-m", *words, *TINY, "trainer.epochs=2", "hydra.launcher.workers=1", "sweep.dir=s")
    assert outcome.code == 0, outcome.err
    losses = {n: float(r["train_loss"]) for n, r in rows(here / "s").items()}
    order = [f"{int(n):04d}" for n in sorted(losses, key=lambda n: -losses[n])]
    said = outcome.out.split(" trials: ")[1].splitlines()[1:3]  # the best trial of each setting
    rates = {f"{int(n):04d}": r["optimizer.lr"] for n, r in rows(here / "s").items()}
    other = next(name for name in order if rates[name] != rates[order[0]])
    assert [line.split()[0] for line in said] == [order[0], other]  # the highest loss is the best here
    compared = dlrun("compare", "s").out.splitlines()
    assert [line.split()[0] for line in compared[1:5]] == order
    grouped = dlrun("compare", "s", "--group-seeds").out.splitlines()
    assert [line.split()[0] for line in grouped[1:3]] == ["1e-05", "0.03"]
    assert "train_loss" in grouped[0]
    latex = [line for line in dlrun("compare", "s", "--latex").out.splitlines() if line.startswith("s/")]
    assert f"{{{losses[str(int(order[0]))]:.4f}}}" in latex[0]  # in bold
    assert dlrun("report", "s").code == 0
    page = (here / "s/report.html").read_text()
    assert "by train_loss, higher is better" in page
    assert f"<b>{losses[str(int(order[0]))]:.4g}</b>best train_loss" in page


class Sluggish:
    """A launcher whose process takes a trial only at its second look, each 0.3 seconds after the one before."""

    slots = threads = 1

    def __init__(self) -> None:
        self.looks, self.killed = 0, list[int]()

    def submit(self, job: Job) -> None:
        self.job, self.looks = job, 0

    def waiting(self) -> str:
        return ""

    def wait(self, seconds: float) -> list[Ended]:
        self.looks += 1
        if self.looks == 2:
            self.run, known = take(Path(self.job.folder))
            if not known:
                self.run.write_config(SimpleNamespace())
        time.sleep(0.3)
        return []

    def kill(self, number: int) -> None:
        self.killed.append(self.looks)
        self.run.release()

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_a_timeout_begins_with_the_trial_not_with_its_process(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Sluggish()
    monkeypatch.setattr(choose, "launcher", lambda *_: slow)
    monkeypatch.setattr(sweeper, "LOOK", 0)
    monkeypatch.setattr(Run, "write_config", lambda run, cfg: (run.path / "config.yaml").write_text("seed: 1\n"))
    outcome = dlrun("train", "-m", "seed=1,2", *TINY, "search.timeout=0.2", "search.retries=1", "sweep.dir=s")
    assert outcome.code == 5, outcome.err
    # the second try finds a folder that was taken before, and is given the time to take it again
    assert slow.killed == [3, 3] * 2  # two tries of two trials
    assert rows(here / "s")["0"]["reason"].endswith("0.2 seconds (search.timeout)")
    assert rows(here / "s")["0"]["attempts"] == "2"


def test_what_to_type_next_can_be_typed(here: Path, dlrun: Callable[..., Outcome]) -> None:
    folder = "two words"
    words = ("optimizer.lr=loguniform:1e-4:1e-2", "trust=[moody]", "search.trials=2", *TINY, "hydra.launcher.workers=1")
    outcome = dlrun("train", "-m", *words, f"sweep.dir={folder}")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.split("\nnext:\n")[1].splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("  dlrun")]
    assert [c[1:3] for c in commands] == [["train", "-m"], ["train", "-m"], ["compare", folder], ["ensemble", folder]]
    assert all("trust=[moody]" in c for c in commands[:2])
    assert commands[1][-1] == "seed=1,2,3,4,5"
    assert dlrun(*commands[2][1:]).code == 0
