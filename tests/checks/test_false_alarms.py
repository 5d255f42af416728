"""The campaign against false alarms counts what it says it counts, and raises none where it is run here."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bench_false_alarms as campaign


@pytest.mark.slow
def test_a_setup_is_healthy_where_it_learns() -> None:
    assert campaign.learns(("model=mlp",))
    deep = ("model=mlp", "model.depth=20", "model.width=16", "model.activation=sigmoid", "model.norm=none")
    assert not campaign.learns(deep)


def test_the_campaign_holds_every_model_activation_norm_and_loss() -> None:
    found = list(campaign.setups())
    assert len(found) == len(set(found)) == 10 * 10 * 4 * 4 + 8
    assert ("model=resnet50", "model.activation=maxout", "model.norm=group", "loss=hinge") in found


def test_setups_that_do_not_learn_do_not_count() -> None:
    def row(setup: str, learns: bool, **said: Any) -> dict[str, Any]:
        return (
            {"setup": setup, "seed": 1, "seconds": 1.0, "checks": 19, "fail": {}, "warn": {}, "skip": {}}
            | said
            | {"learns": learns}
        )

    rows = [
        row("model=mlp loss=hinge", True),
        row("model=mlp loss=hinge", True, warn={"initial_loss": "9"}),
        row("model=resnet20 loss=hinge", False, fail={"overfit": "0.1"}),
        row("model=resnet20 loss=hinge", True),  # another seed, without an alarm
        row("model=torchvision model.name=resnet18", True, fail={"garbage": "none"}),
    ]
    text = campaign.table(rows, 10)
    assert "5 of 10 suites run, 2 of them" in text
    assert re.search(r"of 3: failures 1, .* 1 \(33\.3%\); 1 of 57 checks warn \(1\.75%\)", text)
    assert "do not learn: ['model=resnet20 loss=hinge']" in text
    assert "resnet18 " in text
    assert campaign._settled(rows, "model=resnet20 loss=hinge", 5)
    assert campaign._settled(rows, "model=mlp loss=hinge", 1)
    assert not campaign._settled(rows, "model=mlp loss=hinge", 2)


@pytest.mark.parametrize(("k", "stride", "size"), [(1, 1, 8), (1, 2, 4), (3, 1, 1), (3, 2, 1), (3, 1, 2), (3, 2, 2)])
def test_tiny_maps_are_convolved_exactly(k: int, stride: int, size: int) -> None:
    layer = nn.Conv2d(5, 7, k, stride, k // 2).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(3, 5, size, size, dtype=torch.double).requires_grad_()
    parts = (x, layer.weight, layer.bias)

    def results(y: Tensor) -> list[Tensor]:
        return [y, *torch.autograd.grad(y.sin().sum(), parts)]

    def never(*given: Any) -> Tensor:
        raise AssertionError("left to torch")

    own = results(campaign.convolved(layer, x, layer.weight, layer.bias, never))
    for mine, theirs in zip(own, results(layer(x)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_other_convolutions_are_left_to_torch() -> None:
    x, kept = torch.randn(2, 4, 2, 2), torch.zeros(())
    options: list[dict[str, Any]] = [{"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}, {"padding": 0}]
    for other in options:
        layer = nn.Conv2d(4, 4, **{"kernel_size": 3, "padding": 1} | other)
        assert campaign.convolved(layer, x, layer.weight, layer.bias, lambda *_: kept) is kept, other
    layer = nn.Conv2d(4, 4, 3, padding=1)
    large = torch.randn(2, 4, 4, 4)
    assert campaign.convolved(layer, large, layer.weight, layer.bias, lambda *_: kept) is kept


def test_setups_with_the_fewest_suites_come_first() -> None:
    said: dict[str, Any] = {"seed": 1, "learns": True}
    rows = [said | {"setup": "model=mlp"}, said | {"setup": "model=cnn", "learns": False}]
    planned = [((f"model={model}",), seed) for seed in (1, 2) for model in ("mlp", "cnn", "resnet20")]
    assert campaign._due(planned, rows) == [(("model=resnet20",), 1), (("model=mlp",), 2), (("model=resnet20",), 2)]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet20"])
def test_what_conf_can_compose_raises_no_alarm(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [campaign.suite(words, 1) for words in campaign.setups() if words[0] == f"model={model}"]
    sound = [row for row in rows if row["learns"]]
    assert [row for row in sound if row["fail"]] == []
    assert len([row for row in sound if row["warn"]]) <= 0.05 * len(sound)
