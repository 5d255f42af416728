"""Weights files as data, and what of them fits a model (M3): `model.weights=FILE`."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.errors import UserError
from dlrun.models.loading import Loaded, loaded, put
from dlrun.models.weights_file import Weights, digest, read


def net(classes: int = 3, width: int = 4, channels: int = 3) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, width, 3),
            norm=nn.BatchNorm2d(width),
            deep=nn.Conv2d(width, 2 * width, 3),
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            head=nn.Linear(2 * width, classes),
        )
    )


def fill(model: nn.Module, state: dict[str, Tensor], *names: str, **more: Any) -> Loaded:
    classes = names or ("a", "b", "c")
    return put(model, Weights(dict(state), "file", **more), "model.weights=file", ["head"], classes)


def safetensors(path: Path, state: dict[str, Tensor], **change: Any) -> Path:
    """A .safetensors file as the format is described: the size of its header, JSON, bytes."""
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, value in sorted(state.items()):
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        place = [len(body), len(body) + len(data)]
        header[name] = {"dtype": kinds[value.dtype], "shape": list(value.shape), "data_offsets": place} | change
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def test_safetensors_are_read_as_their_library_writes_them(tmp_path: Path) -> None:
    state = {name: value.half() if name == "head.bias" else value for name, value in net().state_dict().items()}
    found = read(safetensors(tmp_path / "a.safetensors", state), "model.weights=a")
    assert found.sha256 == digest(tmp_path / "a.safetensors")
    assert set(found.tensors) == set(state)
    for name, value in state.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value), name
    library = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    library.save_file(state, tmp_path / "b.safetensors")
    for name, value in read(tmp_path / "b.safetensors", "b").tensors.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize(
    "change",
    [{"dtype": "F64"}, {"shape": [1]}, {"data_offsets": [0, 1 << 40]}, {"data_offsets": [-4, 0]}, {"dtype": "X"}],
)
def test_damaged_safetensors_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = safetensors(tmp_path / "a.safetensors", {"w": torch.ones(3)}, **change)
    with pytest.raises(UserError, match=r"model\.weights=a"):
        read(file, "model.weights=a")
    file.write_bytes(file.read_bytes()[:5])
    with pytest.raises(UserError, match=r"model\.weights=a"):
        read(file, "model.weights=a")


def test_a_pickle_is_refused_without_a_warning_of_torch(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"w": 1}, protocol=4))  # torch warns of protocols other than 2
    with pytest.raises(UserError, match=r"model\.weights=a"):
        read(tmp_path / "a.pt", "model.weights=a")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "_orig_mod.module."])
def test_the_names_of_wrappers_are_removed(tmp_path: Path, prefix: str) -> None:
    state = net().state_dict()
    torch.save({"state_dict": {prefix + name: value for name, value in state.items()}, "epoch": 3}, tmp_path / "a.pth")
    assert set(read(tmp_path / "a.pth", "key").tensors) == set(state)


def test_other_names_are_matched_by_shape_and_order_if_nothing_else_fits() -> None:
    state = net().state_dict()
    renamed = {f"features.{name}".replace("head", "fc"): value for name, value in state.items()}
    model = net()
    made = fill(model, renamed)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if "num_b" not in name)
    assert len(made.notes) == 2  # the names, and the classes that the file does not name
    other = net(classes=7)
    assert fill(other, renamed, *"abcdefg").head == "new"
    assert torch.equal(other.deep.weight, state["deep.weight"])
    shuffled = dict(sorted(renamed.items(), key=lambda item: item[0][::-1]))
    mixed = renamed | {"features.norm.running_mean": torch.ones(5)}
    split = {name.replace("norm.bias", "scale.bias"): value for name, value in renamed.items()}  # of another layer
    for refused in (shuffled, mixed, split):
        before = net()
        was = {name: value.clone() for name, value in before.state_dict().items()}
        with pytest.raises(UserError, match=r"conv\.weight"):
            fill(before, refused)
        assert all(torch.equal(value, was[name]) for name, value in before.state_dict().items())
    with pytest.raises(UserError, match=r"conv\.weight"):  # a sorted file has lost the order of its layers
        fill(net(), renamed, ordered=False)


def test_rows_of_the_head_go_to_their_classes() -> None:
    state, model = net().state_dict(), net(classes=4)
    before = model.head.weight.detach().clone()
    made = fill(model, state, "c", "new", "a", "other", classes=("a", "b", "c"))
    assert made.head == "partly loaded"
    assert torch.equal(model.head.weight[[0, 2]], state["head.weight"][[2, 0]])
    assert torch.equal(model.head.bias[[0, 2]], state["head.bias"][[2, 0]])
    assert torch.equal(model.head.weight[[1, 3]], before[[1, 3]])
    rows = {row["name"]: row for row in made.rows}
    assert (rows["head.weight"]["state"], rows["head.weight"]["rows"]) == ("partly loaded", 2)
    assert made.record()["partly_loaded"] == 2
    same = net()
    assert fill(same, state, "b", "c", "a", classes=("a", "b", "c")).head == "loaded"  # in another order
    assert torch.equal(same.head.weight, state["head.weight"][[1, 2, 0]])
    assert fill(net(), state, "x", "y", "z", classes=("a", "b", "c")).head == "new"
    assert loaded(same) is not None
    assert loaded(net()) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"deep.weight": torch.full((8, 4, 3, 3), float("nan"))}, r"deep\.weight"),
        ({"deep.weight": torch.ones(8, 4, 3, 3, dtype=torch.int64)}, r"deep\.weight.*float32.*int64"),
        ({"deep.weight": torch.ones(8, 4, 5, 5)}, r"deep\.weight.*\[8, 4, 5, 5\].*\[8, 4, 3, 3\]"),
        ({"extra.weight": torch.ones(2)}, r"extra\.weight"),
    ],
)
def test_what_does_not_fit_is_named_before_the_model_changes(change: dict[str, Tensor], words: str) -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=words):
        fill(model, net().state_dict() | change)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_half_precision_is_converted_and_gray_filters_serve_colours() -> None:
    gray = net(channels=1).state_dict().items()
    state = {name: value.half() if value.is_floating_point() else value for name, value in gray}
    model = net()
    made = fill(model, state)
    assert any("float16" in note for note in made.notes)
    assert torch.allclose(model.conv.weight.sum(1), state["conv.weight"].float().sum(1), atol=1e-6)


def test_a_vision_transformer_takes_weights_of_another_image_size() -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    shape = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8, "num_classes": 3}
    large, small = (VisionTransformer(image_size=size, patch_size=4, **shape) for size in (32, 16))
    torch.nn.init.normal_(large.encoder.pos_embedding)
    x = torch.linspace(-1, 1, 8)
    with torch.no_grad():
        large.encoder.pos_embedding[0, 1:, 0] = x.repeat(8)  # a ramp along each row stays one
    made = put(small, Weights(dict(large.state_dict()), "a.pth"), "model.weights=a.pth", ["heads.head"], ())
    assert made.head == "loaded"
    assert "8×8" in made.notes[0]
    found, given = small.encoder.pos_embedding[0], large.encoder.pos_embedding[0]
    assert torch.equal(found[0], given[0])
    rows = found[1:, 0].view(4, 4)
    assert torch.allclose(rows, rows[:1].expand(4, 4), atol=1e-5)
    assert torch.allclose(rows[0, 1:3], x.view(4, 2).mean(1)[1:3], atol=0.02)
    assert (rows[0].diff() > 0.3).all()
