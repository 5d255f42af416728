"""The input that pretrained weights expect: used, recorded, checked, and carried to predict (D3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.checks.runner import CHECKS
from dlrun.checks.sandbox import no_trace
from dlrun.config.rules import parse
from dlrun.data.decoding import Decoding, decoded
from dlrun.errors import UserError
from dlrun.models import pretrained
from dlrun.models.pretrained import Statistics, expected_input
from dlrun.training import statistics
from dlrun.training.experiment import Experiment, build
from support.commands import Outcome
from support.composed import composed

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
THEIRS = Statistics("some network", MEAN, STD, (12, 12), "bicubic", 0.75)
CHEAP = ("trainer.threads=1", "check=none", "trainer.report=false", "trainer.epochs=1", "model.width=4")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for label, level in (("ant", 60), ("bee", 180)):
        for i in range(20):
            path = tmp_path / "photos" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(level + i).normal(level, 30, (16, 20, 3))
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def weighted(photos: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Settings of a small network on photos that says it has pretrained weights."""
    monkeypatch.setattr(statistics, "expected", lambda cfg: THEIRS)
    return (*CHEAP, "model=cnn", "dataset=image_folder", f"dataset.root={photos}")


def test_what_the_config_leaves_open_is_that_of_the_weights(weighted: tuple[str, ...]) -> None:
    exp = build(composed(*weighted))
    assert exp.data.shape == (12, 12, 3)
    assert exp.data.mean == pytest.approx([255 * v for v in MEAN])
    assert exp.data.std == pytest.approx([255 * v for v in STD])
    record = exp.data.record()
    assert (record["decoding"]["interpolation"], record["decoding"]["crop"]) == ("bicubic", 0.75)
    assert record["train_mean"] != record["mean"]
    again = build(exp.cfg)  # what is stored needs no weights
    assert (again.data.mean, again.data.shape) == (exp.data.mean, exp.data.shape)
    images = next(exp.val.epoch(0))[0]
    raw = exp.data.val.images.take(torch.arange(len(images))).permute(0, 3, 1, 2) / 255
    wanted = (raw - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    assert torch.allclose(images, wanted, atol=1e-5)
    assert any("some network" in note for note in exp.notes)


def test_images_are_kept_larger_than_an_augmented_crop(weighted: tuple[str, ...]) -> None:
    exp = build(composed(*weighted, "augment.crop=12"))
    assert (exp.data.shape, exp.data.record()["decoding"]["crop"]) == ((16, 16, 3), 1.0)
    assert next(exp.val.epoch(0))[0].shape[2:] == (12, 12)


@pytest.mark.parametrize(
    ("word", "mean"),
    [
        ("dataset.normalize=weights", MEAN),
        ("dataset.normalize=[[0.1,0.2,0.3],[1,1,1]]", (0.1, 0.2, 0.3)),
        ("dataset.normalize=[[0.1],[0.5]]", (0.1, 0.1, 0.1)),
        ("dataset.normalize=data", None),
    ],
)
def test_what_is_typed_wins(weighted: tuple[str, ...], word: str, mean: tuple[float, ...] | None) -> None:
    typed = ("dataset.image_size=8", "dataset.interpolation=area", "dataset.crop_pct=1", word)
    exp = build(composed(*weighted, *typed))
    decoding = exp.data.record()["decoding"]
    assert (exp.data.shape, decoding["interpolation"], decoding["crop"]) == ((8, 8, 3), "area", 1)
    if mean is None:
        assert exp.data.own is None
        assert abs(float(next(exp.train.epoch(1))[0].mean())) < 0.2
    else:
        assert exp.data.mean == pytest.approx([255 * v for v in mean])


def test_without_weights_everything_is_as_before(photos: Path) -> None:
    words = (*CHEAP, "dataset=image_folder", f"dataset.root={photos}", "dataset.image_size=8")
    exp = build(composed(*words))
    assert (exp.data.own, exp.notes) == (None, ())
    assert exp.data.record()["decoding"]["interpolation"] == "bilinear"
    with pytest.raises(UserError, match=r"dataset\.normalize=weights"):
        build(composed(*words, "dataset.normalize=weights"))


def test_values_that_cannot_be_are_refused(photos: Path) -> None:
    for bracket, wrong in (("[normalize]", ("imagenet", [[0.5], [0]], [[0.5]], 3)), ("[crop_pct]", (0, 2, "all"))):
        assert not any(map(parse(bracket).holds, wrong))
    with pytest.raises(UserError, match=r"dataset\.normalize"):
        composed("dataset=image_folder", f"dataset.root={photos}", "dataset.normalize=imagenet")


def test_numbers_of_another_scale_or_count_are_refused(photos: Path) -> None:
    words = (*CHEAP, "dataset=image_folder", f"dataset.root={photos}", "dataset.image_size=8")
    with pytest.raises(UserError, match="255"):
        build(composed(*words, "dataset.normalize=[[123.7,116.3,103.5],[58.4,57.1,57.4]]"))
    with pytest.raises(UserError, match=r"3.*2"):
        build(composed(*words, "dataset.normalize=[[0.1,0.2],[0.5,0.5]]"))


def test_gray_images_take_the_mean_of_the_colours(weighted: tuple[str, ...]) -> None:
    exp = build(composed(*weighted, "dataset.channels=1"))
    assert exp.data.mean == pytest.approx([255 * 0.4])


def test_the_centre_of_a_larger_image_is_cut_out(photos: Path) -> None:
    file = photos / "ant" / "0.png"
    found = decoded(file, (12, 12, 3), Decoding(crop=0.75))
    with Image.open(file) as image:
        whole = image.resize((20, 16), Image.Resampling.BILINEAR).crop((4, 2, 16, 14))
    assert np.array_equal(found, np.asarray(whole))


def test_inputs_are_held_against_what_the_weights_expect(
    weighted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlrun.checks import pretrained as judged

    def verdict(*words: str) -> Any:
        exp = build(composed(*weighted, *words))
        monkeypatch.setattr(judged, "loaded", lambda model: object())
        monkeypatch.setattr(judged, "expected", lambda cfg: THEIRS)
        with no_trace():
            return CHECKS["inputs"](exp)

    assert verdict().status == "pass"
    found = verdict("dataset.normalize=data")
    assert found.status == "warn"
    assert "dataset.normalize=weights" in found.message


def trained(exp: Experiment, mean: float, std: float) -> None:
    """Let the first batch norm have seen the images with another mean and std."""
    images = exp.data.train.images.take(torch.arange(len(exp.data.train))).permute(0, 3, 1, 2) / 255
    exp.model.train()
    for _ in range(100):
        with torch.no_grad():
            exp.model((images - mean) / std)


def test_the_first_batch_norm_tells_by_what_its_images_were_normalised(
    weighted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlrun.checks import pretrained as judged

    monkeypatch.setattr(judged, "loaded", lambda model: object())
    monkeypatch.setattr(judged, "expected", lambda cfg: None)
    for given, warns in (("[[0.5],[0.5]]", False), ("[[0.485,0.456,0.406],[0.229,0.224,0.225]]", True)):
        exp = build(composed(*weighted, f"dataset.normalize={given}"))
        trained(exp, 0.5, 0.5)
        with no_trace():
            message = judged.disagreement(exp)
        assert bool(message) is warns, message
        assert ("dataset.normalize=[[0.5,0.5,0.5],[0.5,0.5,0.5]]" in message) is warns


def test_torchvision_and_timm_say_what_their_weights_expect() -> None:
    found = expected_input({"_target_": "dlrun.models.torchvision.build", "name": "resnet18", "weights": True})
    assert found is not None
    assert (found.mean, found.size, found.crop) == ((0.485, 0.456, 0.406), (224, 224), 0.875)
    assert expected_input({"_target_": "dlrun.models.cnn.CNN"}) is None
    pytest.importorskip("timm", reason="the extra timm is not installed")
    found = pretrained.expected_input({"_target_": "dlrun.models.timm.build", "name": "tf_efficientnet_lite0"})
    assert found is not None
    assert (found.std, found.interpolation, found.crop) == ((0.5, 0.5, 0.5), "bicubic", 0.875)


def test_a_run_is_loaded_with_the_statistics_of_its_weights(
    weighted: tuple[str, ...], dlrun: Callable[..., Outcome], here: Path
) -> None:
    from dlrun.folders import reading
    from dlrun.inference.predictor import load, rebuilt

    assert dlrun("train", *weighted, "run.dir=run").code == 0
    stored = reading.stored(here / "run")
    assert stored["data"]["mean"] == pytest.approx([255 * v for v in MEAN])
    assert stored["config"]["dataset"]["normalize"] == [list(MEAN), list(STD)]
    predictor = load(here / "run", [], "cpu")
    val = rebuilt(here / "run", []).data.val
    logits = predictor.logits(val.images.take(torch.arange(len(val))))[0]
    assert np.allclose(logits, reading.arrays(here / "run", "predictions")["val_logits"], atol=1e-5)


def test_without_timm_its_models_are_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlrun.config.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model=timm.*dlrun\[timm\]"):
        composed("model=timm", "model.name=resnet18")
