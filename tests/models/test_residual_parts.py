"""Stochastic depth, squeeze-and-excitation, anti-aliasing and the other stems of a ResNet, by number (M1, M2, R2)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlrun.errors import UserError
from dlrun.models.blur_pool import BlurPool, max_blur_pool
from dlrun.models.cnn import CNN
from dlrun.models.resnet import ResNet
from dlrun.models.squeeze_excitation import SqueezeExcitation
from dlrun.models.stochastic_depth import StochasticDepth, rates
from support.networks import count, every, resnet

NEW = {"antialias": False, "se_ratio": 0.0, "stochastic_depth": 0.0}


def test_the_rates_are_linear_in_depth_and_the_last_block_has_the_whole() -> None:
    assert rates(0.4, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    model = ResNet(1, 10, blocks=[2, 2], width=4, stochastic_depth=0.4)
    assert [m.p for m in every(model, StochasticDepth)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert not every(ResNet(1, 10), StochasticDepth)
    for wrong in (1.0, -0.1):
        with pytest.raises(UserError, match=r"model\.stochastic_depth="):
            ResNet(1, 10, stochastic_depth=wrong)
    with pytest.raises(UserError, match=r"model\.stochastic_depth=0\.1 .*model\.skip=true"):
        ResNet(1, 10, stochastic_depth=0.1, skip=False)


def test_a_branch_is_dropped_for_whole_samples_and_exact_in_expectation() -> None:
    torch.manual_seed(0)
    layer, x = StochasticDepth(0.3), torch.rand(4000, 3, 2, 2) + 0.5
    found = layer(x)
    kept = found[:, 0, 0, 0] != 0
    assert torch.equal(found[~kept], torch.zeros_like(found[~kept]))
    torch.testing.assert_close(found[kept], x[kept] / 0.7)
    # the expectation over the two cases is x itself, to rounding
    torch.testing.assert_close(0.7 * (x / 0.7) + 0.3 * 0, x)
    assert abs(float(kept.float().mean()) - 0.7) < 4 * (0.21 / 4000) ** 0.5
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(StochasticDepth(0.0)(x), x)


def test_a_network_without_dropped_branches_computes_the_same() -> None:
    torch.manual_seed(0)
    plain = ResNet(1, 10, blocks=[1, 1], width=4)
    dropping = ResNet(1, 10, blocks=[1, 1], width=4, stochastic_depth=0.5)
    dropping.load_state_dict(plain.state_dict())
    x = torch.rand(6, 1, 8, 8)
    assert torch.equal(plain.eval()(x), dropping.eval()(x))
    assert not torch.equal(dropping.train()(x), dropping(x))


def test_squeeze_and_excitation_by_its_formula() -> None:
    torch.manual_seed(0)
    layer, x = SqueezeExcitation(8, 0.25), torch.rand(3, 8, 5, 4)
    hidden = F.silu(F.linear(x.mean((2, 3)), layer.reduce.weight.flatten(1), layer.reduce.bias))
    factor = torch.sigmoid(F.linear(hidden, layer.expand.weight.flatten(1), layer.expand.bias))
    torch.testing.assert_close(layer(x), x * factor[:, :, None, None])
    assert count(layer) == (8 * 4 + 4) + (4 * 8 + 8)  # four hidden units at least
    assert count(SqueezeExcitation(64, 0.25)) == (64 * 16 + 16) + (16 * 64 + 64)
    plain, squeezed = ResNet(1, 10, width=16, blocks=[1, 1]), ResNet(1, 10, width=16, blocks=[1, 1], se_ratio=0.5)
    assert count(squeezed) - count(plain) == (16 * 8 * 2 + 8 + 16) + (32 * 16 * 2 + 16 + 32)
    assert len(every(CNN(1, 10, depth=4, width=8, se_ratio=0.25), SqueezeExcitation)) == 4
    with pytest.raises(UserError, match=r"model\.se_ratio=1\.5\b"):
        CNN(1, 10, se_ratio=1.5)


@pytest.mark.parametrize("shape", [(8, 8), (7, 4), (1, 1), (2, 1)])
def test_blur_pool_is_the_binomial_filter_at_every_second_pixel(shape: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *shape)
    found = BlurPool(3)(x)
    assert found.shape == (2, 3, -(-shape[0] // 2), -(-shape[1] // 2))
    padded, line = F.pad(x, (1, 1, 1, 1), mode="replicate"), torch.tensor([0.25, 0.5, 0.25])
    for i in range(found.shape[2]):
        for j in range(found.shape[3]):
            patch = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            torch.testing.assert_close(found[:, :, i, j], torch.einsum("bchw,h,w->bc", patch, line, line))
    assert not BlurPool(3).state_dict()
    torch.testing.assert_close(BlurPool(3)(torch.ones_like(x)), torch.ones_like(found))


def test_antialiasing_makes_a_halved_map_depend_less_on_a_shift_by_one_pixel() -> None:
    torch.manual_seed(0)
    x = torch.rand(8, 4, 17, 17)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    change = {}
    for name, layer in {"max": nn.MaxPool2d(3, 2, padding=1), "blur": max_blur_pool(4)}.items():
        change[name] = float((layer(x[..., :-1])[inner] - layer(x[..., 1:])[inner]).square().mean())
    assert change["blur"] < 0.5 * change["max"]


@pytest.mark.parametrize("options", [{"block": "bottleneck"}, {"shortcut": "projection"}, {"shortcut": "pooled"}, {}])
def test_antialiased_resnets_have_the_parameters_of_plain_ones(options: dict[str, Any]) -> None:
    plain, smooth = (ResNet(3, 10, blocks=[1, 1, 1], width=4, antialias=on, **options) for on in (False, True))
    assert plain.state_dict().keys() == smooth.state_dict().keys()
    assert count(plain) == count(smooth)
    x = torch.rand(2, 3, 9, 10)
    maps = [model.stage3(model.stage2(model.stage1(model.stem(x)))).shape for model in (plain, smooth)]
    assert maps[0] == maps[1]
    assert smooth(x).shape == (2, 10)
    assert not [m for m in every(smooth, nn.Conv2d) if m.stride != (1, 1)]


def test_a_pooled_shortcut_averages_before_its_convolution() -> None:
    block = ResNet(3, 10, blocks=[1, 1], width=4, shortcut="pooled").stage2.block1.eval()
    x = torch.rand(2, 4, 6, 6)
    expected = block.shortcut.norm(block.shortcut.conv(F.avg_pool2d(x, 2)))
    torch.testing.assert_close(block.shortcut(x), expected)
    assert block.shortcut(torch.rand(2, 4, 5, 7)).shape == (2, 8, 3, 4)


@pytest.mark.parametrize(("stem", "side"), [("small", 64), ("half", 32), ("deep", 16), ("imagenet", 16)])
def test_a_stem_reduces_its_images(stem: str, side: int) -> None:
    model = ResNet(3, 10, width=8, blocks=[1], stem=stem)
    assert model.stem(torch.rand(2, 3, 64, 64)).shape == (2, 8, side, side)
    assert ResNet(3, 10, width=8, blocks=[1], stem=stem, antialias=True).stem(torch.rand(2, 3, 64, 64)).shape[2] == side


@pytest.mark.parametrize(("size", "stem"), [(28, "small"), (40, "small"), (64, "half"), (96, "deep"), (224, "deep")])
def test_the_stem_follows_the_size_of_the_images_if_asked(size: int, stem: str) -> None:
    auto, named = (ResNet(3, 10, width=8, blocks=[1], stem=s, image_size=size) for s in ("auto", stem))
    assert auto.state_dict().keys() == named.state_dict().keys()
    assert str(auto.stem) == str(named.stem)


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_the_defaults_of_the_options_change_nothing(name: str) -> None:
    torch.manual_seed(1)
    before = ResNet(3, 10, blocks=[1, 1], width=4).state_dict()
    torch.manual_seed(1)
    after = resnet(name, blocks=[1, 1], width=4, shortcut="pad", **NEW).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert {key: resnet_default(name)[key] for key in NEW} == NEW


def resnet_default(name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from dlrun.config.compose import builtin_conf

    found = OmegaConf.to_container(OmegaConf.load(builtin_conf() / f"model/{name}.yaml"))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
