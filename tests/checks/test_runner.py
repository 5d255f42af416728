"""The runner of the checks: choice, budget, receipts, no trace, and how results are shown."""

from __future__ import annotations

import io
import json
import math
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dlrun import checks, cli
from dlrun.checks import runner
from dlrun.checks.result import Result, Verdict
from dlrun.training.experiment import Experiment, build
from dlrun.vocabulary import Outcome
from support.composed import composed
from support.counted import CHEAP, built, replaced


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_only_and_skip_choose() -> None:
    assert [r.check for r in checks.run(built())] == ["loss", "initial_loss", "overfit"]
    assert [r.check for r in checks.run(built("check.skip=[overfit]"))] == ["loss", "initial_loss"]


def test_what_does_not_fit_the_budget_is_skipped_never_passed() -> None:
    results = checks.run(built("check.budget=0.0"))
    assert {r.status for r in results} == {"skip"}
    assert all("check.budget" in r.message for r in results)
    assert "3 not run" in checks.summary(results)


def test_the_last_line_counts_what_ran_out_of_time_and_what_could_not_judge() -> None:
    def result(status: str, value: str = "", message: str = "") -> Result:
        return Result(Outcome(status), value, "", message, check="any")

    short = result("skip", "accuracy 0.33", "raise check.budget")
    results = [
        result("pass"),
        short,
        short,
        result("skip", "not run", "see `outputs`"),
        result("skip", "", "undecided"),
    ]
    line = checks.summary([*results, result("skip", "off")])
    assert {"1 passed", "3 not run", "1 undecided", "1 off"} <= {
        w.partition(" (")[0] for w in line.split(": ")[1].split(", ")
    }
    assert "check.budget" in line
    assert "check.budget" not in checks.summary([r for r in results if r is not short])


def test_a_budget_buys_the_first_checks_and_skips_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(exp: Experiment, *_: float) -> Verdict:
        clock.now += 40.0
        return Verdict("pass", "", "", "")

    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(runner, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    for name in ("loss", "initial_loss", "overfit"):
        replaced(monkeypatch, name, slow)
    results = checks.run(built("check.budget=60", "check.fresh=true"))
    assert [(r.check, r.status) for r in results] == [("loss", "pass"), ("initial_loss", "pass"), ("overfit", "skip")]
    assert "check.budget=60" in results[-1].message
    assert not list(Path("outputs").rglob(".receipts/*overfit*"))
    assert [r.status for r in checks.run(built("check.budget=60"))] == ["pass", "pass", "pass"]  # two remembered


@pytest.mark.parametrize("check", ["overfit", "garbage", "gradient"])
def test_a_check_ends_when_the_time_is_up_and_says_skip(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    # plain images of noise, so that garbage does not pass at its first look
    words = ("dataset.limit=400", "check.fresh=true", f"check.only=[{check}]", "model.activation=sigmoid")
    began = time.perf_counter()
    (found,) = checks.run(built(*words, "model.width=32", "check.budget=0.003"))
    assert time.perf_counter() - began < 10
    assert (found.status, "check.budget" in found.message) == ("skip", True), found
    assert not list(Path("outputs").rglob(f".receipts/*{check}*"))


def test_checks_leave_no_trace() -> None:
    exp = built("regularizer=dropout", "check.only=[]", "check.skip=[garbage]")
    state = {k: v.clone() for k, v in exp.model.state_dict().items()}
    random_state = torch.get_rng_state()
    checks.run(exp)
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in exp.model.state_dict().items())
    assert exp.optimizer.state_dict()["state"] == {}
    assert all(p.grad is None for p in exp.model.parameters())


def test_what_a_check_draws_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawing(exp: Experiment) -> Verdict:
        torch.rand(3), np.random.rand(3), random.random()
        raise RuntimeError("in the middle")

    replaced(monkeypatch, "loss", drawing)
    exp = built("check.only=[loss]")
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    checks.run(exp)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1], before[2]) == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, KeyError, ZeroDivisionError, NameError])
def test_an_error_inside_a_check_is_its_finding(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def broken(exp: Experiment) -> Verdict:
        raise error("shapes differ here\nmore")

    replaced(monkeypatch, "loss", broken)
    result = checks.run(built("check.only=[loss]"))[0]
    assert result.status == "fail"
    assert "shapes differ here" in result.message
    assert "\n" not in result.message


def test_a_model_without_usable_logits_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, "outputs", lambda exp: Verdict("fail", "(4, 3)", "(4, 10)", "give ten"))
    results = {r.check: r for r in checks.run(built("check.only=[outputs,loss,overfit,labels]"))}
    assert {name: r.status for name, r in results.items()} == {
        "labels": "pass", "outputs": "fail", "loss": "skip", "overfit": "skip"
    }  # fmt: skip
    assert "outputs" in results["overfit"].message


def test_a_gradient_check_that_ran_out_of_time_is_no_pass_and_leaves_no_receipt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = sys.modules["dlrun.checks.gradient.check"]

    compared = module._compared

    def late(slopes: Any, phase: str, found: Any, deadline: float) -> Any:
        if phase == "burn-in":  # time runs out here
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: math.inf))
        return compared(slopes, phase, found, deadline)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_compared", late)
        first = checks.run(built("check.only=[gradient]"))[0]
    assert (first.status, "burn-in" in first.message) == ("skip", True)
    monkeypatch.setattr(module, "time", time)
    again = checks.run(built("check.only=[gradient]"))[0]
    assert (again.status, "ago" in again.message) == ("pass", False)


def test_a_squeeze_that_eats_the_batch_of_one_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = built("check.only=[independence]")
    forward = exp.model.forward
    monkeypatch.setattr(type(exp.model), "forward", lambda self, x: type(self).whole(self, x).squeeze(), raising=False)
    monkeypatch.setattr(type(exp.model), "whole", forward.__func__, raising=False)
    result = checks.run(exp)[0]
    assert (result.status, "(10,)" in result.message) == ("fail", True)


def test_json_prints_what_checks_csv_holds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["dlrun", "check", "--json", *CHEAP, "check.skip=[overfit]"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    rows = json.loads(capsys.readouterr().out)
    assert [r["check"] for r in rows] == ["loss", "initial_loss"]
    assert list(rows[0]) == ["check", "status", "value", "expected", "message", "seconds"]


@pytest.mark.parametrize(("more", "code"), [((), 3), (("--json",), 3), (("check.warn_only=true",), 0)])
def test_a_failed_check_is_exit_3_of_check_alone_as_well(dlrun: Any, more: tuple[str, ...], code: int) -> None:
    words = ("check.only=[optimizer]", "optimizer.lr=0.0", "dataset.limit=120", "trainer.threads=1")
    found = dlrun("check", *words, *more)
    assert found.code == code, found
    assert "lr 0" in found.out
    assert "optimizer.lr=1e-3" in found.out


def test_the_table_says_of_each_check_what_it_found_and_what_to_try() -> None:
    from rich.console import Console

    results = checks.run(built("check.only=[optimizer,loss]", "optimizer.lr=0.0"))
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(checks.table(results))
    head, *rows = console.export_text().splitlines()
    assert head.split()[:3] == ["check", "measured", "expected"]
    assert [row.split()[:2] for row in rows if not row.startswith(" ")] == [["loss", "pass"], ["optimizer", "fail"]]
    assert "try optimizer.lr=1e-3" in rows[-1]


def test_an_error_names_the_line_of_the_users_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "linenet.py").write_text(
        "from torch import nn\n\n\nclass LineNet(nn.Linear):\n    def __init__(self, in_channels, num_classes):\n"
        "        super().__init__(64, num_classes)\n\n    def forward(self, x):\n        return super().forward(x)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    words = ("model=custom", "model._target_=linenet.LineNet", "trust=[linenet]", "check.only=[outputs]")
    (found,) = checks.run(build(composed("dataset.limit=120", "trainer.threads=1", *words)))
    assert found.status == "fail"
    assert "(4, 1, 8, 8) at linenet.py:9: " in found.message


def test_checks_that_are_switched_off_are_refused_and_not_run(dlrun: Any) -> None:
    found = dlrun("check", *CHEAP, "check=none")
    assert found.code == 2
    assert "check=none" in found.err
    assert len(found.err.strip().splitlines()) == 1
