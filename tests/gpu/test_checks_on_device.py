"""The checks before training, on the device: sound setups pass, the gradient check runs there in float64."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from support.card import located
from support.commands import Outcome
from support.stored import write

SOUND = {
    "digits": ("model.width=8",),
    "cnn bf16": ("dataset=arrays", "model.width=16", "augment=crop_flip", "trainer.precision=bf16"),
    "resnet20": ("dataset=arrays", "model=resnet20", "model.width=8", "optimizer=sgd", "optimizer.lr=0.05"),
    "mlp": ("model=mlp", "loss=hinge", "regularizer=l2", "trainer.precision=fp32"),
}
BENT = """
import torch
from torch import nn

class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient

class Net(nn.Module):
    def __init__(self, in_channels, num_classes, image_size, wrong=False):
        super().__init__()
        self.first = nn.Linear(in_channels * image_size**2, 32)
        self.last, self.wrong = nn.Linear(32, num_classes), wrong

    def forward(self, x):
        x = self.first(x.flatten(1)).relu()
        return self.last(Twice.apply(x) if self.wrong else x)
"""


@pytest.fixture
def check(
    dlrun: Callable[..., Outcome], here: Path, arrays: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, dict[str, Any]]]:
    """Run `dlrun check WORDS`; what each check said, by its name. No receipt of another test counts."""
    monkeypatch.setenv("DLRUN_CACHE", str(here / "receipts"))
    monkeypatch.syspath_prepend(str(here))

    def call(*words: str, where: str = device, code: int = 0) -> dict[str, dict[str, Any]]:
        asked = (f"trainer.device={where}", "trainer.threads=1", *located(words, arrays))
        outcome = dlrun("check", "--json", *asked)
        assert outcome.code == code, outcome.out + outcome.err
        return {row["check"]: row for row in json.loads(outcome.out)}

    return call


@pytest.mark.parametrize("setup", SOUND)
def test_a_sound_setup_fails_no_check(check: Callable[..., Any], setup: str) -> None:
    found = check(*SOUND[setup], "check.skip=[data_duplicates]")
    assert len(found) > 12
    assert {name: row["message"] for name, row in found.items() if row["status"] in ("fail", "skip")} in (
        {},
        {"penalty": found["penalty"]["message"]},  # says that there is none
    )
    assert found["gradient"]["status"] == "pass"
    assert float(found["gradient"]["value"].split()[0]) < 1e-6


def test_a_wrong_backward_is_found(check: Callable[..., Any], here: Path) -> None:
    write(here / "bent.py", BENT)
    words = ("model=custom", "model._target_=bent.Net", "trust=[bent]", "check.only=[gradient]")
    assert check(*words, "+model.wrong=false")["gradient"]["status"] == "pass"
    wrong = check(*words, "+model.wrong=true", code=3)["gradient"]
    assert wrong["status"] == "fail"
    assert re.search(r"factor\D*2\b", wrong["message"])


@pytest.mark.parametrize(
    "words",
    [
        ("model.activation=relu", "model.pool=max"),
        ("model.activation=maxout", "model.norm=group"),
        ("model.activation=leaky_relu", "model.pool=avg", "loss=hinge"),
        ("model.activation=gelu", "model.pool=stride", "regularizer=elastic"),
    ],
    ids=" ".join,
)
def test_across_kinks_the_gradient_check_passes(check: Callable[..., Any], words: tuple[str, ...]) -> None:
    found = check("model.width=8", "model.depth=2", *words, "check.only=[gradient]")["gradient"]
    assert found["status"] == "pass", found["message"]


def test_the_gradient_is_checked_in_float64_where_the_model_is(
    built: Callable[..., Any], inner: SimpleNamespace, device: str
) -> None:
    exp = built("dataset=arrays", "model.width=8", "trainer.precision=bf16")
    with inner.float64():
        model, loss, _ = inner.doubled(exp)
        value, again = loss().detach(), loss().detach()
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float64, device)}
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(float(again), rel=1e-12)
    assert {p.dtype for p in exp.model.parameters()} == {torch.float32}


def test_large_images_are_made_smaller_for_what_trains_or_differentiates(
    inner: SimpleNamespace, dlrun: Callable[..., Outcome], here: Path, device: str
) -> None:
    y = np.arange(48) % 4
    x = np.random.default_rng(0).integers(0, 64, (48, 128, 128, 3), dtype=np.uint8) + (40 * y[:, None, None, None])
    np.savez(here / "wide.npz", x=x.astype(np.uint8), y=y, x_test=x[:8].astype(np.uint8), y_test=y[:8])
    words = ("dataset=arrays", "dataset.path=wide.npz", "model=resnet18", "model.width=4", "trainer.batch_size=16")
    words += ("trainer.threads=1", f"trainer.device={device}", "trainer.precision=fp32")
    exp = inner.build(inner.compose(*words))
    side = inner.smaller_side(exp)
    assert side == 64
    with inner.float64():
        _, loss, _ = inner.doubled(exp, side)
        value = loss().detach()
    assert (value.dtype, value.device.type) == (torch.float64, device)
    done = dlrun("check", "--json", *words, "check.only=[gradient]", "check.fresh=true")
    assert done.code == 0, done.out + done.err
    found = {row["check"]: row for row in json.loads(done.out)}
    assert found["gradient"]["status"] == "pass", found
    assert "64" in found["gradient"]["value"] + found["gradient"]["message"]


def test_a_check_that_passed_on_the_device_is_remembered_for_it(check: Callable[..., Any]) -> None:
    words = ("model.width=8", "check.only=[loss,outputs,gradient]")
    first, second = check(*words), check(*words)
    assert not any(row["message"].endswith(" ago") for row in first.values())
    assert all(row["message"].endswith(" ago") for row in second.values())
    changed = check(*words, "model.width=16")
    assert not any(row["message"].endswith(" ago") for row in changed.values())


def test_what_passed_on_the_card_is_not_taken_for_the_processor(check: Callable[..., Any], card: torch.device) -> None:
    words = ("model.width=8", "check.only=[loss,gradient]", "trainer.precision=fp32")
    check(*words)
    assert not any(row["message"].endswith(" ago") for row in check(*words, where="cpu").values())


def test_checks_before_training_change_nothing_of_it(train: Callable[..., Any]) -> None:
    words = ("dataset.limit=300", "model.width=8", "regularizer=dropout", "trainer.epochs=2")
    plain = train(*words, folder="plain")
    checked = train(*words, "check=default", "check.skip=[overfit,garbage]", "check.fresh=true", folder="checked")
    weights, others = plain.checkpoint()["model"], checked.checkpoint()["model"]
    assert all(torch.equal(weights[name], others[name]) for name in weights)
