"""Carving, normalisation, order, streaming and augmentation, on arrays small enough to count by hand."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tvf

from dlrun.data import Batches, Raw, Split, datasets, prepare
from dlrun.data.augment import CropFlip
from dlrun.data.files import image_folder
from dlrun.data.images import InMemory, Streamed, read
from dlrun.data.scan import scan
from dlrun.errors import UserError

RNG = np.random.default_rng(1)


def made(counts, shape=(4, 5, 3), dtype=np.uint8) -> Split:
    """A split with so many samples a class, in shuffled order."""
    labels = np.random.default_rng(2).permutation(np.repeat(np.arange(len(counts)), counts))
    x = RNG.integers(0, 256, (len(labels), *shape)).astype(dtype)
    return Split(InMemory(torch.from_numpy(x)), torch.from_numpy(labels), [f"train/{i}" for i in range(len(x))])


def raw(split: Split, test=None, val=None) -> Raw:
    return Raw(split, test, [f"c{label}" for label in range(int(split.labels.max()) + 1)], val)


def ready(source, **keys):
    return prepare(source, **{"val_fraction": 0.1, "test_fraction": 0.2, "split_seed": 0, **keys})


def counts(split: Split) -> list[int]:
    return torch.bincount(split.labels).tolist()


def everything(split: Split) -> torch.Tensor:
    return split.images.take(torch.arange(len(split)))


# ---- splits


def test_counts_are_exact_and_splits_do_not_overlap():
    data = ready(raw(made([50, 30, 20])))
    test = data.test()
    assert counts(test) == [10, 6, 4]
    assert counts(data.val) == [4, 2, 2]  # 8 of 40, 24, 16: 4.0, 2.4, 1.6
    assert counts(data.train) == [36, 22, 14]
    ids = [*data.train.ids, *data.val.ids, *test.ids]
    assert sorted(ids) == sorted(f"train/{number}" for number in range(100))


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ([7, 7, 7], 1 / 3, [3, 2, 2]),  # a tie goes to the lower class
        ([1000, 2, 1], 0.1, [99, 1, 0]),  # rare classes are in both, a single sample trains; the total holds
        ([2] * 30, 0.1, [1] * 30),  # every class in both comes before the fraction
        ([5, 5], 0.99, [4, 4]),
        ([500] * 10, 0.1, [50] * 10),
    ],
)
def test_stratification_bounds(sizes, fraction, expected):
    test = made([2] * len(sizes))
    data = ready(raw(made(sizes), test=lambda: test), val_fraction=fraction)
    assert np.bincount(data.val.labels, minlength=len(sizes)).tolist() == expected
    assert len(data.train) + len(data.val) == sum(sizes)


def test_fold_follows_split_seed_alone():
    split = made([40, 40])
    first, again, other = (ready(raw(split), split_seed=seed) for seed in (3, 3, 4))
    assert first.val.ids == again.val.ids
    assert first.test().ids == again.test().ids
    assert first.val.ids != other.val.ids
    assert first.test().ids != other.test().ids
    # what a stored run was measured on: a change here breaks every fold that was ever recorded
    digest = "830a1b1db3e4cf3db87ce3ba0ac6d866ce326ec9face9353fcdab8068e06dedd"
    assert ready(datasets.digits()).record()["val_sha256"] == digest


def test_pixels_labels_and_ids_stay_together():
    split = made([30, 20])
    data = ready(raw(split))
    for part in (data.train, data.val, data.test()):
        numbers = torch.tensor([int(name.split("/")[1]) for name in part.ids])
        assert torch.equal(everything(part), split.images.pixels[numbers])
        assert torch.equal(part.labels, split.labels[numbers])
    assert data.train.images.pixels.data_ptr() == data.val.images.pixels.data_ptr()  # nothing copied


def test_limit_is_stratified_and_leaves_test_alone():
    split = made([600, 300, 100])
    whole, half = ready(raw(split)), ready(raw(split), limit=100)
    assert half.test().ids == whole.test().ids
    assert counts(half.train) == [54, 27, 9]
    assert counts(half.val) == [6, 3, 1]
    more = ready(raw(split), limit=200)
    small, large = ({*data.train.ids, *data.val.ids} for data in (half, more))
    assert small < large  # a larger slice holds the smaller one
    assert counts(ready(raw(split), limit=5000).train) == counts(whole.train)
    with pytest.raises(UserError, match=r"dataset.limit=5: 3 classes .* dataset.limit=6 or more"):
        ready(raw(split), limit=5)


def test_limit_decodes_nothing_else(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(20):
            Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(tmp_path / name / f"{number}.png")
    data = ready(image_folder(str(tmp_path), image_size=4), limit=6)
    used = {*data.train.ids, *data.val.ids}
    assert len(used) == 6
    for path in tmp_path.glob("*/*.png"):
        if path.relative_to(tmp_path).as_posix() not in used:
            path.write_bytes(b"broken")
    again = ready(image_folder(str(tmp_path), image_size=4), limit=6)
    assert torch.equal(everything(again.train), everything(data.train))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"val_fraction": 0.0}, "dataset.val_fraction=0.0: must lie between 0 and 1"),
        ({"val_fraction": 1.0}, "dataset.val_fraction=1.0"),
        ({"test_fraction": -0.1}, "dataset.test_fraction=-0.1"),
        ({"split_seed": -1}, "dataset.split_seed=-1"),
        ({"limit": -5}, "dataset.limit=-5"),
    ],
)
def test_bad_keys_are_named(keys, message):
    with pytest.raises(UserError, match=message):
        ready(raw(made([20, 20])), **keys)


def test_classes_without_samples_and_other_shapes_are_errors():
    with pytest.raises(UserError, match="class 'c1'"):
        ready(raw(made([9, 0, 9])))
    with pytest.raises(UserError, match="one class"):
        ready(raw(made([9])))
    data = ready(raw(made([9, 9]), test=lambda: made([2, 2], shape=(4, 4, 3))))
    with pytest.raises(UserError, match=r"test images have .*\(4, 4, 3\), training images \(4, 5, 3\)"):
        data.test()


def test_test_split_is_read_when_asked_for():
    calls = []

    def read_test():
        calls.append(1)
        return made([2, 2])

    data = ready(raw(made([20, 20]), test=read_test))
    Batches(data.train, 8, mean=data.mean, std=data.std)
    assert calls == []
    assert counts(data.test()) == [2, 2]
    assert calls == [1]


def test_record_is_json_with_the_fold():
    data = ready(raw(made([50, 30, 20])))
    record = json.loads(json.dumps(data.record()))
    assert (record["train"], record["val"]) == (72, 8)
    assert record["train_counts"] == [36, 22, 14]
    assert record["classes"] == ["c0", "c1", "c2"]
    assert record["mean"] == data.mean
    assert record["val_sha256"] == hashlib.sha256("\n".join(data.val.ids).encode()).hexdigest()
    assert (record["split_seed"], record["val_fraction"]) == (0, 0.1)


# ---- normalisation


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mean_and_std_are_those_of_train_alone(dtype):
    split = made([400, 300], shape=(80, 60, 3), dtype=dtype)  # more than one chunk
    split.images.pixels[..., 2] = 7
    data = ready(raw(split))
    split.images.pixels[[int(name[6:]) for name in data.val.ids + data.test().ids]] = 255
    data = ready(raw(split))
    x = everything(data.train).numpy().astype(np.float64)
    np.testing.assert_allclose(data.mean, x.mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(data.std[:2], x.std((0, 1, 2))[:2], rtol=1e-12)
    assert data.mean[2] == 7
    assert data.std[2] == 1  # a constant channel


def test_std_of_floats_far_from_zero_is_exact():
    split = made([40, 40], dtype=np.float32)
    split.images.pixels[:] = split.images.pixels / 1024 + 4096
    data = ready(raw(split))
    np.testing.assert_allclose(data.std, everything(data.train).double().numpy().std((0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(value):
    split = made([20, 20], dtype=np.float32)
    name = ready(raw(split)).train.ids[11]
    split.images.pixels[int(name[6:]), 1, 1, 1] = value
    with pytest.raises(UserError, match=f"^{name}: .*nan"):
        ready(raw(split))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_batches_are_normalised_and_channels_last(dtype):
    data = ready(raw(made([40, 40], dtype=dtype)))
    batches = list(Batches(data.train, 20, mean=data.mean, std=data.std).epoch(1))
    assert [len(y) for _, y, _ in batches] == [20, 20, 18]  # the short one is there
    x = torch.cat([x for x, _, _ in batches])
    assert x.dtype == torch.float32
    assert batches[0][0].shape == (20, 3, 4, 5)
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
    expected = (everything(data.train).double() - torch.tensor(data.mean)) / torch.tensor(data.std)
    torch.testing.assert_close(x.double(), expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    assert torch.equal(torch.cat([y for _, y, _ in batches]), data.train.labels)
    assert torch.equal(torch.cat([i for _, _, i in batches]), torch.arange(58))


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
    assert torch.equal(everything(held.test()), everything(streamed.test()))
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


# ---- augmentation


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("shape", [(9, 11, 3), (8, 8, 1)])
@pytest.mark.parametrize("flip", [True, False])
def test_crop_flip_equals_one_image_at_a_time(dtype, padding, shape, flip):
    pad, count = 3, 40
    images = torch.from_numpy(RNG.integers(0, 256, (count, *shape), dtype=np.uint8)).to(dtype)
    found = CropFlip(pad, flip=flip, padding=padding)(images, torch.Generator().manual_seed(11))
    generator = torch.Generator().manual_seed(11)
    top, left = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).tolist()
    mirrored = (torch.rand(count, generator=generator) < 0.5).tolist() if flip else [False] * count
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
