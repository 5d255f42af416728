"""Models by number: parameter counts of the literature, shapes, and what is refused (M1-M3)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.errors import UserError
from dlrun.models.cnn import CNN
from dlrun.models.init import initialise
from dlrun.models.layers import (
    Style,
)
from dlrun.models.mlp import MLP
from dlrun.models.resnet import ResNet
from dlrun.models.torchvision import build
from support.networks import RESNETS, count, every, resnet

# --- mlp and cnn


def test_mlp_layers_and_parameters() -> None:
    model = MLP(1, 8, 10, width=32, depth=3, norm="none")
    assert [n for n, _ in model.named_children()] == ["flatten", "layer1", "layer2", "layer3", "head"]
    assert count(model) == (64 * 32 + 32) + 2 * (32 * 32 + 32) + (32 * 10 + 10)
    assert MLP(3, 32, 7)(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert count(MLP(1, 8, 10, depth=0)) == 64 * 10 + 10


def test_dropout_follows_every_hidden_layer_of_an_mlp_and_precedes_the_head_of_a_cnn() -> None:
    mlp, cnn = MLP(1, 8, 10, depth=3, dropout=0.5), CNN(1, 10, dropout=0.25)
    assert [m.p for m in every(mlp, nn.Dropout)] == [0.5] * 3
    assert [m.p for m in every(cnn, nn.Dropout)] == [0.25]
    x = torch.ones(4, 1, 8, 8)
    assert not torch.equal(cnn(x), cnn(x))
    cnn.eval()
    assert torch.equal(cnn(x), cnn(x))


@pytest.mark.parametrize("pool", ["max", "avg", "stride", "none"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_cnn_takes_every_pool_and_kernel_on_small_and_larger_images(pool: str, kernel_size: int) -> None:
    for channels, side in ((1, 8), (3, 32), (1, 9)):
        model = CNN(channels, 10, width=4, kernel_size=kernel_size, pool=pool)
        last = torch.Size(model.stage3(model.stage2(model.stage1(torch.randn(2, channels, side, side)))).shape)
        expected = side if pool == "none" else math.ceil(side / 4)
        assert last == (2, 16, expected, expected)
        assert model(torch.randn(2, channels, side, side)).shape == (2, 10)


def test_cnn_spreads_its_depth_over_stages_and_doubles_widths() -> None:
    model = CNN(1, 10, depth=7, width=16)
    assert [m.out_channels for m in every(model, nn.Conv2d)] == [16, 16, 16, 32, 32, 64, 64]
    model = CNN(1, 10, depth=5, widths=[8, 4, 8, 16])
    assert [m.out_channels for m in every(model, nn.Conv2d)] == [8, 8, 4, 8, 16]
    assert isinstance(model.stage2.pool, nn.MaxPool2d)
    assert isinstance(model.get_submodule("stage1.conv2.conv"), nn.Conv2d)


def test_cnn_never_pools_below_one_pixel() -> None:
    model = CNN(1, 10, depth=7, widths=[4] * 7)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert model(torch.randn(2, 1, 8, 3)).shape == (2, 10)


# --- resnet


@pytest.mark.parametrize(("name", "blocks"), [("resnet20", 9), ("resnet32", 15), ("resnet44", 21), ("resnet56", 27)])
def test_cifar_resnets_have_the_parameters_of_the_paper(name: str, blocks: int) -> None:
    exact = {"resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018}
    assert count(resnet(name)) == exact[name]
    assert count(resnet(name, skip=False)) == exact[name]  # option A has no parameters
    # option B: two 1×1 projections, 16 -> 32 and 32 -> 64, and their norms
    assert count(resnet(name, shortcut="projection")) == exact[name] + 16 * 32 + 64 + 32 * 64 + 128
    assert len(every(resnet(name), nn.Conv2d)) == 2 * blocks + 1


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)]
)
def test_imagenet_resnets_have_the_parameters_of_the_literature(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count(resnet(name, classes=1000, stem="imagenet")) == parameters


def test_resnet50_computes_what_torchvision_computes() -> None:
    import torchvision

    ours, theirs = (
        resnet("resnet50", stem="imagenet").eval(),
        torchvision.models.resnet50(num_classes=10).eval(),
    )
    mine, other = ours.state_dict(), theirs.state_dict()
    # both register layers in the order of the forward pass, projections after the branch
    ours.load_state_dict(dict(zip(mine, other.values(), strict=True)))
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_take_digits_and_cifar_with_either_stem(name: str) -> None:
    for channels, side in ((1, 8), (3, 32)):
        for stem in ("small", "imagenet"):
            model = resnet(name, channels, stem=stem, width=4).eval()
            assert model(torch.randn(2, channels, side, side)).shape == (2, 10)
            after_stem = model.stem(torch.randn(1, channels, side, side)).shape[-1]
            assert after_stem == (side if stem == "small" else side // 4)


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_without_skips_no_shortcut_is_left(shortcut: str) -> None:
    plain = ResNet(1, 10, blocks=[2, 2], width=4, shortcut=shortcut, skip=False)
    assert not [n for n, _ in plain.named_modules() if "shortcut" in n]
    block = plain.stage1.block1
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block.eval()(x), F.relu(block.conv2(block.conv1(x))))


def test_a_skip_adds_the_input_subsampled_and_padded_with_zero_channels() -> None:
    block = ResNet(1, 10, blocks=[1, 1], width=4).stage2.block1.eval()
    nn.init.zeros_(block.conv2.conv.weight)
    x = torch.rand(2, 4, 8, 8)
    y = block(x)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2])
    assert torch.equal(y[:, 4:], torch.zeros(2, 4, 4, 4))


def test_zero_init_residual_starts_every_block_as_its_shortcut() -> None:
    model = ResNet(1, 10, blocks=[2], width=4, zero_init_residual=True)
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(model.stage1(x), x)
    with pytest.raises(UserError, match=r"zero_init_residual=true .*model\.skip=true"):
        ResNet(1, 10, zero_init_residual=True, skip=False)


@pytest.mark.slow
def test_a_deep_resnet_without_skips_trains_visibly_worse() -> None:
    """56 layers, 2 epochs of digits. Over seeds 0–9 the loss was 0.21–0.38 with skips and 2.08–2.28 without,
    accuracy on the last 360 images 0.69–0.86 and 0.10–0.18."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor((pixels - pixels.mean()) / pixels.std(), dtype=torch.float32).view(-1, 1, 8, 8)
    classes = torch.tensor(labels)

    def train(skip: bool) -> tuple[float, float]:
        torch.manual_seed(0)
        model = ResNet(1, 10, blocks=[9, 9, 9], width=8, skip=skip)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        losses: list[Tensor] = []
        for _ in range(2):
            for batch in torch.randperm(1408).split(64):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images[batch]), classes[batch])
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        with torch.no_grad():
            correct = model.eval()(images[1437:]).argmax(1) == classes[1437:]
        return float(torch.stack(losses[-15:]).mean()), float(correct.float().mean())

    (loss, accuracy), (plain_loss, plain_accuracy) = train(True), train(False)
    assert loss < 0.8
    assert plain_loss > 1.6
    assert accuracy > 0.5
    assert plain_accuracy < 0.35


def test_names_and_sizes_that_do_not_exist_are_explained() -> None:
    with pytest.raises(UserError, match=r"model.name=mobilnet_v2 .*\bmobilenet_v2"):
        build("mobilnet_v2", 10)
    with pytest.raises(UserError, match=r"model\.name=inception_v3 .*\b32 pixels.*\b75\b"):
        build("inception_v3", 10, 3, 32)
    with pytest.raises(UserError, match=r"model\.activation=rleu .*\brelu\b"):
        Style("rleu")
    with pytest.raises(UserError, match=r"model.norm=batchnorm .*\bbatch\b"):
        Style(norm="batchnorm")
    with pytest.raises(UserError, match=r"model.pool=sum .*\bblur\b.*\bnone stride$"):
        CNN(1, 10, pool="sum")
    with pytest.raises(UserError, match=r"model.stem=imagnet .*\bimagenet"):
        ResNet(1, 10, stem="imagnet")
    with pytest.raises(UserError, match=r"model.init=he_norml .*\bhe_normal\b"):
        initialise(nn.Linear(1, 1), "he_norml")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CNN(1, 10, kernel_size=4), r"model\.kernel_size=4\b.*\bodd\b"),
        (lambda: CNN(1, 10, depth=2, widths=[4, 4, 4]), r"\b3\b.*model\.depth=2 .*model\.depth=3"),
        (lambda: CNN(1, 10, width=0), r"model\.width: .*\b1\b.*\[0, 0, 0\]"),
        (lambda: MLP(1, 8, 10, depth=-1), r"model\.depth=-1\b.*\b0\b"),
        (lambda: MLP(1, 8, 10, dropout=1.0), r"model\.dropout=1\.0\b.*\b0\b.*\b1\b"),
        (lambda: ResNet(1, 10, blocks=[3, 0]), r"model.blocks=\[3, 0\]"),
        (
            lambda: CNN(1, 10, activation="maxout", maxout_pieces=1),
            r"model\.maxout_pieces=1\b.*\b2\b",
        ),
    ],
)
def test_impossible_values_are_named(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
