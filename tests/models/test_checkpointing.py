"""Blocks computed again in the backward pass: the same gradients, statistics and draws, bit for bit (O6)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dlrun.errors import UserError
from dlrun.models.checkpointing import Recomputed, held_statistics, recompute
from dlrun.models.cnn import CNN
from dlrun.models.mlp import MLP
from dlrun.models.resnet import ResNet
from support.networks import every


def networks(kind: int) -> nn.Module:
    import torchvision

    if kind == 3:
        timm = pytest.importorskip("timm", reason="the extra timm is not installed")
        made: nn.Module = timm.create_model("efficientnet_lite0", num_classes=5)
        return made
    return [
        ResNet(3, 5, blocks=[2, 1], width=4, stochastic_depth=0.5, dropout=0.3),
        CNN(3, 5, depth=4, width=4),
        torchvision.models.resnet18(num_classes=5),
    ][kind]


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_gradients_statistics_and_draws_are_the_same_bits(kind: int) -> None:
    torch.manual_seed(0)
    plain = networks(kind).train()
    again = copy.deepcopy(plain)
    recompute(again)
    assert every(again, Recomputed)
    assert again.state_dict().keys() == plain.state_dict().keys()
    again = copy.deepcopy(again)  # a copy computes with its own weights
    x, y = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    draws = []
    for model in (plain, again):
        torch.manual_seed(1)
        nn.functional.cross_entropy(model(x), y).backward()
        draws.append(torch.rand(1))
    assert torch.equal(*draws)
    for (name, a), b in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(plain.eval()(x), again.eval()(x))


@pytest.mark.slow
def test_compiled_blocks_count_each_batch_once_too() -> None:
    torch.manual_seed(0)
    plain = ResNet(3, 5, blocks=[2, 1], width=4).train()
    again = copy.deepcopy(plain)
    recompute(again)
    compiled: Any = torch.compile(again, dynamic=False, backend="aot_eager")  # no compiler, which takes half a minute
    x, y = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    for model in (plain, compiled):
        nn.functional.cross_entropy(model(x), y).backward()
    for (name, a), b in zip(plain.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        torch.testing.assert_close(b[1], a, msg=name)


def test_only_the_inputs_of_blocks_are_kept() -> None:
    def saved(model: nn.Module) -> int:
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.rand(4, 3, 16, 16))
        return kept

    plain = ResNet(3, 5, blocks=[3, 3], width=8).train()
    again = copy.deepcopy(plain)
    recompute(again)
    assert saved(again) < 0.5 * saved(plain)


def test_a_model_without_blocks_is_refused_and_held_norms_do_not_move() -> None:
    with pytest.raises(UserError, match=r"model\.checkpointing=true: MLP\b"):
        recompute(MLP(1, 8, 10))
    norm: Any = nn.BatchNorm2d(3).train()
    before = norm.running_mean.clone()
    with held_statistics(norm):
        found = norm(torch.rand(2, 3, 4, 4))
    assert torch.equal(norm.running_mean, before)
    assert int(norm.num_batches_tracked) == 0
    assert abs(float(found.detach().mean())) < 1e-5  # the statistics of the batch
    norm(torch.rand(2, 3, 4, 4))
    assert not torch.equal(norm.running_mean, before)
