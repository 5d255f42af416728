"""Random-resized crops and the draws behind them, against torchvision (D7)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor
from torchvision.transforms import v2

from dlrun.config.compose import builtin_conf
from dlrun.data import crops
from dlrun.data.augment import Augment, CropFlip, ResizedCrop
from dlrun.data.batches import Batches
from dlrun.data.draws import REPEAT, Draws, occurrences
from dlrun.data.images import InMemory
from dlrun.data.splits import Split
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.training.experiment import build
from support.commands import TINY, Outcome
from support.composed import composed
from support.samples import smooth
from support.tensors import tensors


def images(*shape: int, count: int = 12) -> Tensor:
    """Smooth random images (count, H, W, C), uint8."""
    made = smooth(shape[2], *shape[:2], count=count)
    return (made * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("shape", "size"), [((40, 30, 3), (16, 20)), ((20, 24, 1), (24, 20)), ((31, 31, 3), (31, 31))])
def test_a_crop_is_torchvisions(dtype: torch.dtype, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    before = images(*shape).to(dtype)
    draws = Draws(3, 1, torch.arange(len(before)))
    box = crops.boxes(draws, shape[:2], (0.08, 1.0), (3 / 4, 4 / 3))
    across, down = draws.uniform("a")[0] < 0.5, draws.uniform("b")[0] < 0.5
    found = crops.resized(before, box, size, across, down)
    for k, image in enumerate(before.permute(0, 3, 1, 2)):
        expected = tvf.resized_crop(image, *(int(part[k]) for part in box), list(size))
        expected = tvf.hflip(expected) if across[k] else expected
        expected = tvf.vflip(expected) if down[k] else expected
        assert torch.equal(found[k], expected.permute(1, 2, 0))
    # as an accelerator computes it: within a level of rounding
    close = {"atol": 1 if dtype == torch.uint8 else 1e-3, "rtol": 0}
    torch.testing.assert_close(crops._by_matrices(before, box, size, across, down), found, **close)


def test_boxes_are_distributed_as_torchvisions() -> None:
    for shape, area, aspect in (((40, 60), (0.08, 1.0), (0.75, 4 / 3)), ((30, 30), (0.6, 0.9), (0.5, 2.0))):
        found = torch.stack(crops.boxes(Draws(1, 1, torch.arange(3000)), shape, area, aspect)).double()
        torch.manual_seed(0)
        asked = torch.zeros(1, *shape)
        crop = v2.RandomResizedCrop(8, scale=area, ratio=aspect)
        theirs = [crop.make_params([asked]) for _ in range(3000)]
        expected = torch.tensor([[p[k] for p in theirs] for k in ("top", "left", "height", "width")]).double()
        quantiles = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).double()
        assert (found.quantile(quantiles, 1) - expected.quantile(quantiles, 1)).abs().max() <= 2
        assert bool((found[0] + found[2] <= shape[0]).all() and (found[1] + found[3] <= shape[1]).all())
    # no box of these ratios fits into so flat an image: the centre
    flat = [part.unique().tolist() for part in crops.boxes(Draws(1, 1, torch.arange(9)), (4, 100), (0.9, 1.0), (1, 2))]
    assert flat == [[0], [46], [4], [8]]


def test_the_centre_is_torchvisions() -> None:
    for shape, size in (((9, 12), (4, 7)), ((8, 9), (8, 9)), ((11, 7), (4, 4))):
        x = torch.rand(2, *shape, 3)
        expected = tvf.center_crop(x.permute(0, 3, 1, 2), list(size))
        assert torch.equal(crops.centre(x, size).permute(0, 3, 1, 2), expected)
        assert torch.equal(crops.centre(x.permute(0, 3, 1, 2), size, 2), expected)
    assert crops.fed({"crop": [6, 5]}, (8, 9, 3)) == (6, 5, 3)
    assert crops.evaluated({"crop": 6}, (8, 8, 3)) == (6, 6)
    assert crops.evaluated({"crop": 6, "eval_crop": "full"}, (8, 8, 3)) is None
    assert crops.evaluated({"crop": 6, "eval_crop": 7}, (8, 8, 3)) == (7, 7)
    assert crops.evaluated({}, (8, 8, 3)) is None
    for keys in ({"crop": 9}, {"crop": 6, "eval_crop": [6, 9]}):
        with pytest.raises(UserError, match=rf"^augment\.{[*keys][-1]}="):
            crops.evaluated(keys, (8, 8, 3))


def test_draws_are_even_and_unrelated_between_samples_purposes_and_epochs() -> None:
    sample = torch.arange(20000)
    one = Draws(1, 1, sample).uniform("a", 3)
    assert one.min() >= 0
    assert one.max() < 1
    assert torch.histc(one, 10, 0, 1).sub(6000).abs().max() < 5 * 6000**0.5
    others = [Draws(1, 2, sample).uniform("a"), Draws(2, 1, sample).uniform("a"), Draws(1, 1, sample).uniform("b")]
    table = torch.cat([one, *others, Draws(1, 1, sample + REPEAT).uniform("a"), one[:1].roll(1, 1)])
    assert (np.corrcoef(table.numpy()) - np.eye(len(table))).__abs__().max() < 5 / 20000**0.5
    counts = torch.bincount(Draws(1, 1, sample).integers("c", 7)[0], minlength=7)
    assert len(counts) == 7
    assert counts.sub(20000 / 7).abs().max() < 5 * (20000 / 7) ** 0.5
    normal = Draws(1, 1, sample[:200]).normal("n", (30, 5), torch.device("cpu"))
    assert abs(float(normal.mean())) < 0.03
    assert abs(float(normal.std()) - 1) < 0.03
    assert occurrences(torch.tensor([3, 1, 3, 0, 3])).tolist() == [3, 1, 3 + REPEAT, 0, 3 + 2 * REPEAT]


STRONG = {"crop": 8, "flip": True, "flip_vertical": True, "rotate": 20.0, "hue": 0.2, "noise": 0.1, "cutout": 3}


@pytest.mark.parametrize("keys", [STRONG, {"pad": 2, "flip": "alternating", "randaugment": 2}], ids=["crop", "pad"])
def test_what_a_sample_becomes_depends_on_seed_epoch_and_sample_alone(keys: dict) -> None:
    pixels, count = images(12, 10, 3, count=23), 23
    split = Split(InMemory(pixels), torch.arange(count) % 2, [str(n) for n in range(count)])

    def seen(size: int, epoch: int = 2, seed: int = 7) -> Tensor:
        plain = {"mean": [0.0] * 3, "std": [1.0] * 3, "shuffle": True, "seed": seed}
        found = torch.zeros(count, 3, *crops.fed(keys, (12, 10, 3))[:2])
        for x, _, index in Batches(split, size, augment=Augment(**keys), **plain).epoch(epoch):
            found[index] = x
        return found

    expected = seen(23)
    for size in (1, 4, 11):
        # the order of sums depends on the batch: a level of rounding
        torch.testing.assert_close(seen(size), expected, atol=1.001, rtol=0)
    assert not torch.equal(seen(23, epoch=3), expected)
    assert not torch.equal(seen(23, seed=8), expected)


def test_a_range_that_cannot_be_is_refused() -> None:
    for keys in ({"scale": [0.5, 0.2]}, {"scale": [0.0, 1.0]}, {"ratio": [2.0, 1.0]}):
        with pytest.raises(UserError, match=rf"^augment\.crop_{next(iter(keys))}="):
            ResizedCrop(**keys)
    for keys in ({"erase_scale": [0.5, 0.2]}, {"erase_ratio": [0.0, 1.0]}):
        with pytest.raises(UserError, match=rf"^augment\.{next(iter(keys))}="):
            Augment(erase=0.5, **keys)


def test_auto_crops_many_images_and_shifts_few(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("model.width=4", "trainer.threads=1", "augment=crop_flip", "augment.crop=auto", "dataset.limit=100")
    few = build(composed(*words))
    monkeypatch.setattr(crops, "MANY", len(few.data.train))
    many = build(composed(*words))
    monkeypatch.undo()
    assert isinstance(few.train.augment, Augment)
    assert isinstance(few.train.augment.first, CropFlip)
    assert few.train.augment.first.pad == 4
    assert isinstance(many.train.augment, Augment)
    assert isinstance(many.train.augment.first, ResizedCrop)
    assert [exp.cfg.augment["crop"] for exp in (few, many)] == ["none", "full"]
    said = [crops.decided({"crop": "auto"}, count) for count in (crops.MANY - 1, crops.MANY)]
    assert [one and one[0] for one in said] == ["none", "full"]
    assert crops.decided({"crop": "full"}, 100) is None
    assert crops.decided({}, 100) is None
    assert f"{crops.MANY:,} training images" in Path(builtin_conf() / "augment/none.yaml").read_text()
    for words, crop in (((), "auto"), (("augment=resized_crop",), "full"), (("augment=none",), "none")):
        augment = composed("experiment=finetune", "dataset.root=.", *words).augment
        assert (augment["crop"], augment["pad"]) == (crop, 7 if crop == "auto" else 0)


def test_a_run_says_once_and_records_which_crop_it_has(
    dlrun: Callable[..., Outcome], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*TINY, "trainer.epochs=2", "augment=crop_flip", "augment.crop=auto")
    assert dlrun("train", *words, "run.dir=whole").code == 0
    assert dlrun("train", *words, "run.dir=cut", "trainer.stop_after=1").code == 0
    monkeypatch.setattr(crops, "MANY", 1)  # as if the bound had moved since
    assert dlrun("resume", "cut").code == 0
    assert (here / "cut/log.txt").read_text().count("augment.crop=none: shifts by augment.pad=4") == 1
    assert [reading.config(here / run)["augment"]["crop"] for run in ("whole", "cut")] == ["none", "none"]
    a, b = (tensors(torch.load(f"{run}/checkpoints/last.pt")["model"]) for run in ("whole", "cut"))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert dlrun("train", "--from", "cut", "augment.crop=auto", "run.dir=again").code == 0
    assert reading.config(here / "again")["augment"]["crop"] == "full"
    np.savez("new.npz", x=np.load("cut/probe.npz")["images"])
    assert dlrun("predict", "cut", "new.npz", "--out", "new.csv").code == 0
