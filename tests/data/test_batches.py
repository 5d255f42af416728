"""Order and decoding of batches: the same for a seed and an epoch, from memory or from files (D5)."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.data import Batches
from dlrun.data.augment import CropFlip
from dlrun.data.files import image_folder
from dlrun.data.images import InMemory, Streamed, read
from dlrun.data.scan import scan
from dlrun.errors import UserError
from support.samples import everything, made, raw, ready

RNG = np.random.default_rng(1)


# ---- order


def order(split, number, **keys):
    keys = {"mean": [0.0] * 3, "std": [1.0] * 3, "shuffle": True, **keys}
    return torch.cat([index for _, _, index in Batches(split, 16, **keys).epoch(number)]).tolist()


def test_order_differs_by_epoch_and_seed_and_repeats():
    split = made([40, 30])
    orders = [order(split, number, seed=seed) for seed in (0, 1) for number in (1, 2, 3)]
    for one in orders:
        assert sorted(one) == list(range(70))
    assert len({tuple(one) for one in orders}) == 6
    assert order(split, 2, seed=1) == orders[4]
    assert order(split, 5, shuffle=False) == list(range(70))


def test_x_y_and_index_belong_together_when_shuffled():
    split = made([40, 30])
    for x, y, index in Batches(split, 16, mean=[0.0] * 3, std=[1.0] * 3, shuffle=True).epoch(1):
        assert torch.equal(y, split.labels[index])
        assert torch.equal(x, split.images.pixels[index].permute(0, 3, 1, 2).float())


def test_drop_last_and_length():
    split = made([40, 30])
    for drop_last, expected in ((False, [16, 16, 16, 16, 6]), (True, [16, 16, 16, 16])):
        batches = Batches(split, 16, mean=[0.0] * 3, std=[1.0] * 3, drop_last=drop_last)
        assert len(batches) == len(expected)
        assert [len(y) for _, y, _ in batches.epoch(1)] == expected


def test_global_random_state_is_left_alone(folder):
    torch.manual_seed(7)
    np.random.seed(7)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    data = ready(image_folder(str(folder), image_size=8), memory_gb=0)
    for _ in Batches(data.train, 8, mean=data.mean, std=data.std, shuffle=True, augment=CropFlip(2), seed=3).epoch(1):
        pass
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


# ---- streaming


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for name in ("a", "b", "c"):
        (root / name).mkdir()
        for number in range(40):
            height, width = RNG.integers(8, 30, 2)
            image = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
            image.save(root / name / f"{number}.{'jpg' if number % 2 else 'png'}")
    return root


def test_streaming_equals_memory_bit_for_bit(folder):
    source = image_folder(str(folder), image_size=8)
    held, streamed = ready(source), ready(source, memory_gb=1e-6)
    assert isinstance(held.train.images, InMemory)
    assert isinstance(streamed.train.images, Streamed)
    assert held.record() == streamed.record()
    assert torch.equal(everything(held.val), everything(streamed.val))
    assert torch.equal(everything(held.test().split), everything(streamed.test().split))
    keys = {"mean": held.mean, "std": held.std, "shuffle": True, "seed": 5, "augment": CropFlip(2)}
    for workers in (1, 3):
        one = Batches(held.train, 16, **keys).epoch(2)
        two = Batches(streamed.train, 16, workers=workers, **keys).epoch(2)
        for a, b in zip(one, two, strict=True):
            assert all(torch.equal(left, right) for left, right in zip(a, b, strict=True))
            assert a[0].stride() == b[0].stride()


def test_scan_keeps_order_for_any_number_of_threads(folder):
    images = image_folder(str(folder), image_size=8).train.images
    expected = InMemory(images.take(torch.arange(len(images))))
    scans = [scan(images, keep=keep, workers=workers) for keep in (True, False) for workers in (1, 2, 5)]
    for found in scans:
        assert (found.mean, found.std) == (scans[0].mean, scans[0].std)
        assert found.images.marks.digests == expected.marks.digests
        assert torch.equal(found.images.take(torch.arange(len(images))), expected.pixels)
    assert [type(found.images) for found in scans] == [InMemory] * 3 + [Streamed] * 3


def decoders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("dlrun-decode")]


def test_leaving_an_epoch_early_ends_its_threads(folder):
    split = image_folder(str(folder), image_size=8).train
    batches = Batches(split, 4, mean=[0.0] * 3, std=[1.0] * 3, workers=3)
    epoch = batches.epoch(1)
    next(epoch)
    assert decoders()
    epoch.close()
    assert not decoders()

    def interrupted():
        for _ in batches.epoch(1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not decoders()
    for _ in batches.epoch(1):
        pass
    assert not decoders()


def test_a_broken_image_ends_the_threads_and_comes_in_order(folder, tmp_path):
    split = image_folder(str(folder), image_size=8).train
    files = list(split.images.files)
    files[50] = tmp_path / "gone.png"
    images = Streamed(files, split.images.shape, resize=True)
    reader = read(images, torch.arange(120).split(8), workers=3)
    assert [len(next(reader)) for _ in range(6)] == [8] * 6
    with pytest.raises(UserError, match=r"gone.png: cannot be read"):
        next(reader)
    assert not decoders()


def test_decoding_runs_ahead_by_two_batches_only(folder):
    split = image_folder(str(folder), image_size=8).train
    asked = []

    def chunks():
        for index in torch.arange(120).split(8):
            asked.append(len(asked))
            yield index

    reader = read(split.images, chunks(), workers=2)
    next(reader)
    assert len(asked) == 3
    next(reader)
    assert len(asked) == 4
    reader.close()


def test_shared_arrays_are_not_written_to():
    split = made([20, 20], dtype=np.float32)
    before = split.images.pixels.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ready(raw(split))
        for _ in Batches(data.train, 7, mean=data.mean, std=data.std).epoch(1):
            pass
    assert torch.equal(split.images.pixels, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_cuda_batches_equal_those_of_the_cpu(folder, memory_gb):
    data = ready(image_folder(str(folder), image_size=8), memory_gb=memory_gb)
    keys = {"mean": data.mean, "std": data.std, "shuffle": True, "seed": 1}
    pairs = zip(
        Batches(data.train, 16, device="cpu", **keys).epoch(1),
        Batches(data.train, 16, device="cuda", **keys).epoch(1),
        strict=True,
    )
    for (x, y, index), (xc, yc, indexc) in pairs:
        assert xc.is_cuda
        assert yc.is_cuda
        assert indexc.is_cuda
        torch.testing.assert_close(xc.cpu(), x, atol=1e-6, rtol=1e-6)
        assert torch.equal(yc.cpu(), y)
        assert torch.equal(indexc.cpu(), index)
    augmented = Batches(data.train, 16, device="cuda", augment=CropFlip(2), **keys)
    one, two = (torch.cat([x for x, _, _ in augmented.epoch(1)]) for _ in range(2))
    assert torch.equal(one, two)
