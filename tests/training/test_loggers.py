"""The copies of a run's numbers in TensorBoard and MLflow: the same as in metrics.csv, each epoch once."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlrun.config import extras
from dlrun.config.settings import Settings
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders.run import claim, reopen
from dlrun.run import execute
from dlrun.training import checkpoint, loggers
from support.commands import without_torch
from support.composed import SMALL, composed

KINDS = ("tensorboard", "mlflow")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip(request.param, reason=f"the extra {request.param} is not installed")
    # the folder is the store that needs no database; new versions want to be asked for it
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    return str(request.param)


def copies(kind: str, folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every number that the logger has of a run: by name, epoch and value."""
    if kind == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=False).Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    client, run = mlflow_run(folder)
    return {n: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, n)] for n in run.data.metrics}


def mlflow_run(folder: Path) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("dlrun").experiment_id])
    assert run.info.run_id == reading.stored(folder)["mlflow_run"]
    return client, run


def must_be_the_same(kind: str, folder: Path, scores: bool = True) -> None:
    found, rows = copies(kind, folder), reading.metrics(folder)
    expected = {
        column: [(int(row["epoch"]), pytest.approx(float(row[column]), rel=1e-6)) for row in rows if row[column]]
        for column in rows[0]
        if column != "epoch"
    }
    if scores:
        result = reading.stored(folder)
        last = int(rows[-1]["epoch"])
        expected |= {n: [(last, pytest.approx(result[n], rel=1e-6))] for n in ("test_loss", "test_acc")}
    assert found == expected


def test_a_logger_has_every_number_of_metrics_csv_and_what_came_of_it(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    cfg = composed(*SMALL, f"logger={kind}", "trainer.epochs=3", "optimizer.lr=1e-7")
    assert execute.execute(cfg, claim(str(folder), "test")) == 0
    must_be_the_same(kind, folder)
    assert "flat" in str(reading.stored(folder)["verdicts"])
    if kind == "mlflow":
        _, run = mlflow_run(folder)
        assert run.info.status == "FINISHED"
        assert run.data.params["optimizer.lr"] == "1e-07"
        assert run.data.tags["verdicts"] == "flat"
        assert "try `optimizer.lr=" in run.data.tags["mlflow.note.content"]
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        text = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
        assert "lr: 1.0e-07" in text["config/text_summary"]
        assert "try `optimizer.lr=" in text["verdicts/text_summary"]


@pytest.mark.parametrize("after", ["last.pt", "metrics.csv"])
def test_a_killed_and_resumed_run_has_each_epoch_once(kind: str, after: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    cfg = composed(*SMALL, f"logger={kind}", "trainer.epochs=4")
    real = checkpoint.write

    def dying(run: Any, content: Any, **more: Any) -> None:
        if content["epoch"] < 3:
            return real(run, content, **more)
        if after == "last.pt":  # the epoch counts, and no logger has heard of it
            real(run, content, **more)
        raise SystemExit  # not caught, not even to close the logger

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", dying)
        patch.setattr(loggers.Follower, "close", lambda self: None)
        with pytest.raises(SystemExit):
            execute.execute(cfg, claim(str(folder), "test"))
    assert [epoch for epoch, _ in copies(kind, folder)["train_loss"]] == [1, 2]
    assert execute.execute(cfg, reopen(str(folder)), resuming=True) == 0
    must_be_the_same(kind, folder)


def test_a_run_that_diverges_is_there_as_a_failure(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("optimizer=sgd", "optimizer.lr=1e30", "model.norm=none")
    assert execute.execute(composed(*SMALL, *words, f"logger={kind}"), claim(str(folder), "test")) == 4
    assert copies(kind, folder) == {}
    if kind == "mlflow":
        assert mlflow_run(folder)[1].info.status == "FAILED"


def test_a_logger_that_fails_costs_one_line_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *_: Any) -> None:
            raise ConnectionError("no server at home\nat all")

    monkeypatch.setattr(loggers, "_MLflow", Broken)
    monkeypatch.setattr(extras, "require_logger", lambda cfg: None)
    folder = tmp_path / "run"
    cfg = composed(*SMALL, "logger=mlflow")
    assert execute.execute(cfg, claim(str(folder), "test")) == 0
    log = (folder / "log.txt").read_text()
    assert len(re.findall(r"logger=mlflow .*\bmetrics\.csv\b.*: no server at home\n", log)) == 1
    assert len(reading.metrics(folder)) == 2


def test_a_missing_package_is_one_line_that_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlrun.config.extras.find_spec", lambda name: None)
    for kind in KINDS:
        with pytest.raises(UserError) as caught:
            composed(*SMALL, f"logger={kind}")
        assert f"type pip install 'dlrun[{kind}]'" in str(caught.value)
    assert composed(*SMALL).logger["kind"] == "none"


def test_the_missing_package_is_missed_before_torch_and_before_a_folder(here: Path) -> None:
    absent = [kind for kind in KINDS if find_spec(kind) is None]
    if not absent:
        pytest.skip("tensorboard and mlflow are both installed")
    commands = [("train", *SMALL, f"logger={kind}") for kind in absent]
    for kind, done in zip(absent, without_torch(commands, here), strict=True):
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert re.match(rf"dlrun: logger={kind}: .*\b{kind}\b.*\bpip install\b", done.err)
    assert not (here / "outputs").exists()


def test_without_a_logger_nothing_is_written_and_an_old_run_needs_none(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(path=tmp_path)
    follower = loggers.Follower(Settings.of({}), run, lambda text: pytest.fail(text))
    follower.follow([{"epoch": 1, "train_loss": 0.5}])
    follower.close()
    assert list(tmp_path.iterdir()) == []
