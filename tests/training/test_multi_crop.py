"""Evaluation by several views: exact logits, and that a run's test, its files and `dlrun predict` agree."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlrun.config.options import Options
from dlrun.errors import UserError
from dlrun.training.multi_crop import MultiCrop, viewed
from support.commands import TINY, Outcome

KINDS = ("none", "mirror", "mirror_translate", "mirror_larger", "mirror_scales")


class Grown(nn.Module):
    """(B, C, H, W) -> (B, 2): height and width of the images, if they are all ones."""

    def forward(self, x: Tensor) -> Tensor:
        assert torch.equal(x, torch.ones_like(x))
        return torch.tensor([[float(x.shape[2]), float(x.shape[3])]]).expand(len(x), 2)


def test_logits_are_the_mean_over_the_views() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 6, 4)).double()
    x = torch.randn(7, 3, 5, 6, dtype=torch.float64)

    def both(image: Tensor) -> Tensor:
        return (model(image) + model(image.flip(3))) / 2

    padded = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect"))
    moved = (both(padded[:, :, :5, :6]) + both(padded[:, :, 2:, 2:])) / 2
    expected = {"mirror": both(x), "mirror_translate": (both(x) + moved) / 2}
    assert torch.allclose(MultiCrop(Grown(), "mirror_larger")(torch.ones(2, 3, 8, 16)), torch.tensor([10.0, 20.0]))
    assert torch.allclose(MultiCrop(Grown(), "mirror_scales")(torch.ones(2, 3, 8, 16)), torch.tensor([11.0, 22.0]))
    for kind, logits in expected.items():
        assert torch.allclose(MultiCrop(model, kind)(x).double(), logits, atol=1e-6)
    assert viewed(model, "none") is model
    with pytest.raises(UserError, match=rf"^trainer\.multi_crop=five: .*\b{', '.join(KINDS)}$"):
        viewed(model, "five")
    rule = Options().keys("trainer", "default")["trainer.multi_crop"].rule()
    assert rule is not None
    assert set(KINDS) == set(rule.words)
    assert all(viewed(model, kind) is not None for kind in rule.words)


def test_a_run_is_tested_by_its_views_and_predicts_by_them(dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("train", *TINY, "trainer.multi_crop=mirror_translate", "run.dir=run")
    assert done.code == 0, done.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["multi_crop"] == "mirror_translate"
    assert f" {result['plain_test_acc']:.4f}" in done.out
    with np.load("run/predictions.npz") as found:
        logits, labels = found["test_logits"], found["test_labels"]
    assert (logits.argmax(1) == labels).mean() == pytest.approx(result["test_acc"])
    # what is known of one view: the last row of metrics.csv
    with open("run/metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["val_loss"]) == pytest.approx(result["plain_val_loss"], rel=1e-5)
    assert abs(result["val_loss"] - result["plain_val_loss"]) > 1e-4

    from dlrun.config.settings import Settings
    from dlrun.folders.reading import config
    from dlrun.inference import predictor, reevaluate
    from dlrun.training.experiment import build

    member = reevaluate.evaluated(Path("run"), [])
    assert np.allclose(member.arrays["test_logits"], logits, atol=1e-5)
    images = build(Settings.of(config(Path("run")))).data.test().split.images.take(torch.arange(20))
    assert np.allclose(predictor.load(Path("run"), []).logits(images)[0], logits[:20], atol=1e-5)


@pytest.mark.parametrize(("kind", "side"), [("mirror_larger", 10), ("mirror_scales", 12)])
def test_a_model_that_refuses_larger_images_is_one_line(dlrun: Callable[..., Outcome], kind: str, side: int) -> None:
    refused = dlrun("train", *TINY, "model=mlp", f"trainer.multi_crop={kind}")
    assert refused.code == 2
    assert re.fullmatch(rf"dlrun: trainer\.multi_crop={kind}: .*\b{side} pixels\b.*\n", refused.err)


def test_an_unknown_kind_is_one_line(dlrun: Callable[..., Outcome]) -> None:
    refused = dlrun("train", "trainer.multi_crop=mirrors")
    assert refused.code == 2
    kinds = ", ".join(KINDS)
    pattern = rf"dlrun: trainer\.multi_crop=mirrors: .*\b{kinds}\b.*\btrainer\.multi_crop=mirror\b.*\n"
    assert re.fullmatch(pattern, refused.err)
