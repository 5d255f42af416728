"""Models by number: parameter counts of the literature, formulas of M1–M7, and what weights files do."""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from dlrun.config.compose import builtin_conf
from dlrun.errors import UserError
from dlrun.models.cnn import CNN
from dlrun.models.init import initialise, output_bias
from dlrun.models.layers import (
    ACTIVATIONS,
    NORMS,
    GlobalAverage,
    Maxout,
    Style,
    activation,
    conv_block,
    linear_block,
    norm,
)
from dlrun.models.mlp import MLP
from dlrun.models.resnet import ResNet
from dlrun.models.torchvision import build

CONF = builtin_conf() / "model"
RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet18", "resnet34", "resnet50")


@pytest.fixture(autouse=True)
def _seed_and_one_thread() -> Iterator[None]:
    """Many tiny operations: threads that wait for each other on a busy machine take longer than one."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def resnet(name: str, channels: int = 3, classes: int = 10, **options: Any) -> ResNet:
    """The ResNet of an option file, as `model=name` with overrides makes it."""
    conf = OmegaConf.merge({"regularizer": {"dropout": 0.0}, "model": OmegaConf.load(CONF / f"{name}.yaml")})
    keys = OmegaConf.to_container(conf, resolve=True)["model"] | options  # type: ignore[index,call-overload]
    assert keys.pop("_target_") == "dlrun.models.resnet.ResNet"
    return ResNet(channels, classes, **keys)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def every(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, kind)]


def small_models(**style: Any) -> Iterator[nn.Module]:
    yield MLP(1, 8, 10, width=16, **style)
    yield CNN(1, 10, depth=4, width=8, **style)
    yield ResNet(1, 10, blocks=[1, 1], width=8, **style)
    yield ResNet(1, 10, blocks=[1, 1], width=4, block="bottleneck", shortcut="projection", **style)


# --- layers


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_global_average_is_that_of_torch_and_its_gradient_keeps_the_layout(
    layout: torch.memory_format,
) -> None:
    x = torch.randn(4, 8, 5, 3, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    middle = x * 2
    middle.register_hook(lambda gradient: layouts.append(gradient.is_contiguous(memory_format=layout)))
    layouts: list[bool] = []
    pooled = GlobalAverage()(middle)
    assert pooled.shape == (4, 8, 1, 1)
    torch.testing.assert_close(pooled, nn.AdaptiveAvgPool2d(1)(middle))
    weight = torch.randn(4, 8, 1, 1, dtype=torch.float64)
    (pooled * weight).sum().backward()
    torch.testing.assert_close(x.grad, (2 * weight / 15).expand_as(x))
    assert layouts == [True]  # a mix of layouts takes the layer before several times as long


def test_maxout_takes_the_largest_of_neighbouring_channels() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0, 7.0, 5.0, 6.0]])
    assert Maxout(2)(x).tolist() == [[1.0, 7.0, 6.0]]
    assert Maxout(3)(x).tolist() == [[3.0, 7.0]]
    assert torch.equal(Maxout(3)(x.view(1, 6, 1, 1)), torch.tensor([3.0, 7.0]).view(1, 2, 1, 1))


def test_a_maxout_layer_is_the_maximum_of_its_linear_pieces() -> None:
    layer = linear_block(1, 1, Style("maxout", "none", 3))
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
        layer.linear.bias.copy_(torch.tensor([0.0, 0.0, 0.5]))
    # max(x, -x, 1/2)
    assert layer(torch.tensor([[2.0], [-3.0], [0.25]])).flatten().tolist() == [2.0, 3.0, 0.5]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", [0.0, 2.0]),
        ("leaky_relu", [-0.01, 2.0]),
        ("prelu", [-0.25, 2.0]),
        ("elu", [math.exp(-1) - 1, 2.0]),
        ("gelu", [-0.5 * math.erfc(1 / math.sqrt(2)), 2 - math.erfc(2 / math.sqrt(2))]),
        ("silu", [-1 / (1 + math.e), 2 / (1 + math.exp(-2))]),
        ("tanh", [math.tanh(-1), math.tanh(2)]),
        ("sigmoid", [1 / (1 + math.e), 1 / (1 + math.exp(-2))]),
        ("softsign", [-0.5, 2 / 3]),
        ("maxout", [2.0]),
    ],
)
def test_activation_values(name: str, expected: list[float]) -> None:
    x = torch.tensor([[-1.0, 2.0]])
    assert activation(name)(x).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert x.tolist() == [[-1.0, 2.0]]  # never in place


@pytest.mark.parametrize("name", ["batch", "layer", "group"])
def test_norms_standardise_over_their_own_axes(name: str) -> None:
    x = 3 + 5 * torch.randn(6, 8, 4, 4)
    layer = norm(name, 8)
    assert layer is not None
    y = layer(x)
    over = {"batch": (0, 2, 3), "layer": (1, 2, 3), "group": (2, 3, 4)}[name]
    if name == "group":  # 8 channels: two groups of four
        y = y.view(6, 2, 4, 4, 4)
    assert y.mean(over).abs().max() < 1e-5
    assert (y.var(over, correction=0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (8, 2), (12, 3), (16, 4), (64, 16), (128, 32), (512, 32)])
def test_group_norm_has_at_most_32_groups_of_at_least_4_channels(channels: int, groups: int) -> None:
    layer = norm("group", channels)
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups


@pytest.mark.parametrize("name", NORMS)
def test_norm_stands_between_weights_and_activation_and_replaces_the_bias(name: str) -> None:
    for block, kind in (
        (linear_block(3, 4, Style("tanh", name)), "linear"),
        (conv_block(3, 4, 3, Style("tanh", name)), "conv"),
    ):
        names = [n for n, _ in block.named_children()]
        assert names == ([kind, "activation"] if name == "none" else [kind, "norm", "activation"])
        assert (block.get_submodule(kind).bias is None) == (name != "none")


@pytest.mark.parametrize("norm_name", NORMS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_and_norm_sends_a_gradient_to_every_parameter(name: str, norm_name: str) -> None:
    for model in small_models(activation=name, norm=norm_name):
        logits = model(torch.randn(6, 1, 8, 8))
        assert logits.shape == (6, 10)
        F.cross_entropy(logits, torch.arange(6)).backward()
        for key, p in model.named_parameters():
            assert p.grad is not None, key
            assert torch.isfinite(p.grad).all(), key
            assert p.grad.abs().max() > 0, key


def test_only_the_head_has_a_bias_where_a_norm_follows() -> None:
    for model in small_models(norm="batch"):
        biased = [n for n, m in model.named_modules() if getattr(m, "bias", None) is not None]
        weighty = [n for n in biased if isinstance(model.get_submodule(n), (nn.Linear, nn.Conv2d))]
        assert weighty == ["head"]
    for model in small_models(norm="none"):
        assert all(m.bias is not None for m in every(model, (nn.Linear, nn.Conv2d)))


def test_forward_has_no_control_flow_that_depends_on_data() -> None:
    x = torch.randn(3, 1, 8, 8)
    for name in ("relu", "maxout"):
        for model in small_models(activation=name):
            model.eval()
            assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


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


# --- initialisation


@pytest.mark.parametrize(
    ("name", "variance", "bound"),
    [
        ("he_normal", lambda m, n: 2 / m, None),
        ("normal", lambda m, n: 0.1, None),
        ("uniform", lambda m, n: 1 / (3 * m), lambda m, n: m**-0.5),
        ("glorot_uniform", lambda m, n: 2 / (m + n), lambda m, n: math.sqrt(6 / (m + n))),
        ("glorot_sigmoid", lambda m, n: 32 / (m + n), lambda m, n: 4 * math.sqrt(6 / (m + n))),
    ],
)
def test_initial_weights_have_the_variance_and_bounds_of_their_formula(name: str, variance: Any, bound: Any) -> None:
    model = nn.Sequential(nn.Linear(300, 500), nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(9.0)
    initialise(model, name)
    for layer, m, n in ((model[0], 300, 500), (model[1], 64 * 9, 128 * 9)):
        weight = layer.weight.detach()
        assert float(weight.var()) == pytest.approx(variance(m, n), rel=0.03)
        assert abs(float(weight.mean())) < 0.02 * float(weight.std())
        if bound:
            limit = bound(m, n)
            assert 0.99 * limit < float(weight.abs().max()) <= limit * (1 + 1e-6)
        assert layer.bias.tolist() == [0.0] * len(layer.bias)
    assert model[2].weight.tolist() == [9.0] * 128
    assert model[2].bias.tolist() == [9.0] * 128


def test_orthogonal_weights_have_orthonormal_rows() -> None:
    model = nn.Sequential(nn.Linear(40, 20), nn.Conv2d(4, 16, 3))
    initialise(model, "orthogonal")
    for layer in model:
        rows = layer.weight.flatten(1)  # type: ignore[operator,union-attr]
        assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)


def test_default_leaves_weights_alone_and_others_follow_the_seed() -> None:
    model = nn.Linear(5, 5)
    before = model.weight.clone()
    initialise(model, "default")
    assert torch.equal(model.weight, before)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        initialise(model, "he_normal")
        drawn.append(model.weight.clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("counts", [[30, 10, 60], torch.tensor([0.3, 0.1, 0.6], dtype=torch.float64)])
def test_output_bias_makes_the_first_loss_the_label_entropy_where_weights_give_nothing(counts: Any) -> None:
    model = MLP(1, 8, 3)
    output_bias(model, counts)
    assert model.head.bias.tolist() == pytest.approx([math.log(0.3), math.log(0.1), math.log(0.6)])
    nn.init.zeros_(model.head.weight)
    labels = torch.tensor([0] * 3 + [1] + [2] * 6)
    entropy = -sum(p * math.log(p) for p in (0.3, 0.1, 0.6))
    loss = F.cross_entropy(model(torch.randn(10, 1, 8, 8)), labels)
    assert loss.item() == pytest.approx(entropy, rel=1e-6)


def test_output_bias_names_what_is_in_its_way() -> None:
    with pytest.raises(UserError, match=r"model\.output_bias .*\b4\b.*\bMLP\b.*model\.output_bias=default"):
        output_bias(MLP(1, 8, 3), [1, 1, 1, 1])
    with pytest.raises(UserError, match=r"model\.output_bias: .*Linear .*no bias"):
        output_bias(nn.Linear(4, 2, bias=False), [1, 1])
    with pytest.raises(UserError, match=r"model\.output_bias: class 1\b"):
        output_bias(nn.Linear(4, 3), [1, 0, 2])


# --- torchvision


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """Weights of a thousand classes and three channels, as torchvision's own files hold them."""
    import torchvision

    state = torchvision.models.get_model("resnet18").state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth", state


def test_fine_tuning_keeps_every_weight_but_the_classifier(
    pretrained: tuple[Path, dict[str, Tensor]],
) -> None:
    file, state = pretrained
    model = build("resnet18", 7, 3, 32, weights=str(file), dropout=0.0)
    own = model.state_dict()
    assert own["fc.weight"].shape == (7, 512)
    for key, value in state.items():
        assert key.startswith("fc.") or torch.equal(own[key], value), key
    same_classes = build("resnet18", 1000, 3, 32, weights=str(file)).state_dict()
    assert torch.equal(same_classes["fc.weight"], state["fc.weight"])


def test_a_grey_image_gives_what_its_three_channels_gave(pretrained: tuple[Path, dict[str, Tensor]]) -> None:
    import torchvision

    file, state = pretrained
    theirs = torchvision.models.resnet18().eval()
    theirs.load_state_dict(state)
    grey = torch.randn(2, 1, 32, 32)
    expected = theirs(grey.expand(2, 3, 32, 32))
    for channels in (1, 2):
        model = build("resnet18", 1000, channels, 32, weights=str(file)).eval()
        assert torch.allclose(model(grey.expand(2, channels, 32, 32)), expected, atol=1e-4)


def test_weights_of_a_dlrun_checkpoint_load_again(tmp_path: Path) -> None:
    first = build("squeezenet1_1", 4, 1, 32)
    torch.save({"model": first.state_dict(), "epoch": 3}, tmp_path / "best.pt")
    second = build("squeezenet1_1", 4, 1, 32, weights=str(tmp_path / "best.pt"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_files_without_batch_counters_load(pretrained: tuple[Path, dict[str, Tensor]]) -> None:
    file, state = pretrained
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, file)
    assert torch.equal(build("resnet18", 7, 3, 32, weights=str(file)).conv1.weight, state["conv1.weight"])


def test_weights_that_do_not_fit_are_named(pretrained: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    file, state = pretrained
    for change, message in (
        (
            {"layer1.0.conv1.weight": torch.ones(2, 2)},
            r"layer1\.0\.conv1\.weight .*\[2, 2\].*\[64, 64, 3, 3\]",
        ),
        ({"layer9.weight": torch.ones(2)}, r"has layer9\.weight"),
        ({"bn1.weight": None}, r"lacks bn1\.weight"),
    ):
        torch.save({k: v for k, v in (state | change).items() if v is not None}, file)
        with pytest.raises(UserError, match=message):
            build("resnet18", 7, 3, 32, weights=str(file))
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match=rf"model\.weights={file} .*torch"):
        build("resnet18", 7, 3, 32, weights=str(file))
    torch.save({"epoch": 3}, file)
    with pytest.raises(UserError, match=rf"model\.weights={file} .*state dict"):
        build("resnet18", 7, 3, 32, weights=str(file))
    with pytest.raises(UserError, match=r"model\.weights=IMAGENET1K_V3 .*resnet18.* IMAGENET1K_V1 DEFAULT"):
        build("resnet18", 7, 3, 32, weights="IMAGENET1K_V3")


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Runs()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"model\.weights=.*bad\.pt"):
        build("resnet18", 7, 3, 32, weights=str(tmp_path / "bad.pt"))
    assert not (tmp_path / "ran").exists()


def test_named_weights_offline_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    with pytest.raises(UserError, match=r"model.weights=DEFAULT: https://.*\(.*no network.*model\.weights=FILE"):
        build("resnet18", 7, 3, 32, weights="DEFAULT")


@pytest.mark.parametrize(("name", "side"), [("googlenet", 32), ("inception_v3", 75)])
def test_models_with_auxiliary_classifiers_give_logits_alone_and_load_without_them(
    name: str, side: int, tmp_path: Path
) -> None:
    import torchvision

    state = torchvision.models.get_model(name, aux_logits=True, init_weights=False).state_dict()
    assert any("aux" in key.lower() for key in state)
    torch.save(state, tmp_path / "weights.pth")
    model = build(name, 5, 3, side, weights=str(tmp_path / "weights.pth")).train()
    assert model(torch.randn(2, 3, side, side)).shape == (2, 5)


def test_names_and_sizes_that_do_not_exist_are_explained() -> None:
    with pytest.raises(UserError, match=r"model.name=mobilnet_v2 .*\bmobilenet_v2"):
        build("mobilnet_v2", 10)
    with pytest.raises(UserError, match=r"model\.name=inception_v3 .*\b32 pixels.*\b75\b"):
        build("inception_v3", 10, 3, 32)
    with pytest.raises(UserError, match=r"model\.activation=rleu .*\brelu\b"):
        Style("rleu")
    with pytest.raises(UserError, match=r"model.norm=batchnorm .*\bbatch\b"):
        Style(norm="batchnorm")
    with pytest.raises(UserError, match=r"model.pool=sum .*\bavg max none stride$"):
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


def test_dropout_of_a_torchvision_model_is_set_or_put_before_its_head() -> None:
    own = build("mobilenet_v3_small", 10, 3, 32)
    assert [m.p for m in every(own, nn.Dropout)] == [0.2]
    off = build("mobilenet_v3_small", 10, 3, 32, dropout=0.0)
    assert [m.p for m in every(off, nn.Dropout)] == [0.0]
    without = build("resnet18", 10, 3, 32, dropout=0.4)
    assert [m.p for m in every(without, nn.Dropout)] == [0.4]
    assert list(without.state_dict()) == list(build("resnet18", 10, 3, 32).state_dict())
    features = torch.ones(1, 512)
    assert not torch.equal(without.fc(features), without.fc(features))
    assert torch.equal(without.fc.eval()(features), without.fc(features))
    assert not any(getattr(m, "inplace", False) for m in without.modules())
