"""`search.storage=…`: a sweep whose study is in a database, and whose password is nowhere."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlrun.errors import UserError
from dlrun.search.storage import Storage, expected, public, typed
from support.commands import TINY, Outcome
from support.moods import rows, start, wait_for
from support.postgres import server
from support.stored import write

URLS = [
    ("postgresql://me@host/db", "postgresql://me@host/db"),
    ("postgresql://me:geheim@host:5432/db", "postgresql://me@host:5432/db"),
    ("postgresql+psycopg://me:geheim@host/db", "postgresql+psycopg://me@host/db"),
    ("postgresql://me:geh%40eim@host/db", "postgresql://me@host/db"),
    ("postgresql://me:geh@eim@host/db", "postgresql://me@host/db"),  # refused, and not shown either
    ("postgresql://me:geh/eim:x@host/db", "postgresql://me@host/db"),
    ("postgresql://:geheim@host/db", "postgresql://@host/db"),
    ("postgresql://me@host/db?sslmode=require&password=geheim", "postgresql://me@host/db?sslmode=require"),
    ("postgresql://me@host/db?password=geheim&sslmode=require", "postgresql://me@host/db?sslmode=require"),
    ("sqlite:///file@home.db", "sqlite:///file@home.db"),
]


@pytest.mark.parametrize(("url", "shown"), URLS)
def test_what_is_shown_of_a_database_lacks_the_password(tmp_path: Path, url: str, shown: str) -> None:
    assert public(url) == shown
    storage = Storage(tmp_path, url)
    assert str(storage) == shown
    assert "geh" not in repr(storage)
    assert "geh" not in storage.told(ValueError(f"could not connect to {url}"))


@pytest.mark.parametrize(
    "url",
    [
        "geheim",
        "geheim.db",
        "mysql://me:geheim@host/db",
        "postgresql://me:geh@eim@host/db",
        "postgresql://me:geheim@host:port/db",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UserError) as refused:
        expected(url)
    assert "search.storage" in str(refused.value)
    assert "geh" not in str(refused.value) or "@" not in url


def test_only_what_was_typed_names_a_database(here: Path, dlrun: Callable[..., Outcome]) -> None:
    config: dict[str, Any] = {"search": {"storage": "postgresql://evil/db"}}
    with pytest.raises(UserError, match=r"only allowed .* search\.storage=…"):
        typed(["seed=1"], config)
    write(here / "conf/search/mine.yaml", "defaults: [auto]\nstorage: postgresql://evil/db\n")
    outcome = dlrun("train", "-m", "search=mine", "seed=1,2", *TINY)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith("dlrun: search.storage: ")


def states(url: str, name: str) -> list[str]:
    """The states of the trials of a study, as another program sees them."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.load_study(study_name=name, storage=url)
        return [trial.state.name for trial in study.get_trials() if "trial" in trial.user_attrs]


def test_two_sweeps_share_a_file_of_sqlite_and_each_resumes(here: Path, dlrun: Callable[..., Outcome]) -> None:
    words = ("seed=1,2", *TINY, "search.storage=sqlite:///studies.db")
    for name in ("a", "b"):
        outcome = dlrun("train", "-m", *words, f"sweep.dir={name}")
        assert outcome.code == 0, outcome.err
        assert not (here / name / "study.journal").exists()
    plans = [yaml.safe_load((here / name / "sweep.yaml").read_text()) for name in ("a", "b")]
    assert plans[0]["study"] != plans[1]["study"]
    for plan in plans:
        assert states("sqlite:///studies.db", plan["study"]) == ["COMPLETE"] * 2
    refused = dlrun("resume", "a")
    assert refused.code == 2
    assert refused.err.endswith(": dlrun resume a search.storage=sqlite:///studies.db\n")
    assert "(2 done)" in dlrun("resume", "a", "search.storage=sqlite:///studies.db").out
    (here / "studies.db").unlink()  # the folders of the trials are enough
    again = dlrun("resume", "a", "search.storage=sqlite:///studies.db")
    assert (again.code, "their folders: 2" in again.out) == (0, True), again.out
    assert states("sqlite:///studies.db", plans[0]["study"]) == ["COMPLETE"] * 2


@pytest.mark.slow
def test_a_sweep_in_postgresql_is_killed_and_resumed_and_its_password_is_nowhere(tmp_path: Path) -> None:
    password, written = "geh@eim/näh", "geh%40eim%2Fn%C3%A4h"
    with server(password) as at:
        url = f"postgresql://me:{written}@{at}"
        words = ("train", "-m", "seed=1,2,3", "search=tpe", "optimizer.lr=loguniform:1e-4:1", "search.trials=4")
        words += tuple(word for word in TINY if word != "trainer.report=false")
        words += ("hydra.launcher.workers=1", "sweep.dir=s")
        wrong = start(tmp_path, *words, f"search.storage=postgresql://me:geheim@{at}")
        said = [*wrong.communicate(timeout=120)]
        assert (wrong.returncode, said[1].count("\n")) == (2, 1), said
        assert "password authentication failed" in said[1]
        first = start(tmp_path, *words, f"search.storage={url}")
        wait_for(lambda: (tmp_path / "s/0001/result.json").exists(), first)
        first.kill()
        said += [*first.communicate()]
        lacking = start(tmp_path, "resume", "s")
        said += [*lacking.communicate(timeout=120)]
        assert f"dlrun resume s search.storage=postgresql://me@{at}" in said[-1]
        last = start(tmp_path, "resume", "s", f"search.storage={url}")
        said += [*last.communicate(timeout=300)]
        assert last.returncode == 0, said
        assert {row["status"] for row in rows(tmp_path / "s").values()} == {"completed"}
        assert len(rows(tmp_path / "s")) == 4
        name = yaml.safe_load((tmp_path / "s/sweep.yaml").read_text())["study"]
        assert states(f"postgresql+psycopg://me:{written}@{at}", name).count("COMPLETE") == 4
    assert (tmp_path / "s/report.html").exists()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    for secret in (password, written, "geh", "n\\u00e4h"):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
        assert not any(secret in text for text in said)


@pytest.mark.slow
def test_a_database_that_goes_away_ends_the_sweep_in_one_line(tmp_path: Path) -> None:
    with server("geheim") as at:
        words = ("train", "-m", "seed=1,2,3,4,5,6", *TINY, "hydra.launcher.workers=1", "sweep.dir=s")
        process = start(tmp_path, *words, f"search.storage=postgresql://me:geheim@{at}")
        wait_for(lambda: (tmp_path / "s/0000/result.json").exists(), process)
        os.kill(process.pid, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    assert err.count("\n") == 1
    assert "geheim" not in out + err
    assert "`dlrun resume s` continues" in err
