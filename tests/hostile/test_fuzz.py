"""Stored files made wrong at random, with a fixed seed: a command ends in one line or leaves them out.

No traceback, no internal error, no command that takes more than 20 s of processor time, no signal, no other file
changed. 2,000 inputs in the suite, 20,000 with `-m slow`.
"""

from __future__ import annotations

import os
import shutil
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlrun.data import tar_lists
from dlrun.data.packs import SIZE
from dlrun.errors import UserError
from dlrun.reports import figures
from support import tars
from support.fuzz_runner import Choices, cases, faults
from support.stored import write

PLAN = """version: 1
fixed: [trainer.threads=1, dataset.limit=60, model.width=4, check=none, trainer.report=false, trainer.epochs=1]
search: {sampler: grid, trials: 0, seed: 0, metric: val_acc, direction: auto, prune: none, timeout: 0.0, retries: 1,
  extend: false, max_extend: 2, stages: [], average: 0.0, fresh: 0.25}
flags: {--multirun: null}
axes:
- {key: optimizer.lr, words: ['0.001', '0.01'], low: 0.0, high: 0.0, log: false, whole: false, group: false}
rounds:
- stage: 1
  epochs: 0
  first: 0
  new: 2
  axes:
  - {key: optimizer.lr, words: ['0.001', '0.01'], low: 0.0, high: 0.0, log: false, whole: false, group: false}
  kept: []
  grown: 0
  said: []
"""
READ = ("home",)
SHARDS = find_spec("webdataset") is not None  # without the extra no command reads a table of tar members
# the files of a run by the commands that read them: words, folders that may change, how often
QUICK: Choices = [
    (("compare", "runs"), ("outputs",), 6),
    (("list", "runs"), (), 4),
    (("diff", "runs/a", "runs/b"), (), 4),
    (("board", "runs", "--out", "outputs/board.html"), ("outputs",), 3),
    (("rm", "runs/a"), (), 1),
    (("rm", "--failed", "runs"), (), 1),
    (("compare", "runs", "--json", "--all"), ("outputs",), 1),
    (("compare", "runs", "--latex", "--group-seeds"), ("outputs",), 1),
]
REPORT: Choices = [(("report", "runs/a"), ("runs",), 1)]
RESUME: Choices = [(("resume", "paused"), ("paused", "outputs"), 1)]
PREDICT: Choices = [(("predict", "runs/a", "home/x.npy", "--out", "outputs/p.csv", "--force"), ("outputs",), 1)]
JOINED: Choices = [(("ensemble", "runs", "--out", "outputs/e"), ("outputs",), 1)]
EVALUATE: Choices = [(("evaluate", "runs/a", "--out", "outputs/v"), ("outputs",), 1)]
EXPORT: Choices = [(("export", "runs/a", "--to", "torch_export", "--out", "outputs/m.pt2"), ("outputs",), 0.1)]
SUSPECTS: Choices = [(("suspects", "runs", "--out", "outputs/s"), ("outputs",), 1)]
REPEAT: Choices = [(("train", "--from", "runs/a", "--cfg", "job", "--resolve"), (), 1)]
SCORED: Choices = [(("report", "ev"), ("ev",), 1)]
OPTIONS: Choices = [
    (("explain", "model", "model=mine"), (), 6),
    (("explain", "trainer.epochs", "experiment=mine"), (), 6),
    (("trust", "."), (), 6),
    (("train", "experiment=mine", "model=mine", "--cfg", "job", "--resolve"), (), 1),
    (("train", "model=mine", "--help"), (), 0.2),
    (("train", "--from", "conf/experiment/mine.yaml", "--cfg", "job"), (), 0.5),
]
TABLE: Choices = [
    (("evaluate", "photo", "photos/t.csv", "--out", "outputs/v"), ("outputs",), 1),
    (("predict", "photo", "photos/t.csv", "--out", "outputs/p.csv", "--force"), ("outputs",), 1),
    (("train", "--from", "photo", "run.dir=outputs/n"), ("outputs", "cache"), 0.5),
    (("resume", "halfway"), ("halfway", "outputs", "cache"), 0.5),
]
CACHED: Choices = [(words, ("outputs", "cache", "halfway"), often) for words, _, often in TABLE[2:]]
TARS: Choices = [
    (("train", "--from", "tarred", "run.dir=outputs/n"), ("outputs", "listed"), 0.5),
    (("resume", "midway"), ("midway", "outputs", "listed"), 0.5),
]


def times(found: Choices, weight: float) -> Choices:
    return [(words, writes, weight * often) for words, writes, often in found]


def table(slow: float) -> dict[str, Choices]:
    """Which commands read each file; `slow` is the weight of those that draw, train or predict."""
    found: dict[str, Choices] = {
        "runs/a/result.json": QUICK + times(REPORT + JOINED + PREDICT + EVALUATE, slow),
        "runs/a/config.yaml": QUICK + times(PREDICT + EVALUATE + EXPORT + SUSPECTS + REPEAT, slow),
        "runs/a/metrics.csv": QUICK + times(REPORT, 2 * slow),
        "runs/a/checks.csv": times(QUICK, 0.2) + times(REPORT, slow),
        "runs/a/layers.csv": times(QUICK, 0.2) + times(REPORT, slow),
        "runs/a/per_class.csv": times(QUICK, 0.2) + times(REPORT, slow),
        "runs/a/predictions.npz": times(QUICK, 0.1) + times(REPORT + JOINED + SUSPECTS + EVALUATE, 2 * slow),
        "runs/a/probe.npz": times(QUICK, 0.01) + times(PREDICT + EVALUATE + EXPORT, slow),
        "runs/a/showcase.npz": times(QUICK, 0.2) + times(REPORT, slow),
        "runs/a/histograms.npz": times(QUICK, 0.2) + times(REPORT, slow),
        "runs/a/checkpoints/best.pt": times(QUICK, 0.1) + times(PREDICT + EVALUATE + EXPORT, slow),
        "paused/checkpoints/last.pt": [*times(RESUME, slow), (("compare", "paused"), ("outputs",), 1)],
        "paused/config.yaml": [*times(RESUME, slow), (("compare", "paused"), ("outputs",), 1)],
        "paused/metrics.csv": [*times(RESUME, slow), (("compare", "paused"), ("outputs",), 1)],
        "paused/result.json": [*times(RESUME, slow), (("list", "paused"), (), 1)],
        "sweep/sweep.yaml": [
            (("compare", "sweep"), ("outputs",), 3),
            (("list", "."), (), 1),
            (("resume", "sweep"), ("sweep", "outputs"), slow),
            (("report", "sweep"), ("sweep", "outputs"), slow),
        ],
        "sweep/study.journal": [
            (("compare", "sweep"), ("outputs",), 2),
            (("list", "."), (), 2),
            (("resume", "sweep"), ("sweep", "outputs"), 10 * slow),
        ],
        "sweep/0000/result.json": [
            (("compare", "sweep"), ("outputs",), 3),
            (("resume", "sweep"), ("sweep", "outputs"), slow),
            (("report", "sweep"), ("sweep", "outputs"), slow),
        ],
        "sweep/0000/metrics.csv": [
            (("board", "sweep", "--out", "outputs/b.html"), ("outputs",), 3),
            (("report", "sweep"), ("sweep", "outputs"), slow),
        ],
        "ens/ensemble.yaml": [
            (("compare", "ens"), ("outputs",), 3),
            (("list", "ens"), (), 1),
            (("report", "ens"), ("ens",), slow),
            (("predict", "ens", "home/x.npy", "--out", "outputs/p.csv", "--force"), ("outputs",), slow),
        ],
        "ens/result.json": [(("compare", "ens"), ("outputs",), 3), (("report", "ens"), ("ens",), slow)],
        "ens/table.csv": [(("report", "ens"), ("ens",), slow), (("list", "ens"), (), 1)],
        "conf/model/mine.yaml": OPTIONS,
        "conf/experiment/mine.yaml": OPTIONS,
        "photos/t.csv": times(TABLE, slow),
        "cache/*.pack": times(CACHED, slow),
        "cache/*.index": times(CACHED, slow),
        **({"listed/*.members": times(TARS, slow)} if SHARDS else {}),
        "halfway/identity.npz": times(TABLE[3:], slow),
    }  # fmt: skip
    names = ("result.json", "predictions.npz", "showcase.npz", "per_class.csv", "calibration.csv", "errors.csv")
    return found | {f"ev/{name}": times(SCORED, slow) for name in names}


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, one that waits, a sweep, an ensemble, and the user's own files beside them."""
    import numpy as np

    from dlrun import cli

    donors = tmp_path_factory.mktemp("fuzz") / "donors"
    place = donors.with_name("place")  # the name of a cache's entry has the folder of the images in it
    place.mkdir()
    _photos(place / "photos")
    tars.tar(place / "tars/t.tar", tars.labelled(range(24)))
    few = ["train", "trainer.threads=1", "model.width=4", "check=none", "trainer.report=false"]
    digits = [*few, "dataset.limit=60", "trainer.epochs=2"]
    tarred = [*few, "dataset=shards", "dataset.urls=tars/t.tar", "dataset.cache=listed", "trainer.epochs=2"]
    table = [*few, "dataset=table", "dataset.csv=photos/t.csv", "dataset.cache=cache", "trainer.epochs=2"]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        lists_of_copies(patched)

        def call(*words: str) -> None:
            patched.setattr("sys.argv", ["dlrun", *words])
            with pytest.raises(SystemExit) as ending:
                cli.main()
            assert not ending.value.code

        call(*digits, "run.dir=runs/a")
        call(*digits, "trainer.stop_after=1", "run.dir=paused")
        call(*table, "trainer.epochs=1", "run.dir=photo")
        call(*table, "trainer.stop_after=1", "run.dir=halfway")
        if SHARDS:
            call(*tarred, "trainer.epochs=1", "run.dir=tarred")
            call(*tarred, "trainer.stop_after=1", "run.dir=midway")
        shutil.copytree("runs/a", "runs/b")
        call("ensemble", "runs", "--out", "ens")
        call("evaluate", "runs/a", "--out", "ev")
        shutil.rmtree("outputs")
    for number in range(2):
        shutil.copytree(place / "runs/a", place / f"sweep/{number:04d}")
    write(place / "sweep/sweep.yaml", PLAN)
    _journal(place / "sweep/study.journal")
    for left in (*place.glob("*/plots"), *place.glob("runs/*/plots")):
        shutil.rmtree(left)
    write(place / "runs/a/checks.csv", "check,status,value,expected,message,seconds\nloss,pass,2.3,2.3,fine,0.1\n")
    write(place / "home/bashrc", "export A=1\n")
    np.save(place / "home/x.npy", np.zeros((3, 8, 8), np.uint8))
    write(place / "conf/model/mine.yaml", "# my network\ndefaults: [cnn]\nwidth: 8\nnorm: none\n")
    write(
        place / "conf/experiment/mine.yaml",
        "# what I try\nmodel: mlp\ntrainer: {epochs: 3}\noptimizer:\n  lr: 0.01  # [0..1] mine\n",
    )
    (place / "outputs").mkdir()
    place.rename(donors)
    return donors


def _photos(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    lines = [f"{number}.png,{'cat' if number % 2 else 'dog'},p{number // 2}" for number in range(24)]
    write(folder / "t.csv", "\n".join(["image_id,label,patient", *lines]) + "\n")


def _journal(file: Path) -> None:
    from dlrun.search.space import Axis
    from dlrun.search.storage import Storage
    from dlrun.search.study import Study

    assert file.name == "study.journal"
    study = Study(Storage(file.parent), "val_acc", False, 0, "none", 1)
    axis = Axis("optimizer.lr", ("0.001", "0.01"))
    for number in range(2):
        trial = study.add(number, {"optimizer.lr": axis.choices[number]}, [axis])
        study.report(trial, 1, 0.5)
        study.close(trial, "completed", 0.5)


def lists_of_copies(patched: pytest.MonkeyPatch) -> None:
    """A copy of a tar is the same tar: the lists of its members are read, as those of a tar that did not change."""
    known = tar_lists._stat

    def about(path: Path) -> tuple[Any, bytes]:
        shard, _ = known(path)
        return shard, blake2b(f"{path} {shard and shard.size}".encode(), digest_size=SIZE).hexdigest().encode()

    patched.setattr(tar_lists, "_stat", about)
    patched.setattr(tar_lists, "UNSETTLED", -60.0)


def no_processes() -> None:
    """A sweep that would train a trial ends there."""
    from dlrun.search.launchers import pool

    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("no process here")

    pool.subprocess = SimpleNamespace(Popen=refuse, DEVNULL=-3, PIPE=-1)  # type: ignore[assignment]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are composed, not drawn: drawing takes a hundred times as long as reading."""
    from dlrun.search.launchers import pool

    lists_of_copies(monkeypatch)
    monkeypatch.setattr(pool, "subprocess", pool.subprocess)  # put back afterwards
    no_processes()
    monkeypatch.setattr(figures, "figure_bytes", lambda *_, **__: b"\x89PNG")


@pytest.mark.usefixtures("undrawn")
def test_wrong_files_end_in_a_line_each(donors: Path) -> None:
    found = [*cases(2000, table(slow=0.005), seed=1)]
    assert faults(found, donors, donors.with_name("place")) == []


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("part", range(10))
def test_twenty_thousand_wrong_files_end_in_a_line_each(donors: Path, part: int) -> None:
    found = [*cases(2000, table(slow=0.05), seed=100 + part)]
    assert faults(found, donors, donors.with_name("place")) == []


@pytest.mark.parametrize(("fault", "told"), [("raise ValueError('x')", "ValueError"), ("os.abort()", "signal 6")])
def test_the_fuzzer_finds_what_it_looks_for(
    donors: Path, monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    def broken(*_: Any) -> None:
        exec(fault, {"os": os})

    monkeypatch.setattr("dlrun.folders.record.expect", broken)
    monkeypatch.setattr("dlrun.folders.reading.expect", broken)
    found = [*cases(40, {"runs/a/metrics.csv": QUICK[:1]}, seed=2)]
    lines = faults(found[:2], donors, donors.with_name("place"))
    assert len(lines) == 2
    assert all(told in line for line in lines)
