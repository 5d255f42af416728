"""The runner of the checks: choice, budget, receipts, no trace, and how results are shown."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import composed

from dlrun import checks, cli
from dlrun.checks import runner
from dlrun.checks.verdict import Verdict
from dlrun.experiment import Experiment, build

CHEAP = ("dataset.limit=120", "model.width=4", "trainer.threads=1", "check.only=[loss,initial_loss,overfit]")


def built(*overrides: str) -> Experiment:
    return build(composed(*CHEAP, *overrides))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count which checks really run."""
    ran: list[str] = []

    def watch(name: str, check: Any) -> Any:
        def call(exp: Experiment, *more: Any) -> Verdict:
            ran.append(name)
            found: Verdict = check(exp, *more)
            return found

        return call

    for name, check in list(runner.CHECKS.items()):
        monkeypatch.setitem(runner.CHECKS, name, watch(name, check))
    return ran


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


def test_the_same_setup_is_proved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = counted(monkeypatch)
    first = checks.run(built())
    assert ran == ["loss", "initial_loss", "overfit"]
    again = checks.run(built("seed=7", "optimizer.lr=0.5", "trainer.epochs=3"))
    assert ran == ["loss", "initial_loss", "overfit"]
    assert [(r.status, r.value) for r in again] == [(r.status, r.value) for r in first]
    assert all(r.message.startswith("passed, ") and r.message.endswith(" ago") for r in again)


@pytest.mark.parametrize(
    "change",
    ["model.width=8", "loss=hinge", "regularizer=l2", "dataset.limit=130", "dataset.split_seed=1", "check.fresh=true"],
)
def test_anything_that_a_check_depends_on_invalidates_its_receipt(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    checks.run(built())
    ran = counted(monkeypatch)
    checks.run(built(change))
    assert ran == ["loss", "initial_loss", "overfit"]


def test_a_check_that_steps_with_the_optimizer_depends_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    only = "check.only=[optimizer]"
    checks.run(built(only))
    ran = counted(monkeypatch)
    assert checks.run(built(only))[0].status == "pass"
    assert ran == []
    assert checks.run(built(only, "optimizer.lr=0.0"))[0].status == "fail"
    assert ran == ["optimizer"]


def test_the_code_of_a_users_model_invalidates_receipts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    code = (
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, image_size, num_classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(image_size**2, num_classes))\n"
    )
    monkeypatch.syspath_prepend(folder)
    words = ("dataset.limit=120", "trainer.threads=1", "check.only=[loss]", "model=custom", "model._target_=usernet.Net", "trust=[usernet]")  # fmt: skip  # noqa: E501
    (folder / "usernet.py").write_text(code)
    ran = counted(monkeypatch)
    for text, expected in ((code, 1), (code, 1), (code + "# changed\n", 2)):
        (folder / "usernet.py").write_text(text)
        importlib.invalidate_caches()
        sys.modules.pop("usernet", None)
        checks.run(build(composed(*words)))
        assert len(ran) == expected
    sys.modules.pop("usernet", None)


def test_a_file_that_a_users_model_leans_on_invalidates_receipts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (folder / "userpack").mkdir()
    (folder / "userpack" / "__init__.py").touch()
    (folder / "userpack" / "net.py").write_text(
        "from torch import nn\n"
        "from userpack import ops\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, image_size, num_classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(image_size**2, num_classes))\n"
    )
    monkeypatch.syspath_prepend(folder)
    words = ["dataset.limit=120", "trainer.threads=1", "check.only=[loss]"]
    words += ["model=custom", "model._target_=userpack.net.Net", "trust=[userpack]"]
    ran = counted(monkeypatch)
    for text, expected in (("", 1), ("", 1), ("changed = True\n", 2)):
        (folder / "userpack" / "ops.py").write_text(text)
        checks.run(build(composed(*words)))
        assert len(ran) == expected
    for name in ("userpack", "userpack.net", "userpack.ops"):
        sys.modules.pop(name, None)


def test_a_users_dataset_augmentation_and_optimizer_count_through_trust(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib
    import sys

    files = {
        "userdata.py": "from dlrun.data.datasets import digits\n",
        "useraugment.py": "def flip(x, generator=None):\n    return x.flip(-1)\n",
        "useroptim.py": "import torch\nclass Mine(torch.optim.Adam):\n    pass\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "conf" / "augment").mkdir(parents=True)
    (folder / "conf" / "augment" / "mine.yaml").write_text("_target_: useraugment.flip\n_partial_: true\n")
    monkeypatch.syspath_prepend(folder)
    words = ["dataset.limit=120", "trainer.threads=1", "check.only=[loss]", "augment=mine"]
    words += ["dataset._target_=userdata.digits", "optimizer._target_=useroptim.Mine"]
    words += ["trust=[userdata,useraugment,useroptim]"]
    ran = counted(monkeypatch)
    expected = 1
    for name in ("", "", *files):
        if name:
            (folder / name).write_text(files[name] + "# changed\n")
            expected += 1
        importlib.invalidate_caches()
        for module in files:
            sys.modules.pop(module.removesuffix(".py"), None)
        checks.run(build(composed(*words)))
        assert len(ran) == expected, name
    for module in files:
        sys.modules.pop(module.removesuffix(".py"), None)


def test_dlruns_version_invalidates_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    checks.run(built("check.only=[loss]"))
    ran = counted(monkeypatch)
    monkeypatch.setattr("dlrun.__version__", "99.0")
    checks.run(built("check.only=[loss]"))
    assert ran == ["loss"]


def test_a_failure_is_never_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = counted(monkeypatch)
    for _ in range(2):
        results = checks.run(built("check.only=[initial_loss]", "model.init=glorot_sigmoid", "model.norm=none", "model.depth=12"))  # fmt: skip  # noqa: E501
        assert checks.worst(results) == "fail"
    assert ran == ["initial_loss", "initial_loss"]


def test_receipts_tell_their_age(monkeypatch: pytest.MonkeyPatch) -> None:
    checks.run(built("check.only=[loss]"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 12 * 60)
    assert checks.run(built("check.only=[loss]"))[0].message == "passed, 12 min ago"


def test_checks_leave_no_trace() -> None:
    exp = built("regularizer=dropout", "check.only=[]", "check.skip=[garbage]")
    state = {k: v.clone() for k, v in exp.model.state_dict().items()}
    random_state = torch.get_rng_state()
    checks.run(exp)
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in exp.model.state_dict().items())
    assert exp.optimizer.state_dict()["state"] == {}
    assert all(p.grad is None for p in exp.model.parameters())


def test_an_error_inside_a_check_is_its_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(exp: Experiment) -> Verdict:
        raise RuntimeError("shapes do not fit\nmore")

    monkeypatch.setitem(runner.CHECKS, "loss", broken)
    result = checks.run(built("check.only=[loss]"))[0]
    assert result.status == "fail"
    assert "shapes do not fit" in result.message
    assert "\n" not in result.message


def test_json_prints_what_checks_csv_holds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["dlrun", "check", "--json", *CHEAP, "check.skip=[overfit]"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["check"] for r in rows] == ["loss", "initial_loss"]
    assert list(rows[0]) == ["check", "status", "value", "expected", "message", "seconds"]
