"""A user's image folders and arrays, in every layout, and errors in one line (D4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tvf

from dlrun.data import prepare
from dlrun.data.files import arrays, image_folder
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
    (root / "train" / "empty" / "deeper").mkdir()
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


# ---- arrays


def test_arrays_with_all_splits(tmp_path):
    path = str(tmp_path / "mine.npz")
    made = {name: pixels(n, 5, 4, 3) for name, n in (("x", 12), ("x_val", 4), ("x_test", 6))}
    labels = {"y": np.arange(12) % 3, "y_val": np.arange(4) % 3, "y_test": (np.arange(6) % 3)[:, None]}
    np.savez_compressed(path, **made, **labels)
    raw = arrays(path)
    assert raw.classes == ["0", "1", "2"]
    for split, name in ((raw.train, "x"), (raw.val, "x_val"), (raw.test(), "x_test")):
        assert np.array_equal(everything(split), made[name])
    assert raw.test().labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert ready(raw).val.ids == [f"val/{number}" for number in range(4)]


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64", ">f4"])
def test_arrays_layouts_and_types(tmp_path, dtype):
    path = str(tmp_path / "mine.npz")
    x, y = pixels(8, 6, 5, 3).astype(dtype), np.array(["dog", "cat"] * 4)
    expected = torch.uint8 if dtype == "uint8" else torch.float32
    for stored, layout, want in (
        (x, "NHWC", x),
        (x.transpose(0, 3, 1, 2), "NCHW", x),
        (x[..., 0], "NHWC", x[..., :1]),
        (x[..., 0], "NCHW", x[..., :1]),
    ):
        np.savez(path, x=stored, y=y)
        raw = arrays(path, layout=layout)
        assert raw.train.images.pixels.dtype == expected
        assert np.array_equal(everything(raw.train), want.astype(np.float32))
        assert raw.classes == ["cat", "dog"]
        assert raw.train.labels.tolist() == [1, 0] * 4


def test_arrays_test_pixels_are_not_read_before_test(tmp_path):
    path = tmp_path / "mine.npz"
    x_test = pixels(400, 8, 8, 1)
    np.savez(path, x=pixels(8, 8, 8, 1), y=np.arange(8) % 2, x_test=x_test, y_test=np.arange(400) % 2)
    content = path.read_bytes()
    at = content.index(x_test.tobytes())
    path.write_bytes(content[:at] + bytes(25600) + content[at + 25600 :])  # the checksum is now wrong
    data = ready(arrays(str(path)))
    with pytest.raises(UserError, match="'x_test' cannot be read"):
        data.test()


X, Y = np.zeros((6, 4, 4, 1), np.uint8), np.arange(6) % 2


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"images": X, "y": Y}, r"array 'x'.*images, y"),
        ({"x": X, "y": Y[:5]}, r"y has shape \(5,\), x \(6, 4, 4, 1\)"),
        ({"x": X[0, 0], "y": Y}, r"x has shape \(4, 1\); expected"),
        ({"x": np.zeros((6, 3, 32, 32), np.uint8), "y": Y}, "dataset.layout=NCHW"),
        ({"x": X.astype(np.int64), "y": Y}, r"x is int64 .*astype\('uint8'\)"),
        ({"x": X.astype(np.int64) + 300, "y": Y}, r"x is int64 .*astype\('uint16'\)"),
        ({"x": X.astype(np.int64) - 1, "y": Y}, r"x is int64 .*astype\('float32'\)"),
        ({"x": X, "y": Y.astype(float)}, "y is float64"),
        ({"x": X, "y": Y - 1}, r"\by\b.*-1\.\.0"),
        ({"x": X, "y": Y * 1000}, r"\by\b.*\b0\.\.1000"),
        ({"x": X, "y": np.array([{}] * 6, dtype=object)}, "'y' cannot be read"),
        ({"x": X, "y": Y, "x_test": X}, r"x_test.*\by_test"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, r"^test/1: has label 2, expected 0 to 1"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y * 1.0}, r"y_test is float64; expected class numbers"),
        ({"x": X, "y": ["a", "b"] * 3, "x_test": X, "y_test": ["b", "c"] * 3}, "train lacks: 'c'"),
        ({"x": X, "y": [0, 1, 2, 255, 0, 1]}, r"no 3, but 255 at index 3; .* dataset.num_classes=3 "),
        ({"x": X, "y": Y, "x_test": X[:, :3], "y_test": Y}, r"x_test has shape \(6, 3, 4, 1\)"),
    ],
)
def test_arrays_errors(tmp_path, stored, message):
    path = str(tmp_path / "mine.npz")
    np.savez(path, **stored)
    with pytest.raises(UserError, match=message):
        arrays(path)


def test_arrays_file_errors(tmp_path):
    with pytest.raises(UserError, match=r"dataset.path=.*none.npz: no such file"):
        arrays(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"not an \.npz"):
        arrays(str(tmp_path / "text.npz"))
