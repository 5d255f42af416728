"""Training on features of a frozen network gives the weights of training through it, and runs the network once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlrun.data.cache import Cache
from dlrun.data.features import features_of
from dlrun.folders import reading
from dlrun.models.airbench import Airbench
from dlrun.training import features
from dlrun.training.experiment import build
from support.composed import SMALL, composed

COMMON = (*SMALL, "trainer.diagnostics=true", "model.freeze=backbone", "regularizer.dropout=0.2", "trainer.ema=0.9")


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each batch that is passed through a frozen network."""
    found: list[int] = []
    original = features._forward

    def forward(exp: Any, front: Any, x: Any) -> Any:
        found.append(len(x))
        return original(exp, front, x)

    monkeypatch.setattr(features, "_forward", forward)
    return found


def stored(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints/last.pt")
    return found


def same(one: Path, other: Path) -> None:
    ours, theirs = stored(one), stored(other)
    for part in ("model", "ema"):
        assert ours[part].keys() == theirs[part].keys()
        for name, tensor in ours[part].items():
            torch.testing.assert_close(tensor, theirs[part][name], rtol=1e-5, atol=1e-6)
    for a, b in zip(reading.metrics(one), reading.metrics(other), strict=True):
        for column in ("train_loss", "val_loss", "train_eval_acc", "ema_val_loss", "lr"):
            assert float(a[column]) == pytest.approx(float(b[column]), rel=1e-4)


@pytest.mark.parametrize("augment", [(), ("augment=crop_flip", "augment.pad=1")], ids=["plain", "augmented"])
def test_it_is_training_through_the_network(
    dlrun: Callable[..., Any], here: Path, passed: list[int], augment: tuple[str, ...]
) -> None:
    assert dlrun("train", *COMMON, *augment, "trainer.feature_views=0", "run.dir=through").code == 0
    assert passed == []
    assert dlrun("train", *COMMON, *augment, "run.dir=on", "dataset.cache=c").code == 0
    same(here / "through", here / "on")
    assert sum(passed) == 120 if not augment else 120 < sum(passed) <= 108 * 2 + 12 + 10
    assert reading.stored(here / "on")["feature_seconds"] > 0
    assert "feature_seconds" not in reading.stored(here / "through")
    layers = {row["layer"] for row in reading.layers(here / "on")}
    assert layers == {"head"} < {row["layer"] for row in reading.layers(here / "through")}
    if augment:
        passed.clear()
        assert dlrun("train", *COMMON, *augment, "run.dir=again", "dataset.cache=c", "optimizer.lr=0.01").code == 0
        assert sum(passed) <= 2 * 32 + 16  # a few of each view are compared
        assert not torch.equal(*(stored(here / run)["model"]["head.weight"] for run in ("on", "again")))


def test_later_epochs_use_the_views_in_turn(here: Path) -> None:
    words = (*COMMON, "augment=crop_flip", "augment.pad=1", "trainer.epochs=4", "trainer.feature_views=2")
    exp = build(composed(*words, f"dataset.cache={here}"))

    class Quiet:
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **more: None

    made: Any = features.swapped(exp, Quiet(), Quiet())  # type: ignore[arg-type]
    seen = []
    for epoch in (1, 2, 3, 4):
        found = torch.zeros(len(exp.data.train), 16)
        for x, _, index in made.train.epoch(epoch):
            found[index] = x.flatten(1)
        seen.append(found)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    order = [torch.cat([index for _, _, index in made.train.epoch(epoch)]) for epoch in (1, 3)]
    assert not torch.equal(*order)


def test_a_paused_run_on_features_ends_bit_for_bit_and_predicts_as_it_was_tested(
    dlrun: Callable[..., Any], here: Path
) -> None:
    words = (*COMMON, "augment=crop_flip", "augment.pad=1", "trainer.accumulate=2")
    assert dlrun("train", *words, "run.dir=whole").code == 0
    assert dlrun("train", *words, "run.dir=parts", "trainer.stop_after=1", "dataset.cache=none").code == 0
    assert dlrun("resume", "parts").code == 0
    for part in ("model", "ema"):
        ours, theirs = (stored(here / run)[part] for run in ("whole", "parts"))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (reading.arrays(here / run, "predictions") for run in ("whole", "parts"))
    assert np.array_equal(ours["test_logits"], theirs["test_logits"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("model.hold_norms=none",), "hold_norms"),
        (("augment.progressive=[[6,1]]",), "progressive"),
        (("augment.repeats=2",), "repeats"),
        (("model=airbench", "model.widths=[8]"), "sequence"),
    ],
)
def test_what_needs_the_network_in_every_epoch_is_named(
    dlrun: Callable[..., Any], here: Path, passed: list[int], words: tuple[str, ...], reason: str
) -> None:
    common = [word for word in COMMON if not word.startswith("model.width") or "model=airbench" not in words]
    found = dlrun("train", *common, "augment=crop_flip", "augment.pad=1", *words, "run.dir=run")
    assert (found.code, passed) == (0, [])
    assert reason in found.out


def ends(model: nn.Module, *patterns: str) -> tuple[list[str], tuple[int, ...]]:
    exp = build(composed(*SMALL, *patterns))
    return features._end(exp)


def test_the_end_is_what_trains_with_the_dropout_before_it() -> None:
    dropout = "regularizer.dropout=0.1"
    for words, expected in {
        ("model.freeze=backbone",): (["head"], (16,)),
        ("model.freeze=backbone", dropout): (["dropout", "head"], (16,)),
        ("model.freeze=[stage1,stage2]", dropout): (["stage3", "pool", "flatten", "dropout", "head"], (8, 4, 4)),
        ("model.freeze=[stage2]",): ([], ()),
    }.items():
        assert features._end(build(composed(*SMALL, *words))) == expected
    assert Airbench(1, 10)  # multiplies what its head returns: see above


KEYS = [bytes([number]) * 16 for number in range(9)]


def computed(asked: list[int], factor: float = 1.0) -> Any:
    def compute(numbers: Any) -> Any:
        asked.extend(numbers.tolist())
        yield numbers, factor * np.float32(1 + numbers[:, None] * np.arange(1, 5))

    return compute


def rows(*arguments: Any) -> Any:
    images = features_of(*arguments)
    return images.take(torch.arange(len(images)))[:, 0, 0].numpy()


def test_cached_features_are_verified_and_only_missing_ones_computed(tmp_path: Path) -> None:
    cache, asked = Cache(tmp_path, 1.0), list[int]()
    expected = next(computed([])(np.arange(9)))[1]
    assert np.array_equal(rows(cache, {"a": 1}, KEYS[:6], (6, 4), computed(asked)), expected[:6])
    assert asked == [*range(6)]
    asked.clear()
    assert np.array_equal(rows(cache, {"a": 1}, KEYS, (9, 4), computed(asked)), expected)
    assert sorted(asked)[-3:] == [6, 7, 8]
    assert rows(cache, {"a": 2}, KEYS, (9, 4), computed(asked, 2.0))[0, 0] == 2.0  # other weights
    (first, _) = sorted(tmp_path.glob("*.pack"), key=lambda file: file.stat().st_mtime)
    with open(first, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"spoiled!")
    asked.clear()
    assert np.array_equal(rows(cache, {"a": 1}, KEYS, (9, 4), computed(asked)), expected)
    assert asked.count(8) == 1
    # code that changed without a trace in the weights
    assert rows(cache, {"a": 1}, KEYS, (9, 4), computed(asked, 3.0))[0, 0] == 3.0


def test_features_that_cannot_be_cached_are_held_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = next(computed([])(np.arange(9)))[1]
    (tmp_path / "file").write_text("")
    for cache in (None, Cache(tmp_path, 1e-8), Cache(tmp_path / "file", 1.0)):
        assert np.array_equal(rows(cache, {}, KEYS, (9, 4), computed([])), expected)
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert np.array_equal(rows(Cache(tmp_path, 1.0), {}, None, (9, 4), computed([])), expected)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_evaluation_crops_images_and_not_features(here: Path, dlrun: Callable[..., Any]) -> None:
    words = (*COMMON, "augment=resized_crop", "augment.crop=6", "trainer.feature_views=2", "dataset.cache=c")
    for size in ("auto", "8"):  # another centre is evaluated: the features in the cache are others
        more = (*words, f"augment.eval_crop={size}")
        assert dlrun("train", *more, f"run.dir=on{size}").code == 0
        assert dlrun("train", *more, f"run.dir=through{size}", "trainer.feature_views=0").code == 0
        same(here / f"through{size}", here / f"on{size}")
    (small, *_), (large, *_) = (reading.metrics(here / f"on{size}") for size in ("auto", "8"))
    assert small["val_loss"] != large["val_loss"]
