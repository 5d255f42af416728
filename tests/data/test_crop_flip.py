"""Random crops and mirror images, against one image at a time (D7)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tvf

from dlrun.data import Batches
from dlrun.data.augment import CropFlip
from dlrun.data.draws import Draws
from dlrun.errors import UserError
from support.samples import made

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("shape", [(9, 11, 3), (8, 8, 1)])
@pytest.mark.parametrize("flip", [True, False])
def test_crop_flip_equals_one_image_at_a_time(dtype, padding, shape, flip):
    pad, count = 3, 40
    images = torch.from_numpy(RNG.integers(0, 256, (count, *shape), dtype=np.uint8)).to(dtype)
    found = CropFlip(pad, flip=flip, padding=padding)(images, torch.Generator().manual_seed(11))
    drawn = Draws.of(torch.Generator().manual_seed(11), count)
    top, left = drawn.integers("crop", 2 * pad + 1, 2).tolist()
    mirrored = (drawn.uniform("flip")[0] < 0.5).tolist() if flip else [False] * count
    mode = {"mode": "reflect"} if padding == "reflect" else {"mode": "constant"}
    for number, image in enumerate(images):
        padded = np.pad(image.numpy(), ((pad, pad), (pad, pad), (0, 0)), **mode)
        expected = padded[top[number] : top[number] + shape[0], left[number] : left[number] + shape[1]]
        if mirrored[number]:
            expected = expected[:, ::-1]
        assert np.array_equal(found[number].numpy(), expected)
    assert found.dtype == dtype
    assert len(set(zip(top, left, strict=True))) > 10  # each sample has its own


def test_crop_flip_draws_every_offset_and_mirrors_half():
    images = torch.arange(1, 26, dtype=torch.float32).view(1, 5, 5, 1).repeat(8000, 1, 1, 1)
    out = CropFlip(1, flip=True)(images, torch.Generator().manual_seed(0))
    centres = torch.unique(out[:, 2, 2, 0], return_counts=True)
    assert centres[0].tolist() == [7, 8, 9, 12, 13, 14, 17, 18, 19]
    assert (centres[1] / 8000 - 1 / 9).abs().max() < 0.02
    mirrored = (out[:, 2, 1, 0] > out[:, 2, 2, 0]).double().mean()
    assert abs(mirrored - 0.5) < 0.02


def test_crop_flip_without_padding_or_mirror_changes_nothing():
    images = torch.from_numpy(RNG.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8))
    assert torch.equal(CropFlip(0, flip=False)(images, torch.Generator()), images)
    flipped = CropFlip(0)(images, torch.Generator().manual_seed(0))
    for before, after in zip(images, flipped, strict=True):
        assert torch.equal(after, before) or torch.equal(after, tvf.hflip(before.permute(2, 0, 1)).permute(1, 2, 0))


def test_crop_flip_rejects_what_it_cannot_do():
    with pytest.raises(UserError, match=r"augment\.pad=-1"):
        CropFlip(-1)
    with pytest.raises(UserError, match=r"augment\.padding=wrap"):
        CropFlip(padding="wrap")
    with pytest.raises(UserError, match=r"augment\.pad=4: .*4×9"):
        CropFlip(4, padding="reflect")(torch.zeros(1, 4, 9, 1), torch.Generator())


def test_augmentation_draws_follow_seed_and_epoch():
    split = made([30, 30])

    def pass_(number, seed):
        keys = {"mean": [0.0] * 3, "std": [1.0] * 3, "seed": seed, "augment": CropFlip(2)}
        return torch.cat([x for x, _, _ in Batches(split, 16, **keys).epoch(number)])

    assert torch.equal(pass_(1, 0), pass_(1, 0))
    assert not torch.equal(pass_(1, 0), pass_(2, 0))
    assert not torch.equal(pass_(1, 0), pass_(1, 1))
