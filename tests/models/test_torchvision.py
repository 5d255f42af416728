"""Models of torchvision: what weights files do, and which are refused (M3)."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from dlrun.errors import UserError
from dlrun.models.torchvision import build
from support.networks import every


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """Weights of a thousand classes and three channels, as in torchvision's own files."""
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
