"""One function per dataset, named by `conf/dataset/<name>.yaml` and reached by `dlrun train dataset=<name>`.

Each returns `Raw`; `dlrun.data.prepare` does carving, limits and normalisation (D3, D4, D10).
"""

from __future__ import annotations

import fcntl
import gzip
import importlib.util
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlrun.data.images import InMemory
from dlrun.data.splits import Raw, Split
from dlrun.errors import UserError

__all__ = ["cifar10", "cifar100", "digits", "fashion_mnist", "kmnist", "mnist", "stl10", "svhn"]

DIGITS = [str(digit) for digit in range(10)]


def digits() -> Raw:
    """scikit-learn's 1797 handwritten digits, 8 × 8, gray; no download, no test split."""
    table = _digits_table()
    pixels = (table[:, :-1] * 15).astype(np.uint8)  # 0..16 becomes 0..240
    return Raw(_split("train", pixels.reshape(-1, 8, 8, 1), table[:, -1].astype(np.int64)), None, DIGITS)


def _digits_table() -> Any:
    """One row per image: 64 pixels and the label, read from scikit-learn's folder without its two-second import."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        with suppress(FileNotFoundError), gzip.open(Path(folder, "datasets", "data", "digits.csv.gz"), "rt") as file:
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def mnist(root: str = "data", download: bool = True) -> Raw:
    """Handwritten digits, 60000 + 10000, 28 × 28, gray; IDX files in `root/MNIST/raw`."""
    return _idx("mnist", "MNIST", root, download, DIGITS)


def fashion_mnist(root: str = "data", download: bool = True) -> Raw:
    """Articles of clothing, 60000 + 10000, 28 × 28, gray; IDX files in `root/FashionMNIST/raw`."""
    return _idx("fashion_mnist", "FashionMNIST", root, download)


def kmnist(root: str = "data", download: bool = True) -> Raw:
    """Cursive Japanese characters, 60000 + 10000, 28 × 28, gray; IDX files in `root/KMNIST/raw`."""
    return _idx("kmnist", "KMNIST", root, download)


def cifar10(root: str = "data", download: bool = True) -> Raw:
    """Photographs in 10 classes, 50000 + 10000, 32 × 32, RGB; pickles in `root/cifar-10-batches-py`."""
    return _cifar("cifar10", "CIFAR10", root, download)


def cifar100(root: str = "data", download: bool = True) -> Raw:
    """Photographs in 100 classes, 50000 + 10000, 32 × 32, RGB; pickles in `root/cifar-100-python`."""
    return _cifar("cifar100", "CIFAR100", root, download)


def svhn(root: str = "data", download: bool = True) -> Raw:
    """House numbers, 73257 + 26032, 32 × 32, RGB; MATLAB files `root/{train,test}_32x32.mat`."""
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    files = {split: datasets.SVHN.split_list[split][:2] for split in ("train", "test")}
    place = f"{files['train'][1]} and {files['test'][1]} from {files['train'][0]} into {root}"
    # torchvision fetches one split at a time: get test now, so that training does not end at an unreachable host
    url, name, md5 = datasets.SVHN.split_list["test"]
    if not (Path(root).expanduser() / name).is_file():
        with _fetching("svhn", root, place, download):
            download_url(url, root, name, md5)

    def read(split: str) -> Split:
        found = _torchvision("svhn", datasets.SVHN, root, download, place, split=split)
        return _split(split, found.data.transpose(0, 2, 3, 1), found.labels)

    return Raw(read("train"), lambda: read("test"), DIGITS)


def stl10(root: str = "data", download: bool = True) -> Raw:
    """Photographs in 10 classes, 5000 + 8000 with labels, 96 × 96, RGB; `root/stl10_binary/*.bin`."""
    from torchvision import datasets

    place = f"{datasets.STL10.url} unpacked into {root}"

    def read(split: str) -> tuple[Split, list[str]]:
        found = _torchvision("stl10", datasets.STL10, root, download, place, split=split)
        return _split(split, found.data.transpose(0, 2, 3, 1), found.labels), found.classes

    train, classes = read("train")
    return Raw(train, lambda: read("test")[0], classes)


def _idx(name: str, kind: str, root: str, download: bool, classes: list[str] | None = None) -> Raw:
    from torchvision import datasets

    source = getattr(datasets, kind)
    files = ", ".join(file for file, _ in source.resources)
    place = f"{files} from {source.mirrors[0]} into {root}/{kind}/raw"

    def read(split: str) -> Split:
        found = _torchvision(name, source, root, download, place, train=split == "train")
        return _split(split, found.data[..., None].numpy(), found.targets.numpy())

    return Raw(read("train"), lambda: read("test"), classes or list(source.classes))


def _cifar(name: str, kind: str, root: str, download: bool) -> Raw:
    from torchvision import datasets

    source = getattr(datasets, kind)
    place = f"{source.url} into {root}"

    def read(split: str) -> tuple[Split, list[str]]:
        found = _torchvision(name, source, root, download, place, train=split == "train")
        return _split(split, found.data, np.asarray(found.targets)), found.classes

    train, classes = read("train")
    return Raw(train, lambda: read("test")[0], classes)


def _split(name: str, pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Split:
    images = InMemory(torch.from_numpy(np.ascontiguousarray(pixels)))
    ids = [f"{name}/{number}" for number in range(len(labels))]
    return Split(images, torch.from_numpy(labels.astype(np.int64)), ids)


def _torchvision(name: str, source: Callable[..., Any], root: str, download: bool, place: str, **split: Any) -> Any:
    """Return torchvision's dataset object from the files in `root`, or if they fail, after a download."""
    with warnings.catch_warnings():
        # NumPy 2.4.0 to 2.4.4 warn about the 0 that the published CIFAR pickles have for False
        warnings.filterwarnings("ignore", message=r".*align should be passed as Python or NumPy boolean.*")
        try:
            return source(root, download=False, **split)
        except Exception as error:  # missing, truncated and unrelated files raise a dozen kinds
            reason = error
        with _fetching(name, root, place, download, reason):
            return source(root, download=True, **split)


@contextmanager
def _fetching(name: str, root: str, place: str, download: bool, reason: Exception | None = None) -> Iterator[None]:
    """Let one process at a time download into `root`; a failure becomes one line with the remedy."""
    remedy = f"put {place} yourself, replacing what is there, or choose another folder with dataset.root=FOLDER"
    if not download:
        why = _one_line(reason) if reason else "not found"
        raise UserError(f"dataset {name} in {root}: {why}; type dataset.download=true to fetch it, or {remedy}")
    timeout = socket.getdefaulttimeout()
    try:
        folder = Path(root).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f".{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # torchvision sets no timeout, and a silent host would block the run forever
            socket.setdefaulttimeout(30)
            yield
    except Exception as error:
        why = f"download failed ({_one_line(error)})"
        raise UserError(f"dataset {name} in {root}: {why}; {remedy}") from error
    finally:
        socket.setdefaulttimeout(timeout)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
