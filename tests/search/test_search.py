"""What a search tries, with trials whose scores are known: samplers, and ranges that grow at their edges (S1-S5)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrun.analysis import sweeps
from dlrun.analysis.warnings import warnings
from dlrun.folders import sweep as sweep_folder
from dlrun.search.launchers import choose
from dlrun.search.launchers.job import Job
from dlrun.search.launchers.protocol import Ended
from support.commands import TINY, Outcome
from support.moods import rows
from support.stored import write

Score = Callable[[float, int], float]


class Instant:
    """A launcher whose trials end at once, with a score that follows from one of their keys and the epoch."""

    slots, threads = 2, 1

    def __init__(self, score: Score, key: str) -> None:
        self.score, self.key, self.ended, self.epochs = score, key.split("."), list[Ended](), dict[int, list[int]]()

    def submit(self, job: Job) -> None:
        value, asked = float(job.config[self.key[0]][self.key[1]]), job.config["trainer"]
        last = asked["stop_after"] or asked["epochs"]
        self.epochs.setdefault(job.number, []).append(last)
        table = [f"{e},{self.score(value, e)!r}" for e in range(1, last + 1)]
        write(Path(job.folder) / "config.yaml", "seed: 1\n")
        write(Path(job.folder) / "metrics.csv", "\n".join(["epoch,val_acc", *table]) + "\n")
        status = "paused" if asked["stop_after"] else "completed"
        result = {"status": status, "epochs": last, "val_acc": self.score(value, last), "config": job.config}
        result["data_notes"] = ["left out: 1"]
        write(Path(job.folder) / "result.json", json.dumps(result))
        self.ended.append(Ended(job.number, 0))

    def waiting(self) -> str:
        return ""

    def wait(self, seconds: float) -> list[Ended]:
        found, self.ended = self.ended, []
        return found

    def close(self) -> None:
        pass


@pytest.fixture
def search(here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Search with scores that are known; returns what was said, the rounds, the table's rows, and the launcher."""

    def run(
        score: Score, *words: str, key: str = "optimizer.lr"
    ) -> tuple[str, list[dict[str, Any]], list[dict[str, str]], Instant]:
        instant = Instant(score, key)
        monkeypatch.setattr(choose, "launcher", lambda *_: instant)
        outcome = dlrun("train", "-m", *words, *TINY, "trainer.epochs=3", "sweep.dir=s")
        assert outcome.code == 0, outcome.out + outcome.err
        found = sorted(rows(here / "s").values(), key=lambda r: int(r["trial"]))
        return outcome.out, sweep_folder.plan(here / "s")["rounds"], found, instant

    return run


STAGES = "search.stages=[{epochs: 1, keep: 1.0}, {epochs: 2, keep: 0.5}]"
RANGE = "optimizer.lr=loguniform:1e-4:1e-2"


def steps(rounds: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(r["stage"], r["grown"], r["new"], len(r["kept"]), len(r["said"])) for r in rounds]


def test_an_edge_is_warned_of_after_each_stage(search: Callable[..., Any]) -> None:
    words = (RANGE, STAGES, "search.trials=30", "search.fresh=0")
    said, rounds, _, _ = search(lambda lr, epoch: math.log10(lr), *words)
    assert steps(rounds) == [(1, 0, 30, 0, 1), (2, 0, 0, 15, 1)]
    # of all that was searched: the second stage drew from less, and the best is still at the end of it
    lines = [line for line in said.splitlines() if line.startswith("edge: ")]
    assert len([line for line in lines if " high edge " in line and "0.0001 to 0.01" in line]) == 2
    assert len([line for line in lines if line.endswith("try optimizer.lr=loguniform:0.0001:1")]) == 1
    assert all("search.extend=true" in line for line in lines)
    assert [line in said for r in rounds for line in r["said"]] == [True, True]
    assert said.splitlines().count("left out: 1") == 1  # of thirty trials


@pytest.mark.slow
def test_the_page_says_of_edges_what_the_terminal_said(
    search: Callable[..., Any], dlrun: Callable[..., Outcome]
) -> None:
    def score(lr: float, epoch: int) -> float:
        return -abs(math.log10(lr) + 3) if epoch == 1 else math.log10(lr)  # the middle is best at first

    words = ("optimizer.lr=loguniform:1e-5:1", STAGES, "search.trials=20", "search.fresh=3")
    said, rounds, _, _ = search(score, *words)
    assert steps(rounds) == [(1, 0, 20, 0, 0), (2, 0, 30, 10, 1)]
    (edge,) = rounds[-1]["said"]  # of the last stage's range, amid all that was searched
    assert edge in said
    assert "1e-05 to 1:" not in edge
    assert dlrun("report", "s").code == 0
    told, _, typed = edge.partition("; try ")
    page = unescape(Path("s/report.html").read_text())
    assert f"{told}<p>To try next: <code>{typed}</code></p>" in page
    asked = sweep_folder.plan(Path("s"))
    asked["rounds"][-1]["said"] = None  # as while it runs: the words after the stage before
    sweep_folder.write_plan(Path("s"), asked)
    assert sweeps.read(Path("s")).said == []


@pytest.mark.parametrize("best", [min, max])
@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    ("words", "sampler"),
    [
        ("optimizer.lr=loguniform:1e-3:1e-1", "random"),
        ("optimizer.lr=uniform:0.2:0.4", "random"),
        ("trainer.batch_size=int:16:24", "random"),
        ("trainer.batch_size=logint:8:64", "random"),
        ("optimizer.lr=0.1,0.01,0.001", "grid"),
        ("optimizer.lr=0.2,0.3,0.4", "grid"),
        ("trainer.batch_size=8,16,32,64", "grid"),
        ("regularizer.dropout=0,0.3,0.6,0.9", "grid"),
        ("regularizer.dropout=uniform:0:0.5", "random"),
    ],
)
def test_terminal_and_page_advise_the_same_range(
    search: Callable[..., Any], words: str, sampler: str, best: Callable[..., float]
) -> None:
    name = words.partition("=")[0]
    sign = 1 if best is max else -1
    more = (f"search={sampler}", "search.trials=20")
    said, *_ = search(lambda value, epoch: sign * value, words, *more, key=name)
    terminal = [line.partition("; try ")[2] for line in said.splitlines() if line.startswith("edge: ")]
    plan = sweep_folder.plan(Path("s"))
    for one in plan["rounds"]:
        one["said"] = None  # as the sweeps of an older version, whose page finds the edges itself
    sweep_folder.write_plan(Path("s"), plan)
    found = sweeps.read(Path("s"))
    page = [line.partition("; try ")[2] for line in warnings(found) if line.startswith("edge: ")]
    assert page == terminal
    assert all(line.startswith(f"{name}=") for line in terminal)
    assert bool(terminal) == (name != "regularizer.dropout")  # a dropout is neither below 0 nor 1


@pytest.mark.slow
def test_stages_share_the_growths_that_are_allowed(search: Callable[..., Any]) -> None:
    words = (RANGE, STAGES, "search.trials=20", "search.fresh=0", "search.extend=true", "search.max_extend=2")
    said, rounds, table, _ = search(lambda lr, epoch: math.log10(lr), *words)
    assert steps(rounds) == [(1, 0, 20, 0, 1), (1, 1, 20, 0, 1), (1, 2, 20, 0, 1), (2, 2, 0, 30, 1)]
    assert [r["axes"][0]["high"] for r in rounds[:3]] == pytest.approx([1e-2, 1.0, 1e4])
    (last,) = rounds[-1]["said"]
    assert last in said
    assert "search.max_extend=2" in last
    assert "try optimizer.lr=" in last
    best = sorted(table, key=lambda r: -float(r["optimizer.lr"]))[:30]  # of all rounds of the stage
    assert sorted(rounds[3]["kept"]) == sorted(int(r["trial"]) for r in best)


@pytest.mark.slow
def test_a_later_stage_grows_too_and_its_new_trials_reach_its_epochs(search: Callable[..., Any]) -> None:
    def score(lr: float, epoch: int) -> float:
        return -abs(math.log10(lr) + 3) if epoch == 1 else math.log10(lr)  # the middle is best at first

    words = (RANGE, STAGES, "search.trials=8", "search.fresh=8", "search.extend=true", "search.max_extend=1")
    said, rounds, table, instant = search(score, *words)
    assert [(r["stage"], r["grown"]) for r in rounds] == [(1, 0), (2, 0), (2, 1)]
    second, third = rounds[1:]
    assert (second["new"], len(second["kept"]), third["new"]) == (32, 4, 36)  # as many as the stage had
    assert third["axes"][0]["high"] > second["axes"][0]["high"]
    assert {n: e for n, e in instant.epochs.items() if n >= 8} == {n: [2] for n in range(8, 76)}
    assert all(instant.epochs[n] == [1, 2] for n in second["kept"])  # from their checkpoints
    assert {r["status"] for r in table[:8] if int(r["trial"]) not in second["kept"]} == {"pruned"}
    assert "searching optimizer.lr=" in said


@pytest.mark.slow
def test_the_best_of_the_first_range_goes_on_where_nothing_beyond_is_better(search: Callable[..., Any]) -> None:
    words = (RANGE, STAGES, "search.trials=30", "search.fresh=0", "search.extend=true", "search.max_extend=1")
    _, rounds, table, _ = search(lambda lr, epoch: -abs(math.log10(lr) + 2.1), *words)
    assert [(r["stage"], r["grown"]) for r in rounds] == [(1, 0), (1, 1), (2, 1)]
    nearest = min(table, key=lambda r: abs(math.log10(float(r["optimizer.lr"])) + 2.1))
    assert rounds[2]["kept"][0] == int(nearest["trial"])
    assert any(n < 30 for n in rounds[2]["kept"])
    assert any(n >= 30 for n in rounds[2]["kept"])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("sampler", ["auto", "tpe"])
def test_lists_grow_by_points_that_are_new(search: Callable[..., Any], sampler: str) -> None:
    words = ("optimizer.lr=1e-5,1e-4,1e-3", "seed=1,2", f"search={sampler}", "search.extend=true")
    _, rounds, table, _ = search(lambda lr, epoch: math.log10(lr), *words, "search.trials=6")
    assert [(r["grown"], r["new"]) for r in rounds] == [(0, 6), (1, 4), (2, 8)]
    beyond = [(r["optimizer.lr"], r["seed"]) for r in table[6:]]
    assert len(set(beyond)) == 12
    assert sorted({float(lr) for lr, _ in beyond}) == pytest.approx([1e-2, 1e-1, 1, 10, 100, 1000])


def test_a_best_in_the_middle_of_a_list_that_grew_is_near_no_edge(search: Callable[..., Any]) -> None:
    words = ("optimizer.lr=1e-5,1e-4,1e-3", "search.extend=true")
    said, rounds, table, _ = search(lambda lr, epoch: -abs(math.log10(lr) + 2), *words)
    assert sorted(float(r["optimizer.lr"]) for r in table) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert said.count("edge: ") == 1
    assert [len(r["said"]) for r in rounds] == [1, 0]


def test_tpe_goes_on_where_a_list_grew_beside_a_range(search: Callable[..., Any]) -> None:
    words = ("optimizer.lr=1e-5,1e-4,1e-3", "regularizer.l2=loguniform:1e-6:1e-2", "search=tpe", "search.extend=true")
    _, rounds, table, _ = search(lambda lr, epoch: math.log10(lr), *words, "search.trials=6", "search.max_extend=1")
    assert [(r["grown"], r["new"]) for r in rounds] == [(0, 6), (1, 6)]
    assert len(table) == 12


@pytest.mark.slow
def test_tpe_draws_nearer_to_the_best_the_more_it_knows(search: Callable[..., Any]) -> None:
    words = ("optimizer.lr=loguniform:1e-6:1", "search=tpe", "search.trials=40")
    _, rounds, table, _ = search(lambda lr, epoch: -abs(math.log10(lr) + 3), *words)
    assert len(rounds) == 1
    apart = [abs(math.log10(float(r["optimizer.lr"])) + 3) for r in table]
    assert sum(apart[20:]) / 20 < sum(apart[:10]) / 10 / 2


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("axes", "sampler", "count"),
    [
        (("optimizer.lr=0.1,0.01", "seed=1,2,3"), "grid", 6),
        (("optimizer.lr=0.1,0.01", "regularizer.l2=loguniform:1e-6:1e-2"), "random", 20),
        (("optimizer.lr=0.1,0.01", "regularizer.l2=tag(log,interval(1e-6,1e-2))", "search.trials=7"), "random", 7),
        (("optimizer.lr=loguniform(1e-5,1)", "model.depth=logint(4,16)", "seed=1,2"), "random", 20),
    ],
)  # fmt: skip
def test_lists_alone_are_a_grid_and_any_range_is_random(
    search: Callable[..., Any], axes: tuple[str, ...], sampler: str, count: int
) -> None:
    search(lambda lr, epoch: 0.5, *axes)
    assert (sweep_folder.plan(Path("s"))["search"]["sampler"], len(rows(Path("s")))) == (sampler, count)


def test_rate_and_penalty_are_drawn_together(search: Callable[..., Any]) -> None:
    """No value of one is tried with a fixed other, and neither follows the other (S8)."""
    search(lambda lr, epoch: 0.5, "optimizer.lr=loguniform:1e-4:1e-1", "regularizer.l2=loguniform:1e-6:1e-2")
    found = rows(Path("s")).values()
    pairs = [(math.log10(float(r["optimizer.lr"])), math.log10(float(r["regularizer.l2"]))) for r in found]
    assert len({lr for lr, _ in pairs}) == len({l2 for _, l2 in pairs}) == len(pairs) == 20
    assert abs(np.corrcoef(np.array(pairs).T)[0, 1]) < 0.6  # of 20 independent pairs 99.5 %


def test_the_number_of_trials_is_the_total(search: Callable[..., Any]) -> None:
    def score(lr: float, epoch: int) -> float:
        return -abs(math.log10(lr) + 3)

    _, _, first, _ = search(score, RANGE, "search.trials=4")
    _, _, more, instant = search(score, RANGE, "search.trials=6")
    assert (len(more), more[:4]) == (6, first)
    assert list(instant.epochs) == [4, 5]
    for fewer in (6, 3):  # what is there stays
        said, _, same, instant = search(score, RANGE, f"search.trials={fewer}")
        assert (same, instant.epochs) == (more, {})
        assert "6 trials (6 done)" in said
