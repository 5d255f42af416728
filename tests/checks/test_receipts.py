"""Receipts: a setup is checked once, and anything that a check depends on makes it run again (C1-C10)."""

from __future__ import annotations

import copy
import csv
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlrun import checks
from dlrun.checks import receipts, runner
from dlrun.checks.check import Check
from dlrun.training.experiment import build
from support.composed import alter, composed
from support.counted import CHEAP, built, counted


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_same_setup_is_proved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = counted(monkeypatch)
    first = checks.run(built())
    assert ran == ["loss", "initial_loss", "overfit"]
    again = checks.run(built("seed=7", "optimizer.lr=0.5", "trainer.epochs=3"))
    assert ran == ["loss", "initial_loss", "overfit"]
    assert [(r.status, r.value) for r in again] == [(r.status, r.value) for r in first]
    for one, other in zip(first, again, strict=True):
        assert other.message.startswith(f"{one.message}; passed ")
        assert other.message.endswith(" ago")


@pytest.mark.parametrize(
    "change",
    ["model.width=8", "loss=hinge", "regularizer=l2", "dataset.limit=130", "dataset.split_seed=1", "check.fresh=true"],
)
def test_anything_that_a_check_depends_on_invalidates_its_receipt(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    only = "check.only=[loss,initial_loss]"
    checks.run(built(only))
    ran = counted(monkeypatch)
    checks.run(built(only, change))
    assert ran == ["loss", "initial_loss"]


def test_other_data_under_the_same_config_invalidates_receipts(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    words = ("dataset=arrays", "dataset.path=mine.npz", "trainer.threads=1", "check.only=[loss]", "model=mlp")
    ran = counted(monkeypatch)
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8), np.arange(60) % 3
    for changed, expected in ((False, 1), (False, 1), (True, 2)):
        x[0, 0, 0, 0] ^= changed
        np.savez("mine.npz", x=x, y=y)
        checks.run(build(composed(*words)))
        assert len(ran) == expected


def test_a_receipt_depends_on_each_part_of_the_config_that_a_check_may_see() -> None:
    setup = receipts.setup(built())

    def matters(part: str, check: Check) -> bool:
        changed = copy.deepcopy(setup)
        changed["config"][part] = "another"
        return receipts.key(check, changed) != receipts.key(check, setup)

    parts = ("model", "loss", "dataset", "regularizer", "objective", "augment")
    assert [p for p in parts if not all(matters(p, check) for check in runner.CHECKS.values())] == []
    own = ("optimizer", "scheduler", "trainer")
    dependent = {n for n, c in runner.CHECKS.items() if any(matters(p, c) for p in own)}
    assert {"optimizer", "schedule"} <= dependent
    assert not dependent & {"overfit", "garbage", "gradient"}  # a sweep over rates runs these once
    assert not any(matters(p, runner.CHECKS["optimizer"]) for p in ("seed", "check", "search"))


@pytest.mark.parametrize("what", ["torch.__version__", "dlrun.__version__", "precision", "dlrun.checks.chance"])
def test_versions_precision_and_the_checks_own_code_are_in_a_receipt(
    monkeypatch: pytest.MonkeyPatch, what: str, folder: Path
) -> None:
    exp = built("check.only=[loss]")
    before = receipts.key(runner.CHECKS["loss"], receipts.setup(exp))
    assert receipts.key(runner.CHECKS["loss"], receipts.setup(exp)) == before
    if what.endswith("version__"):
        monkeypatch.setattr(what, "99.0")
    elif what == "precision":
        alter(exp, dtype=torch.bfloat16)
    else:
        (folder / "other.py").write_text("changed = True\n")
        real = receipts.inspect.getsourcefile
        other = str(folder / "other.py")
        monkeypatch.setattr(
            receipts.inspect, "getsourcefile", lambda m: other if getattr(m, "__name__", "") == what else real(m)
        )
    assert receipts.key(runner.CHECKS["loss"], receipts.setup(exp)) != before


def test_a_check_that_steps_with_the_optimizer_depends_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    only = "check.only=[optimizer]"
    checks.run(built(only))
    ran = counted(monkeypatch)
    assert checks.run(built(only))[0].status == "pass"
    assert ran == []
    assert checks.run(built(only, "optimizer.lr=0.0"))[0].status == "fail"
    assert ran == ["optimizer"]


def test_a_sweep_over_rates_proves_a_setup_once(monkeypatch: pytest.MonkeyPatch) -> None:
    only = "check.only=[loss,parameters,optimizer]"
    checks.run(built(only, "optimizer.lr=0.001"))
    ran = counted(monkeypatch)
    again = checks.run(built(only, "optimizer.lr=0.002"))
    assert ran == ["optimizer"]  # whose verdict may differ
    assert [r.message.endswith(" ago") for r in again] == [True, True, False]
    assert [r.status for r in checks.run(built(only, "optimizer.lr=1e30"))] == ["pass", "pass", "fail"]


@pytest.mark.slow
def test_the_second_trial_of_a_real_sweep_and_a_later_run_are_shown_the_proof_of_the_first(dlrun: Any) -> None:
    words = (*CHEAP, "check.only=[loss,initial_loss]", "trainer.epochs=1", "trainer.report=false")
    found = dlrun("train", "-m", *words, "optimizer.lr=0.01,0.02", "hydra.launcher.workers=1", "sweep.dir=s")
    assert found.code == 0, found.err
    assert dlrun("train", *words, "optimizer.lr=0.03", "run.dir=later").code == 0
    told = []
    for run in (*sorted(p.parent for p in Path("s").glob("*/checks.csv")), Path("later")):
        with (run / "checks.csv").open() as file:
            told.append([(row["status"], row["message"].endswith(" ago")) for row in csv.DictReader(file)])
    assert told == [[("pass", False)] * 2, [("pass", True)] * 2, [("pass", True)] * 2]


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


def test_a_base_class_and_files_beside_it_invalidate_receipts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "usermodel.py").write_text("import userbase\nclass Net(userbase.Base):\n    pass\n")
    base = (
        "import userscale\n"
        "from torch import nn\n"
        "class Base(nn.Sequential):\n"
        "    def __init__(self, image_size, num_classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(image_size**2, num_classes))\n"
    )
    monkeypatch.syspath_prepend(folder)
    words = ("dataset.limit=120", "trainer.threads=1", "check.only=[loss]", "model=custom", "trust=[usermodel]")
    ran = counted(monkeypatch)
    for scale, text, expected in (("1", base, 1), ("1", base, 1), ("100", base, 2), ("100", f"{base}# new\n", 3)):
        (folder / "userscale.py").write_text(f"scale = {scale}\n")
        (folder / "userbase.py").write_text(text)
        checks.run(build(composed(*words, "model._target_=usermodel.Net")))
        assert len(ran) == expected
    for name in ("usermodel", "userbase", "userscale"):
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
        assert "fail" in [r.status for r in results]
    assert ran == ["initial_loss", "initial_loss"]


def test_receipts_tell_their_age(monkeypatch: pytest.MonkeyPatch) -> None:
    said = checks.run(built("check.only=[loss]"))[0].message
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 12 * 60)
    assert checks.run(built("check.only=[loss]"))[0].message == f"{said}; passed 12 min ago"


def test_a_remembered_warning_keeps_what_it_said() -> None:
    words = ("check.only=[lint_activation]", "model.activation=tanh")
    found, again = (checks.run(built(*words))[0] for _ in range(2))
    assert again.status == "warn"
    assert again.message.startswith(f"{found.message}; found ")
