"""`dlrun train -m`: Hydra's order, numbered folders, and no run that takes the others along."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.config.compose import composer
from dlrun.folders import reading
from dlrun.folders import sweep as sweep_folder
from dlrun.search.sampling import draw
from dlrun.search.space import Axis, read
from dlrun.search.starting import points
from support.commands import TINY, Outcome
from support.moods import MOODS, MOODY, QUICK, rows, start, starts, wait_for, workers


def swept(*overrides: str) -> list[str]:
    with composer({}, overrides) as made:
        return [" ".join(words) for words in points(made, overrides)]


def test_order_and_values_are_hydras(here: Path) -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    lists = [
        "seed=1,2",
        "model=cnn,mlp",
        "optimizer.lr=0.1,1e-3",
        "trainer.epochs=range(1,6,2)",
    ]
    expected = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(lists), None)[0]
    assert swept(*lists) == [" ".join(words) for words in expected]


def test_options_by_pattern(here: Path) -> None:
    assert swept("model=glob(resnet1*)") == ["model=resnet18"]
    assert swept("optimizer=choice(sgd,adam)") == ["optimizer=sgd", "optimizer=adam"]


def test_every_point_is_checked_before_the_first_starts(here: Path, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("train", "-m", "optimizer=sgd,adam", "optimizer.momentum=0.5,0.9", *TINY)
    assert (outcome.code, outcome.out) == (2, "")
    assert "(optimizer=adam optimizer.momentum=0.5): optimizer.momentum" in outcome.err
    assert " 3 " in outcome.err
    assert list(here.iterdir()) == []


def test_what_cannot_be_searched_is_one_line(here: Path, dlrun: Callable[..., Outcome]) -> None:
    wrong = {
        "optimizer.lr=loguniform:0:1": "above 0, found 0",
        "optimizer.lr=uniform:1:0": "expected two numbers",
        "regularizer.dropout=uniform:0:1.5": "regularizer.dropout=1.5",
        "optimizer.lrr=loguniform:1e-5:1": "did you mean optimizer.lr",
        "model.width=logint:0.5:8": "expected whole numbers",
        "search.trials=1,2": "expected one value",
        "seed=1,1": "twice",
    }
    for word, said in wrong.items():
        outcome = dlrun("train", "-m", word, *(w for w in TINY if not w.startswith("model.width")))
        assert (outcome.code, said in outcome.err, outcome.err.count("\n")) == (2, True, 1), outcome.err
    assert "is a range" in dlrun("train", "-m", "search=grid", "optimizer.lr=uniform:0:1").err
    assert list(here.iterdir()) == []


def axes(*words: str) -> list[Axis]:
    with composer({}, words) as made:
        return read(made, words)[0]


def test_short_forms_and_types(here: Path) -> None:
    assert axes("optimizer.lr=loguniform(1e-5,1)") == axes("optimizer.lr=tag(log,interval(1e-5,1))")
    assert axes("seed=range:0:3") == axes("seed=range(0,3)") == axes("seed=0,1,2")
    width, dropout = axes("model.width=logint:16:256", "regularizer.dropout=uniform:0:0.5")
    assert (width.whole, width.log, dropout.whole) == (True, True, False)
    assert axes("regularizer.l2=interval(0,1)")[0].whole is False  # the key is no whole number, whatever the ends
    assert [width.at(0), width.at(0.5), width.at(0.999999)] == [16, 64, 256]


@pytest.mark.parametrize("sampler", ["random", "grid_jitter", "sobol"])
def test_a_draw_follows_from_seed_and_number(here: Path, sampler: str) -> None:
    found = axes("optimizer.lr=loguniform:1e-4:1", "model.width=logint:4:64", "model=cnn,mlp")
    points = [draw(sampler, found, 7, n, 64) for n in range(64)]
    assert points[9] == draw(sampler, found, 7, 9, 64) != draw(sampler, found, 8, 9, 64)
    assert all(a.holds(p[a.key]) for p in points for a in found)
    decades = [sum(10.0**k <= p["optimizer.lr"] < 10.0 ** (k + 1) for p in points) for k in range(-4, 0)]
    assert min(decades) >= (16 if sampler == "sobol" else 6)  # as many in every decade
    if sampler == "grid_jitter":  # every cell of the grid once: 64 trials over 2 lists and 6 x 6 crosses
        assert len({(p["model"], int(found[0].place(p["optimizer.lr"]) * 6)) for p in points}) == 12


def test_each_draw_meets_every_seed(here: Path) -> None:
    found = axes("optimizer.lr=loguniform:1e-4:1", "seed=1,2,3")
    points = [draw("random", found, 0, n, 6) for n in range(6)]
    assert [p["seed"] for p in points] == [1, 2, 3] * 2
    assert len({p["optimizer.lr"] for p in points}) == 2


def test_ranges_grow_and_narrow_in_their_scale(here: Path) -> None:
    (lr,) = axes("optimizer.lr=loguniform:1e-3:1e-1")
    assert (lr.edge(1.5e-3), lr.edge(1e-2), lr.edge(8e-2)) == ("low", None, "high")
    grown = lr.grown("high")
    assert grown is not None
    assert (grown.low, grown.high) == pytest.approx((1e-3, 10))
    (listed,) = axes("optimizer.lr=0.1,0.01,0.001")
    more = listed.grown("low")
    assert more is not None
    assert sorted(more.choices) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    wide = axes("optimizer.lr=loguniform:1e-6:10")[0].narrowed([1e-3, 2e-3, 1e-2], 2e-3, 10)
    assert (wide.low, wide.high) == pytest.approx((1e-3 / 10**0.5, 2e-2))
    fine = axes("optimizer.lr=loguniform:1e-6:10")[0].narrowed([1e-3, 2e-3, 1e-2], 2e-3, 3)
    assert (fine.low, fine.high) == pytest.approx((2e-3 / 3, 6e-3))


def test_every_end_of_a_trial_is_a_row(moody: tuple[Path, int, str]) -> None:
    folder, code, said = moody
    assert code == 5, said
    table = rows(folder / "s")
    assert [table[str(n)]["status"] for n in range(4)] == ["completed", "failed", "failed", "diverged"]
    reasons = ("all epochs done", "this one raises", "signal 9", "loss is nan")
    assert all(words in table[str(n)]["reason"] for n, words in enumerate(reasons)), table
    # search.retries=1; a process that is lost costs no retry until the third time
    assert [table[str(n)]["attempts"] for n in range(4)] == ["1", "2", "3", "1"]
    assert [table[str(n)]["model.mood"] for n in range(4)] == ["ok", "raise", "die", "explode"]
    assert "1 completed, 1 diverged, 2 failed" in said
    assert workers(folder) == []


@pytest.mark.slow
def test_a_hanging_trial_is_killed(tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    words = ("+model.mood=hang,ok", "search.timeout=30", "search.retries=0", *QUICK, "sweep.dir=s")
    process = start(tmp_path, *MOODS, *words)
    process.communicate(timeout=120)
    assert process.returncode == 5
    assert [(r["status"], r["attempts"]) for r in rows(tmp_path / "s").values()] == [
        ("failed", "1"),
        ("completed", "1"),
    ]
    assert "30 seconds (search.timeout)" in rows(tmp_path / "s")["0"]["reason"]
    assert workers(tmp_path) == []


MAPS = """
import os, time
from pathlib import Path
from moody import Net

class Looks(Net):
    def forward(self, x):
        mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if ".pack" in line]
        print("pid", os.getpid(), *{f"{words[3]}:{words[4]}" for words in mapped}, "made with")
        time.sleep(0.1)  # so that both workers get a trial
        return super().forward(x)
"""


@pytest.mark.slow
def test_workers_hold_the_pixels_once(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "moody.py").write_text(MOODY)
    (tmp_path / "looks.py").write_text(MAPS)
    np.savez(
        tmp_path / "mine.npz", x=np.random.default_rng(0).integers(0, 255, (99, 8, 8), np.uint8), y=np.arange(99) % 3
    )
    words = ("model=custom", "model._target_=looks.Looks", "trust=[looks]", "dataset=arrays", "dataset.path=mine.npz")
    more = ("seed=1,2", "hydra.launcher.workers=2", "trainer.epochs=3", "sweep.dir=s")
    process = start(tmp_path, "train", "-m", *words, *QUICK, *more)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    seen = [line.split()[1:-2] for log in (tmp_path / "s").glob("0*/log.txt")
            for line in log.read_text().splitlines() if line.startswith("pid")]  # fmt: skip
    assert len({pid for pid, *_ in seen}) == 2
    files = {tuple(files) for _, *files in seen}
    assert len(files) == 1, files  # one file, of one device and inode, in both at every step
    assert len(files.pop()) == 1


def test_a_trial_records_its_words_and_its_defaults(moody: tuple[Path, int, str]) -> None:
    folder, _, _ = moody
    stored = reading.stored(folder / "s/0001")
    assert stored["typed"][-1] == "+model.mood=raise"
    assert {"model=custom", "sweep.dir=s"} <= set(stored["typed"])
    assert stored["changed"] | {"choices.model": "cnn", "model.mood": None, "trainer.report": True} == stored["changed"]
    assert "trainer.stop_after" not in stored["changed"]
    assert not [key for key in stored["changed"] if key.startswith("search.")]


def test_what_a_trial_prints_is_in_its_log(moody: tuple[Path, int, str]) -> None:
    folder, _, said = moody
    assert "made with" not in said
    assert "epoch 1/1" not in said
    assert "made with ok" in (folder / "s/0000/log.txt").read_text()
    assert "epoch 1/1" in (folder / "s/0000/log.txt").read_text()


def test_the_study_holds_what_the_table_holds(moody: tuple[Path, int, str]) -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    folder, _, _ = moody
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(sweep_folder.journal(folder / "s"))))
    study = optuna.load_study(study_name="sweep", storage=storage)
    assert [t.params["+model.mood"] for t in study.trials] == ["ok", "raise", "die", "explode"]
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "FAIL", "PRUNED"]
    assert study.best_value == float(rows(folder / "s")["0"]["val_acc"])
    assert study.metric_names == ["val_acc"]
    assert study.trials[0].intermediate_values == {1: study.best_value}


def test_a_killed_sweep_finishes_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    words = ("+model.mood=slow", "seed=1,2,3", *QUICK, "trainer.epochs=4", "trainer.batch_size=4", "sweep.dir=s")
    process = start(tmp_path, *MOODS, *words)
    wait_for(lambda: (tmp_path / "s/0000/metrics.csv").exists(), process)
    second = start(tmp_path, "resume", "s", "trust=[moody]")
    assert f" process {process.pid} on " in second.communicate(timeout=60)[1]
    assert second.returncode == 2
    process.kill()
    process.communicate()
    wait_for(lambda: not workers(tmp_path))  # no orphans
    begun = int((tmp_path / "s/0000/metrics.csv").read_text().splitlines()[-1].split(",")[0])
    process = start(tmp_path, *MOODS, *words)  # Ctrl-C this time
    wait_for(lambda: starts(tmp_path / "s") >= 4, process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "dlrun resume s" in out
    assert workers(tmp_path) == []
    assert "interrupted" in {row["status"] for row in rows(tmp_path / "s").values()}
    last = start(tmp_path, "resume", "s", "trust=[moody]")
    out, err = last.communicate(timeout=120)
    assert last.returncode == 0, out + err
    table = rows(tmp_path / "s")
    assert [(r["status"], r["epochs"], r["seed"]) for r in table.values()] == [
        ("completed", "4", seed) for seed in ("1", "2", "3")
    ]
    assert sorted(p.name for p in (tmp_path / "s").glob("0*")) == ["0000", "0001", "0002"]
    assert f"resuming after epoch {begun}" in (tmp_path / "s/0000/log.txt").read_text() or begun == 4
    epochs = [line.split(",")[0] for line in (tmp_path / "s/0000/metrics.csv").read_text().splitlines()[1:]]
    assert epochs == ["1", "2", "3", "4"]
    before = starts(tmp_path / "s")
    done = start(tmp_path, *MOODS, *words)
    done.communicate(timeout=60)
    assert (done.returncode, starts(tmp_path / "s")) == (0, before)  # nothing is left to do


def test_another_search_does_not_enter(moody: tuple[Path, int, str]) -> None:
    folder, _, _ = moody
    process = start(folder, *MOODS, "+model.mood=ok,raise", *QUICK, "sweep.dir=s")
    assert " has +model.mood=ok,raise,die,explode; " in process.communicate(timeout=60)[1]
    assert process.returncode == 2


def test_a_pause_changes_nothing(here: Path, dlrun: Callable[..., Outcome]) -> None:
    import gc

    import torch

    gc.collect()
    words = (*TINY, "trainer.epochs=3", "regularizer.dropout=0.3")
    assert dlrun("train", *words, "run.dir=straight").code == 0
    assert dlrun("train", *words, "run.dir=paused", "trainer.stop_after=1").code == 0
    told = json.loads(Path("paused/result.json").read_text())
    assert (told["status"], told["epochs"], "test_acc" in told) == ("paused", 1, False)
    assert dlrun("resume", "paused").code == 0
    first, second = (torch.load(f"{f}/checkpoints/last.pt", weights_only=True) for f in ("straight", "paused"))
    assert all(torch.equal(first["model"][k], second["model"][k]) for k in first["model"])
    assert (
        json.loads(Path("paused/result.json").read_text())["test_loss"]
        == (json.loads(Path("straight/result.json").read_text())["test_loss"])
    )


@pytest.mark.slow
def test_a_best_value_at_an_edge_is_searched_beyond(here: Path, dlrun: Callable[..., Outcome]) -> None:
    words = ("optimizer.lr=1e-5,1e-4,1e-3", "search.max_extend=1", "trainer.epochs=4", "dataset.limit=300")
    words = (*TINY, *words, "sweep.dir=s")
    outcome = dlrun("train", "-m", *words)
    assert outcome.code == 0, outcome.err
    (edge,) = (line for line in outcome.out.splitlines() if line.startswith("edge: "))
    assert " high edge " in edge
    assert "1e-05 to 0.001" in edge
    assert len(rows(here / "s")) == 3
    outcome = dlrun("train", "-m", *words, "search.extend=true")
    assert outcome.code == 0, outcome.err
    assert sorted(float(r["optimizer.lr"]) for r in rows(here / "s").values()) == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    assert len(sweep_folder.plan(here / "s")["rounds"]) == 2


def test_stages_promote_narrow_and_grow(here: Path, dlrun: Callable[..., Outcome]) -> None:
    words = ("optimizer.lr=loguniform:1e-4:1", "search.trials=4", "search=staged", "search.fresh=0.5")
    stages = "search.stages=[{epochs: 1, keep: 1.0}, {epochs: 2, keep: 0.5}, {epochs: 0, keep: 0.5}]"
    outcome = dlrun("train", "-m", *words, stages, *TINY, "trainer.epochs=3", "sweep.dir=s")
    assert outcome.code == 0, outcome.out + outcome.err
    table = rows(here / "s")
    epochs = sorted(int(row["epochs"]) for row in table.values())
    assert len(table) == 6  # four, and half as many new as go on in each later stage
    assert epochs[-3:] == [3, 3, 3]
    assert epochs[:2] == [1, 1]
    assert sum(row["status"] == "completed" for row in table.values()) == 3
    assert {row["status"] for row in table.values()} == {"completed", "pruned"}
    rounds = sweep_folder.plan(here / "s")["rounds"]
    assert [(r["stage"], r["new"], len(r["kept"])) for r in rounds] == [(1, 4, 0), (2, 1, 2), (3, 1, 2)]
    low, high = rounds[1]["axes"][0]["low"], rounds[1]["axes"][0]["high"]
    assert 1e-4 <= low < high <= 1
    assert (low, high) != (1e-4, 1)
    assert low <= float(table["4"]["optimizer.lr"]) <= high
    # a stage is ranked by the better of raw and averaged weights: the schedule hides what the raw ones will come to
    first = {n: reading.metrics(here / f"s/{n:04d}")[0] for n in range(4)}
    score = {n: max(float(row["val_acc"]), float(row["ema_val_acc"])) for n, row in first.items()}
    assert sorted(score[n] for n in rounds[1]["kept"]) == sorted(score.values())[2:]
    assert all(reading.config(here / f"s/{n:04d}")["trainer"]["ema"] == 0.99 for n in range(6))
    told = re.findall(r"^  (\d{4})  val_acc", outcome.out, re.MULTILINE)
    completed = {f"{int(n):04d}" for n, row in table.items() if row["status"] == "completed"}
    assert set(told) == completed  # what was left after an epoch is not among the three best
    assert re.search(r"^  dlrun train -m .*trainer\.ema=0\.99 .*seed=1,2,3,4,5$", outcome.out, re.MULTILINE)
    logs = [(here / f"s/{n:04d}/log.txt").read_text() for n in rounds[1]["kept"]]
    assert all("resuming after epoch 1 of 3" in log for log in logs)  # from their checkpoints
    assert dlrun("resume", "s").code == 0
    assert rows(here / "s") == table
