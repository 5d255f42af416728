"""`trainer.compile=true`: the same numbers, checkpoints and resumed runs; one line where there is no compiler."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from dlrun.data.batches import Batch
from dlrun.training import experiment, loop
from dlrun.training.experiment import build
from support.commands import TINY, Outcome
from support.composed import composed

WORDS = [w for w in TINY if not w.startswith("trainer.epochs")]


def losses(run: str) -> list[float]:
    with open(f"{run}/metrics.csv", newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) for key in ("train_loss", "val_loss")]


def weights(run: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(f"{run}/checkpoints/last.pt", weights_only=True)["model"]
    return found


@pytest.mark.slow
def test_a_compiled_run_trains_resumes_and_leaves_files_as_any_other(
    dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def graph(module: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., object]:
        calls.append(module)  # what torch compiles, run without a compiler, which takes half a minute
        return module.forward

    monkeypatch.setattr(experiment.torch, "compile", partial(torch.compile, backend=graph))
    two = [*WORDS, "trainer.epochs=2"]
    assert dlrun("train", *two, "run.dir=plain").code == 0
    assert not calls
    checked = [word for word in two if word != "check=none"]
    more = ("trainer.compile=true", "check.only=[parameters,optimizer]", "run.dir=compiled")
    done = dlrun("train", *checked, *more)
    assert done.code == 0, done.err
    assert len(calls) == 2  # a graph for whole batches, another for the short last one; none for evaluation or checks
    assert losses("compiled") == pytest.approx(losses("plain"), rel=1e-5)
    assert Path("compiled/layers.csv").read_text().count("\n") == Path("plain/layers.csv").read_text().count("\n")
    assert weights("compiled").keys() == weights("plain").keys()
    assert json.loads(Path("compiled/result.json").read_text())["status"] == "completed"
    assert dlrun("train", *two, "trainer.compile=true", "trainer.stop_after=1", "run.dir=halves").code == 0
    assert dlrun("resume", "halves").code == 0
    ours, theirs = weights("halves"), weights("compiled")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_a_compiler_it_is_one_line(dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "nowhere-g++")
    refused = dlrun("train", *TINY, "trainer.compile=true", "trainer.device=cpu")
    assert refused.code == 2
    assert re.fullmatch(r"dlrun: trainer\.compile=true: .*\bnowhere-g\+\+.*\bCXX\b.*\bfalse\b.*\n", refused.err)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["model=cnn", "model=airbench model.widths=[8,8]"])
@pytest.mark.filterwarnings("ignore")  # of a compiler about its own insides
def test_compiled_and_uncompiled_steps_agree(model: str) -> None:
    found = []
    for compiled in ("false", "true"):
        words = ("dataset.limit=150", "check=none", "trainer.threads=1", f"trainer.compile={compiled}")
        exp = build(composed(*words, *model.split(), "trainer.batch_size=60"))
        exp.model.train()
        sums = [loop.step(exp, Batch(*batch)) for batch in exp.train.epoch(1)]
        found.append([torch.stack([torch.stack(one) for one in sums]), *exp.model.state_dict().values()])
    for plain, other in zip(*found, strict=True):
        assert torch.allclose(plain, other, rtol=1e-3, atol=1e-3)
