"""Models of timm, an extra: names, channels, sizes, weights of files (M3)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dlrun.errors import UserError

timm = pytest.importorskip("timm", reason="the extra timm is not installed")

from dlrun.models import timm as ours  # noqa: E402
from dlrun.models.loading import loaded  # noqa: E402
from dlrun.models.timm import build  # noqa: E402


@pytest.mark.parametrize(
    ("name", "channels", "side"), [("test_resnet", 1, 32), ("test_vit", 3, 48), ("test_convnext", 3, 32)]
)
def test_classes_channels_and_size_are_filled_in(name: str, channels: int, side: int) -> None:
    model = build(name, 7, channels, side)
    assert model(torch.randn(2, channels, side, side)).shape == (2, 7)
    assert loaded(model) is None
    assert not any(getattr(module, "inplace", False) for module in model.modules())


def test_a_name_that_is_none_gets_similar_ones() -> None:
    with pytest.raises(UserError, match=r"model\.name=efficientnet_lite00 .*efficientnet_lite0"):
        build("efficientnet_lite00", 3)
    with pytest.raises(UserError, match=r"model\.name=resnet18\.a1_in1kk .*resnet18\.a1_in1k"):
        build("resnet18.a1_in1kk", 3)


def test_weights_of_a_file_keep_all_but_the_classifier(tmp_path: Path) -> None:
    first = timm.create_model("test_resnet", num_classes=9)
    torch.save(first.state_dict(), tmp_path / "a.pth")
    model = build("test_resnet", 4, 3, 32, weights=str(tmp_path / "a.pth"))
    state = model.state_dict()
    head = [name for name in state if name.startswith("fc.")]
    assert all(torch.equal(state[name], value) for name, value in first.state_dict().items() if name not in head)
    made = loaded(model)
    assert made is not None
    assert made.head == "new"
    assert made.count("new") == len(head) == 2
    assert len(made.sha256) == 64
    torch.save(timm.create_model("test_vit", num_classes=9).state_dict(), tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"model\.weights=.*b\.pth lacks conv1.*cls_token"):
        build("test_resnet", 4, 3, 32, weights=str(tmp_path / "b.pth"))
    with pytest.raises(UserError, match=r"model\.weights=nowhere\.pth"):
        build("test_resnet", 4, weights="nowhere.pth")


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network")

    for key in ("https_proxy", "HTTPS_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(ours, "_cached", lambda cfg: False)
    monkeypatch.setattr(ours, "socket", SimpleNamespace(create_connection=refuse))
    with pytest.raises(UserError, match=r"model\.weights=true.*resnet18.*no network.*model\.weights=FILE"):
        build("resnet18", 3, weights=True)


def test_position_embeddings_are_resampled_to_another_image_size(tmp_path: Path) -> None:
    from timm.layers import resample_abs_pos_embed

    first = timm.create_model("test_vit", num_classes=4)
    torch.save(first.state_dict(), tmp_path / "a.pth")
    for shape, grid in (((48, 48), (3, 3)), ((48, 96), (3, 6))):
        model = build("test_vit", 4, 3, max(shape), image_shape=shape, weights=str(tmp_path / "a.pth"))
        found = model.get_parameter("pos_embed")
        expected = resample_abs_pos_embed(first.pos_embed.detach(), list(grid), num_prefix_tokens=1)
        torch.testing.assert_close(found, torch.nn.Parameter(expected))
        made = loaded(model)
        assert made is not None
        assert made.count("new") == 0
        assert any("pos_embed" in note for note in made.notes)
        assert model(torch.randn(2, 3, *shape)).shape == (2, 4)
    torch.save(timm.create_model("test_maxvit", num_classes=4).state_dict(), tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"model\.weights=.*bias_table.*dataset\.image_size=160"):
        build("test_maxvit", 4, 3, 96, weights=str(tmp_path / "b.pth"))
