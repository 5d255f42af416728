"""Every named dataset reads small files in its real on-disk format, and reports errors in one line."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torchvision import datasets as tv

from dlrun.data import datasets, prepare
from dlrun.errors import UserError

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def everything(split):
    return split.images.take(torch.arange(len(split))).numpy()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def ready(raw, **keys):
    return prepare(raw, **{"val_fraction": 0.25, "test_fraction": 0.25, "split_seed": 0, **keys})


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("host unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# ---- IDX


def write_idx(folder: Path, compress: bool = False):
    folder.mkdir(parents=True)
    made = {}
    for name, count in (("train", 20), ("t10k", 10)):
        x, y = pixels(count, 28, 28), np.arange(count, dtype=np.uint8) % 10
        images = struct.pack(">IIII", 0x803, count, 28, 28) + x.tobytes()
        labels = struct.pack(">II", 0x801, count) + y.tobytes()
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{name}-{kind}-ubyte"
            if compress:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
        made[name] = x, y
    return made


@pytest.mark.parametrize(
    ("name", "kind"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_idx(tmp_path, name, kind):
    made = write_idx(tmp_path / kind / "raw")
    raw = getattr(datasets, name)(root=str(tmp_path))
    assert np.array_equal(everything(raw.train), made["train"][0][..., None])
    assert np.array_equal(raw.train.labels, made["train"][1])
    test = raw.test()
    assert np.array_equal(everything(test), made["t10k"][0][..., None])
    assert test.ids[9] == "test/9"
    assert len(raw.classes) == 10


def test_idx_archives_put_there_by_hand_are_unpacked_and_checked(tmp_path, monkeypatch):
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, compress=True)
    names = [name for name, _ in tv.MNIST.resources]
    monkeypatch.setattr(tv.MNIST, "resources", [(name, md5(folder / name)) for name in names])
    assert len(datasets.mnist(root=str(tmp_path)).train) == 20
    for path in folder.glob("*ubyte"):
        path.unlink()
    with pytest.raises(UserError, match=r"dataset\.download=true"):
        datasets.mnist(root=str(tmp_path), download=False)
    (folder / names[0]).write_bytes(b"tampered with")
    with pytest.raises(UserError, match="host unreachable"):
        datasets.mnist(root=str(tmp_path))


def test_idx_truncated_file_is_one_line(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"dataset mnist in .*train-images-idx3-ubyte.gz.*dataset\.root=") as caught:
        datasets.mnist(root=str(tmp_path))
    assert "\n" not in str(caught.value)


# ---- CIFAR pickles


def write_cifar(folder: Path, kind, labels_key: str, meta_key: str, classes: int, monkeypatch):
    folder.mkdir()
    made = {}

    def dump(name, content):
        # the published files have 0 and 1, but NumPy now writes False and True
        data = pickle.dumps(content, protocol=2).replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
        assert b"K\x00K\x01\x87" in data or name == kind.meta["filename"]
        (folder / name).write_bytes(data)
        return [name, md5(folder / name)]

    lists = {}
    for attribute in ("train_list", "test_list"):
        lists[attribute] = []
        for name, _ in getattr(kind, attribute):
            x, y = pixels(2 * classes, 3 * 32 * 32), [n % classes for n in range(2 * classes)]
            lists[attribute].append(dump(name, {"data": x, labels_key: y}))
            made[name] = x, y
    names = [f"class {number}" for number in range(classes)]
    _, checksum = dump(kind.meta["filename"], {meta_key: names})
    monkeypatch.setattr(kind, "train_list", lists["train_list"])
    monkeypatch.setattr(kind, "test_list", lists["test_list"])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": checksum})
    return made, names


@pytest.mark.parametrize(
    ("name", "kind", "keys", "classes", "first"),
    [
        ("cifar10", tv.CIFAR10, ("labels", "label_names"), 10, "data_batch_1"),
        ("cifar100", tv.CIFAR100, ("fine_labels", "fine_label_names"), 100, "train"),
    ],
)
def test_cifar(tmp_path, monkeypatch, name, kind, keys, classes, first):
    folder = tmp_path / kind.base_folder
    made, names = write_cifar(folder, kind, *keys, classes, monkeypatch)
    raw = getattr(datasets, name)(root=str(tmp_path))
    x, y = made[first]
    assert np.array_equal(everything(raw.train)[: len(x)], x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert raw.train.labels[: len(y)].tolist() == y
    assert raw.classes == names
    assert len(raw.test()) == 2 * classes
    (folder / first).write_bytes(b"tampered with")
    with pytest.raises(UserError, match=rf"dataset {name} .*host unreachable.*dataset\.root=") as caught:
        getattr(datasets, name)(root=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


# ---- SVHN, STL-10


def test_svhn(tmp_path, monkeypatch):
    made, files = {}, {}
    for split in ("train", "test"):
        x, y = pixels(32, 32, 3, 20), (np.arange(20) % 10 + 1).astype(np.uint8)[:, None]
        path = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": x, "y": y})
        made[split], files[split] = (x, y), [f"http://localhost/{path.name}", path.name, md5(path)]
    monkeypatch.setattr(tv.SVHN, "split_list", files)
    raw = datasets.svhn(root=str(tmp_path))
    assert np.array_equal(everything(raw.train)[7], made["train"][0][..., 7])
    assert raw.train.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]  # MATLAB's 10 is the digit 0
    assert len(raw.test()) == 20

    (tmp_path / "test_32x32.mat").write_bytes(b"not a mat file")
    data = ready(datasets.svhn(root=str(tmp_path)))  # the test split is not read yet
    with pytest.raises(UserError, match="dataset svhn"):
        data.test()
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"test_32x32.mat.*dataset\.root="):  # now, not after training
        datasets.svhn(root=str(tmp_path))


def test_stl10(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join(f"c{number}" for number in range(10)) + "\n")
    made = {}
    for split in ("train", "test"):
        made[split] = pixels(20, 3, 96, 96)  # columns before rows, as in the format
        made[split].tofile(folder / f"{split}_X.bin")
        (np.arange(20) % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    pixels(2, 3, 96, 96).tofile(folder / "unlabeled_X.bin")
    for attribute in ("train_list", "test_list"):
        files = [[name, md5(folder / name)] for name, _ in getattr(tv.STL10, attribute)]
        monkeypatch.setattr(tv.STL10, attribute, files)
    raw = datasets.stl10(root=str(tmp_path))
    assert len(raw.train) == 20
    assert np.array_equal(everything(raw.train), made["train"].transpose(0, 3, 2, 1))
    assert np.array_equal(everything(raw.test()), made["test"].transpose(0, 3, 2, 1))
    assert raw.train.labels[:10].tolist() == list(range(10))
    assert raw.classes[3] == "c3"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn", "stl10"])
def test_unreachable_host_is_one_line_that_says_what_to_do(tmp_path, name):
    with pytest.raises(UserError, match=rf"^dataset {name} in .*host unreachable.*dataset\.root=") as caught:
        getattr(datasets, name)(root=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "://" in str(caught.value)


@pytest.mark.parametrize("found", [True, False])
def test_digits_are_those_of_scikit_learn_wherever_it_keeps_them(monkeypatch, found):
    from sklearn.datasets import load_digits

    if not found:
        monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: None)
    raw = datasets.digits()
    assert raw.train.labels.tolist() == load_digits().target.tolist()
    assert raw.train.images.shape == (8, 8, 1)
    assert np.array_equal(everything(raw.train)[..., 0], load_digits().images * 15)
    assert raw.train.images.pixels.dtype == torch.uint8
    assert raw.train.ids[5] == "train/5"
    assert raw.test is None


@pytest.mark.slow
def test_digits_do_not_import_scikit_learn():
    code = "import sys; from dlrun.data import datasets; datasets.digits(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
