"""What a newcomer adds works everywhere after touching only the files that the design names.

In a copy of the package: a model, a check, a scheduler, an objective and a column of the comparison table, each with a
key whose range stands in its own YAML. They are found in help, in `dlrun explain`, by the rules, in tables and reports.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from dlrun.config.compose import builtin_conf
from support import warm

MODEL = '''"""One hidden layer, for this test."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Small"]


class Small(nn.Module):
    """A flat network with one hidden layer."""

    def __init__(self, in_channels: int, num_classes: int, image_size: int, hidden: int = 8) -> None:
        super().__init__()
        size = in_channels * image_size**2
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K)."""
        scores: Tensor = self.net(x)
        return scores
'''
MODEL_YAML = """# One hidden layer: dlrun train model=small model.hidden=16 (M1)
_target_: dlrun.models.small.Small
hidden: 8   # [1..64] units of the hidden layer
"""
SCHEDULER = '''

def sawtooth(t: float, epochs: float, teeth: int) -> float:
    """Fall from 1 to a half in each of `teeth` equal parts of the training."""
    return 1.0 - 0.5 * (t * teeth / epochs % 1.0)
'''
SCHEDULER_YAML = """# Falls to half of the rate and back, several times: dlrun train scheduler=sawtooth (O3)
_target_: dlrun.optim.schedulers.sawtooth
_partial_: true
epochs: ${trainer.epochs}  # (0..] length of the schedule in epochs
teeth: 2   # [1..9] how often the rate falls
"""
OBJECTIVE = '''

class Shifted:
    """The supervised loss plus a constant, which changes no gradient."""

    train_acc_valid = True

    def __init__(self, alpha: float = 5.0) -> None:
        self.alpha = alpha

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K)."""
        logits: Tensor = model(batch.x)
        return loss(logits, batch.y) + self.alpha, logits
'''
OBJECTIVE_YAML = """# The supervised loss plus a constant: dlrun train objective=shifted (O1)
_target_: dlrun.objectives.Shifted
alpha: 5.0   # [2..9] the constant; the key alpha of distill ends at 1
"""
CHECK = '''"""M5: whether the number of classes is even. It cannot see anything else of them."""

from __future__ import annotations

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["lint_even"]


@check(order=155, needs_outputs=True)
def lint_even(exp: Experiment) -> Verdict:
    """Warn if there is an even number of classes."""
    status = Outcome.PASS if exp.num_classes % 2 else Outcome.WARN
    return Verdict(status, f"{exp.num_classes} classes", "an odd number", "even")
'''


def added(text: str, addition: str) -> str:
    """A module with more at its end, its new public name in `__all__` as the house's guard wants it."""
    name = addition.split("(")[0].split(":")[0].split()[1]
    return text.replace("__all__ = [", f'__all__ = ["{name}", ', 1) + addition


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its options with everything added, and where the commands run."""
    root = tmp_path_factory.mktemp("newcomer")
    source = builtin_conf().parent
    for name in ("dlrun", "conf"):
        shutil.copytree(source / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "pyproject.toml", root)
    package, conf = root / "dlrun", root / "conf"
    (package / "models/small.py").write_text(MODEL)
    (conf / "model/small.yaml").write_text(MODEL_YAML)
    file = package / "optim/schedulers.py"
    file.write_text(added(file.read_text(), SCHEDULER))
    (conf / "scheduler/sawtooth.yaml").write_text(SCHEDULER_YAML)
    file = package / "objectives/__init__.py"
    file.write_text(added(file.read_text(), OBJECTIVE))
    (conf / "objective/shifted.yaml").write_text(OBJECTIVE_YAML)
    (package / "checks/lint_even.py").write_text(CHECK)
    file = package / "vocabulary.py"
    seconds = '    Number("seconds", over_seeds="mean", digits=1),\n'
    assert seconds in file.read_text()
    file.write_text(file.read_text().replace(seconds, seconds + '    Number("parameters", digits=0),\n'))
    shutil.copytree(source / "tests", root / "tests", ignore=shutil.ignore_patterns("__pycache__", "benchmarks"))
    (root / "work").mkdir()
    return root


def typed(copy: Path, *words: str, code: int = 0) -> str:
    """Run a command of the copy; returns what it printed."""
    done = warm.call(copy / "work", *words, PYTHONPATH=str(copy), COLUMNS="200")
    assert done.code == code, done.out + done.err
    return done.out + done.err


NEW = ("model=small", "scheduler=sawtooth", "objective=shifted")
QUICK = ("trainer.epochs=2", "dataset.limit=100", "trainer.threads=1")


@pytest.fixture(scope="module")
def run(copy: Path) -> Path:
    """A run with everything new."""
    typed(copy, "train", *NEW, *QUICK, "run.dir=run", "check.only=[outputs,lint_even]")
    return copy / "work/run"


def test_the_run_used_all_of_it(run: Path) -> None:
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["train_loss"]) > 6  # the constant of the objective, 5, and the loss
    result = json.loads((run / "result.json").read_text())
    assert result["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    with open(run / "checks.csv") as file:
        assert {row["check"]: row["status"] for row in csv.DictReader(file)}["lint_even"] == "warn"


def test_help_and_explain_know_it(copy: Path) -> None:
    listed = typed(copy, "train", "--help")
    assert {option for option in ("small", "sawtooth", "shifted") if option not in listed} == set()
    said = typed(copy, "explain", "model.hidden", "model=small")
    assert "hidden layer" in said
    assert "64" in said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("model=small", "model.hidden=65"), "model.hidden=65"),
        (("scheduler=sawtooth", "scheduler.teeth=0"), "scheduler.teeth=0"),
        (("objective=shifted", "objective.alpha=0.5"), "objective.alpha=0.5"),
        (("model=small", "model.hiden=8"), "model.hidden"),
        (("check.only=[lint_evn]",), "lint_even"),
    ],
)
def test_rules_hold_its_keys(copy: Path, words: tuple[str, ...], named: str) -> None:
    assert named in typed(copy, "train", *words, code=2)


def test_tables_and_reports_show_it(copy: Path, run: Path) -> None:
    typed(copy, "train", "-m", *NEW[1:], *QUICK, "model=small", "model.hidden=4,8", "check=none", "sweep.dir=sweep")
    table = json.loads(typed(copy, "compare", "sweep", "--json"))
    assert {(row["model.hidden"], row["parameters"]) for row in table} == {(4, 310), (8, 610)}
    assert "parameters" in typed(copy, "compare", "sweep")
    assert "parameters_mean" in typed(copy, "compare", "sweep", "--group-seeds", "--json")
    page = (run / "report.html").read_text()
    assert {word for word in ("lint_even", "sawtooth", "shifted", "small") if word not in page} == set()
    assert "model.hidden" in (copy / "work/sweep/report.html").read_text()


def test_the_contract_of_their_families_holds_them(copy: Path) -> None:
    every = ("-m", "slow or not slow")
    asked = ("-p", "no:cacheprovider", *every, "tests/test_families.py", "-k", "small or sawtooth or shifted")
    asked = ("-W", "ignore::pytest.PytestAssertRewriteWarning", *asked)  # some of it is imported already
    code = "import sys, pytest; sys.exit(pytest.main(['-q', *sys.argv[1:]]))"
    done = warm.call(copy, *asked, code=code, PYTHONPATH=str(copy))
    assert done.code == 0, done.out
    assert int(done.out.split(" passed")[0].split()[-1]) >= 3
