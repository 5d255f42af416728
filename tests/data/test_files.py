"""A user's image folders and arrays, in every layout, and errors in one line (D4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tvf

from dlrun.data import prepare
from dlrun.data.files import image_folder
from dlrun.errors import UserError

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def everything(split):
    return split.images.take(torch.arange(len(split))).numpy()


def ready(raw, **keys):
    return prepare(raw, **{"val_fraction": 0.25, "test_fraction": 0.25, "split_seed": 0, "split": "position", **keys})


# ---- image folders


def write_folder(root: Path, layout: dict[str, int], size=(12, 10), suffix="png"):
    """Classes with the given numbers of images; red increases by 1 from image to image."""
    value = 0
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = pixels(size[1], size[0], 3)
            image[..., 0] = value
            value += 1
            Image.fromarray(image).save(root / folder / f"{number:03}.{suffix}")


def test_folder_with_train_and_test(tmp_path):
    write_folder(tmp_path, {"train/cat": 6, "train/ant": 4, "test/ant": 2})
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "train" / "cat" / "readme.txt").write_text("no image")
    raw = image_folder(str(tmp_path))
    assert raw.classes == ["ant", "cat"]
    assert raw.train.ids[:5] == [f"train/ant/{n:03}.png" for n in range(4)] + ["train/cat/000.png"]
    assert raw.train.labels.tolist() == [0] * 4 + [1] * 6
    assert raw.train.images.shape == (10, 12, 3)
    assert everything(raw.train)[:, 0, 0, 0].tolist() == [6, 7, 8, 9, 0, 1, 2, 3, 4, 5]
    data = ready(raw, val_fraction=0.5)
    assert (len(data.train), len(data.val)) == (5, 5)
    test = data.test().split
    assert test.ids == ["test/ant/000.png", "test/ant/001.png"]
    assert everything(test)[:, 0, 0, 0].tolist() == [10, 11]


def test_folder_with_val_uses_it(tmp_path):
    write_folder(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 1})
    data = ready(image_folder(str(tmp_path)))
    assert data.val.ids == ["val/a/000.png", "val/a/001.png", "val/b/000.png"]
    assert data.record()["val_fraction"] is None
    # and test is carved from train, one image per class
    assert (len(data.train), len(data.test().split)) == (4, 2)


def test_single_folder_is_divided(tmp_path):
    write_folder(tmp_path, {"train": 8, "plane": 8})  # a class may be called train
    data = ready(image_folder(str(tmp_path)))
    test = data.test().split
    assert (len(data.train), len(data.val), len(test)) == (9, 3, 4)
    assert len({*data.train.ids, *data.val.ids, *test.ids}) == 16
    assert "train/000.png" in {*data.train.ids, *data.val.ids, *test.ids}


@pytest.mark.parametrize("layout", [{"train/a": 4, "train/b": 4, "test/a": 1}, {"a": 4, "b": 4}])
def test_folder_test_images_are_not_opened_before_test(tmp_path, layout):
    write_folder(tmp_path, layout)
    raw = image_folder(str(tmp_path))
    sealed = set(ready(raw).test().split.ids)
    for name in sealed:
        (tmp_path / name).write_bytes(b"broken")
    data = ready(image_folder(str(tmp_path)))
    assert not sealed & {*data.train.ids, *data.val.ids}
    with pytest.raises(UserError, match=rf"^({'|'.join(sealed)}): "):
        data.test()


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (16, 16), (9, 13)])
@pytest.mark.parametrize("suffix", ["png", "JPEG"])
def test_folder_resize_is_torchvisions(tmp_path, size, suffix):
    write_folder(tmp_path, {"a": 2, "b": 2}, size, suffix)
    raw = image_folder(str(tmp_path), image_size=16)
    assert raw.train.images.shape == (16, 16, 3)
    for name, found in zip(raw.train.ids, everything(raw.train), strict=True):
        expected = tvf.center_crop(tvf.resize(Image.open(tmp_path / name), 16), [16, 16])
        assert np.array_equal(found, np.asarray(expected))


def test_folder_modes_become_rgb_or_gray(tmp_path):
    color = pixels(6, 6, 3)
    rgb = Image.fromarray(color)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    rgb.save(tmp_path / "a" / "0.png")
    rgb.convert("L").save(tmp_path / "a" / "1.png")
    rgb.convert("RGBA").save(tmp_path / "a" / "2.png")
    rgb.quantize(8).save(tmp_path / "a" / "3.png", transparency=bytes([0, 128, 255]))
    rgb.convert("CMYK").save(tmp_path / "a" / "4.tif")
    Image.fromarray(color[..., 0].astype(np.uint16) * 257).save(tmp_path / "a" / "5.png")
    rgb.convert("1").save(tmp_path / "b" / "0.png")
    found = everything(image_folder(str(tmp_path)).train)
    assert np.array_equal(found[0], color)
    gray = np.asarray(rgb.convert("L"))
    assert np.array_equal(found[1], np.stack([gray] * 3, -1))
    assert np.array_equal(found[2], color)
    alpha = np.array([0, 128, 255, *[255] * 5])[np.asarray(rgb.quantize(8))][..., None]
    on_white = np.asarray(rgb.quantize(8).convert("RGB")) * (alpha / 255) + 255 - alpha
    assert np.abs(found[3] - on_white).max() <= 0.5
    assert np.array_equal(found[5], np.stack([color[..., 0]] * 3, -1))  # 16 bits scaled to 8, not cut off
    assert set(np.unique(found[6])) == {0, 255}
    one = image_folder(str(tmp_path), channels=1)
    assert one.train.images.shape == (6, 6, 1)
    assert np.array_equal(everything(one.train)[0, ..., 0], gray)


def test_folder_errors_name_the_culprit(tmp_path):
    root = tmp_path / "photos"
    with pytest.raises(UserError, match=r"dataset.root=.*photos: no such folder"):
        image_folder(str(root))
    root.mkdir()
    with pytest.raises(UserError, match=r"photos.*<class>/<image>"):
        image_folder(str(root))
    write_folder(root, {"train/a": 3, "train/b": 3, "test/a": 1, "test/zebra": 1, "test/yak": 1})
    with pytest.raises(UserError, match=r"photos/test .*'yak', 'zebra'"):
        image_folder(str(root))
    write_folder(root, {"train/yak": 3, "train/zebra": 3, "train/empty": 0})
    with pytest.raises(UserError, match=r"train/empty .*no images"):
        image_folder(str(root))
    write_folder(root, {"train/empty/deeper": 1})
    with pytest.raises(UserError, match=r"train/empty: .*'deeper'"):
        image_folder(str(root))
    with pytest.raises(UserError, match=r"dataset\.channels=4"):
        image_folder(str(root), channels=4)


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_folder_broken_and_odd_sized_images_are_named(tmp_path, memory_gb):
    write_folder(tmp_path, {"a": 6, "b": 6})
    keys = {"memory_gb": memory_gb, "val_fraction": 0.1, "test_fraction": 0.1}
    name = ready(image_folder(str(tmp_path)), **keys).train.ids[3]
    good = (tmp_path / name).read_bytes()
    for content in (b"", b"hello", good[:60], good[: len(good) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"^{name}: .*dataset\.on_bad=drop") as caught:
            ready(image_folder(str(tmp_path)), **keys)
        assert "\n" not in str(caught.value)
    Image.fromarray(pixels(5, 7, 3)).save(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: .* 12×10 .* 7×5; .*dataset.image_size=64"):
        ready(image_folder(str(tmp_path)), **keys)
