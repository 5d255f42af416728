"""A user's own images: `dlrun train dataset=image_folder dataset.root=photos dataset.image_size=64`, or
`dlrun train dataset=arrays dataset.path=mine.npz` (D4).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dlrun.data.decoding import VERSION, Decoding
from dlrun.data.form import Form
from dlrun.data.images import InMemory
from dlrun.data.layout import folders, splits
from dlrun.data.splits import BadData, Raw, Split, bad_labels
from dlrun.errors import UserError

__all__ = ["SUFFIXES", "arrays", "image_folder"]

SUFFIXES = {".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"}
SUFFIXES |= {".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
Array = np.ndarray[Any, Any]


def image_folder(
    root: str,
    image_size: int | Sequence[int] = 0,
    channels: int = 3,
    *,
    resize: str = "crop",
    interpolation: str = "bilinear",
    background: str = "white",
    decode: str = "auto",
    max_pixels: int = Decoding.max_pixels,
    decoder: int = VERSION,
) -> Raw:
    """Image files in one folder per class: `root/train/<class>/`, optionally `root/test/` and `root/val/`, or
    `root/<class>/`; `layout.splits` has the other names. Nothing is decoded here.

    `image_size`: side, or height and width in pixels, to which `resize` brings all images; 0: all have one size.
    `channels`: 3 for RGB, 1 for gray, whatever the files contain. The others are those of `Decoding`. Classes are the
    sorted folder names of train. Raises UserError for a missing or empty folder and for a class that train does not
    have.
    """
    how = Decoding(resize, interpolation, background, decode, max_pixels, decoder=decoder)
    form = Form(image_size, channels, how)
    top = Path(root).expanduser()
    if not top.is_dir():
        raise UserError(f"dataset.root={root}: no such folder")
    places = splits(top)
    files, names = _listing(places.get("train") or places[""])
    classes = sorted(set(names))
    stream = form.stream(files)

    def split(files: list[Path], names: list[str]) -> Split:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = torch.tensor([numbers[name] for name in names])
        ids = [file.relative_to(top).as_posix() for file in files]
        return Split(stream(files), labels, ids)

    others = {role: _listing(place) for role, place in places.items() if role in ("val", "test")}
    for role, (_, there) in others.items():
        _require_known(sorted(set(there)), classes, f"{places[role]}")
    test, val = others.get("test"), others.get("val")
    read_test = (lambda: split(*test)) if test else None
    return Raw(split(files, names), read_test, classes, split(*val) if val else None)


def arrays(path: str, layout: Literal["NHWC", "NCHW"] = "NHWC", num_classes: int = 0, on_bad: str = "error") -> Raw:
    """Arrays of an `.npz`: x, y and optionally x_test, y_test, x_val, y_val; pickles are refused.

    x: uint8, uint16 or float, (N, H, W) gray, or four axes in the order of `layout`. y: (N,) integers from 0 without
    gaps, or strings. `num_classes`: larger or equal integers are bad labels; 0: one more than the largest of y.
    x_test is read when the test split is; its labels are checked now. Raises UserError that names the array.
    """
    if layout not in ("NHWC", "NCHW"):
        raise UserError(f"dataset.layout={layout}: must be NHWC or NCHW")
    if num_classes < 0:
        raise UserError(f"dataset.num_classes={num_classes}: must be 0 (count them) or more")
    headers = _headers(path)
    for name in ("x", "y"):
        if name not in headers:
            raise UserError(f"{path}: expected an array {name!r}, found {', '.join(sorted(headers)) or 'none'}")
    classes = _class_names(path, _member(path, "y"), num_classes)

    def split(name: str, suffix: str, pixels: bool = True) -> Split:
        x = np.empty((0, 1, 1, 1), np.uint8)
        if pixels:
            x = _pixels(_member(path, "x" + suffix), f"{path}: x{suffix}", layout)
        labels = _labels(path, suffix, headers, classes)
        ids = [f"{name}/{number}" for number in range(len(labels))]
        return Split(InMemory(torch.from_numpy(x)), torch.from_numpy(labels), ids)

    train = split("train", "")
    val = split("val", "_val") if "x_val" in headers else None
    if "x_test" not in headers:
        return Raw(train, None, classes, val)
    # report bad labels of test now, not after training
    unseen = split("test", "_test", pixels=False)
    if (bad := bad_labels(unseen, "test", len(classes))) and on_bad == "error":
        raise BadData(bad, len(unseen))
    return Raw(train, lambda: split("test", "_test"), classes, val)


def _listing(folder: Path) -> tuple[list[Path], list[str]]:
    """Image files of a folder of classes, sorted, and the class name of each."""
    files: list[Path] = []
    names: list[str] = []
    for place in folders(folder):
        with os.scandir(place) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
        if deeper := sorted(entry.name for entry in entries if entry.is_dir()):
            raise UserError(f"class folder {place}: expected images only, found a folder, {deeper[0]!r}")
        found = sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"class folder {place} has no images; add some or remove it")
        files += [place / name for name in found]
        names += [place.name] * len(found)
    if not files:
        raise UserError(f"{folder} has no class folders; expected {folder}/<class>/<image>")
    return files, names


def _require_known(found: list[str], classes: list[str], where: str) -> None:
    unknown = [name for name in found if name not in classes]
    if unknown:
        names = ", ".join(map(repr, unknown[:10]))
        raise UserError(f"{where} has classes that train lacks: {names}; remove them or add them to train")


def _headers(path: str) -> dict[str, tuple[int, ...]]:
    """Shape of every array in the file, without reading the arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {}
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    read = np.lib.format.read_array_header_1_0
                    if version != (1, 0):
                        read = np.lib.format.read_array_header_2_0
                    shapes[name.removesuffix(".npy")] = read(member)[0]
            return shapes
    except FileNotFoundError:
        raise UserError(f"dataset.path={path}: no such file") from None
    except Exception as error:
        raise UserError(f"dataset.path={path}: not an .npz ({error}); write it with numpy.savez") from error


def _member(path: str, name: str) -> Array:
    try:
        with np.load(path, allow_pickle=False) as file:
            array: Array = file[name]
            return array
    except Exception as error:
        raise UserError(f"{path}: array {name!r} cannot be read ({error})") from error


def _pixels(x: Array, name: str, layout: str) -> Array:
    """Images as uint8 or float32 (N, H, W, C), contiguous."""
    if x.ndim == 3:
        x = x[..., None]
    elif x.ndim != 4:
        raise UserError(f"{name} has shape {x.shape}; expected (N, H, W) or four axes {layout}")
    elif layout == "NCHW":
        x = x.transpose(0, 2, 3, 1)
    elif x.shape[3] > 4 >= x.shape[1]:
        raise UserError(f"{name} has shape {x.shape}, which looks like channels first; type dataset.layout=NCHW")
    if x.dtype not in (np.uint8, np.uint16) and x.dtype.kind != "f":
        low, high = (int(x.min()), int(x.max())) if x.size else (0, 0)
        fits = "float32" if low < 0 or high > 65535 else "uint8" if high <= 255 else "uint16"
        raise UserError(
            f"{name} is {x.dtype} from {low} to {high}; expected uint8, uint16 or float; "
            f"convert it with x.astype('{fits}'), which keeps these values"
        )
    return np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("=") if x.dtype.kind == "u" else np.float32)


def _class_names(path: str, y: Array, num_classes: int) -> list[str]:
    if y.dtype.kind == "U" and y.size:
        return [str(name) for name in np.unique(y)]
    if y.dtype.kind not in "iu" or not y.size:
        raise UserError(f"{path}: y is {y.dtype} {y.shape}; expected class numbers 0, 1, 2 … or strings")
    if num_classes:
        return [str(number) for number in range(num_classes)]
    low, high = int(y.min()), int(y.max())
    there = set(np.unique(y).tolist())
    gap = next(number for number in range(len(there) + 1) if number not in there)
    if (gap < 2 and high != gap - 1) or (low < 0 and high < 1):
        raise UserError(f"{path}: y is in {low}..{high}; expected class numbers from 0 without gaps")
    if gap < high:
        where = int(np.argmax(y.reshape(-1) > gap))
        raise UserError(
            f"{path}: y has no {gap}, but {int(y.reshape(-1)[where])} at index {where}; expected class numbers "
            f"from 0 without gaps; dataset.num_classes={gap} treats all above {gap - 1} as bad labels"
        )
    return [str(number) for number in range(high + 1)]


def _labels(path: str, suffix: str, headers: dict[str, tuple[int, ...]], classes: list[str]) -> Array:
    """int64 class numbers of one split, one per image; integers may be out of range, names may not."""
    if "y" + suffix not in headers:
        raise UserError(f"{path}: found x{suffix} but no y{suffix}")
    y, images = _member(path, "y" + suffix), headers["x" + suffix]
    if y.shape[:1] != images[:1] or y.size != len(y):
        raise UserError(f"{path}: y{suffix} has shape {y.shape}, x{suffix} {images}; expected one label per image")
    if images[1:] != headers["x"][1:]:
        raise UserError(f"{path}: x{suffix} has shape {images}, x {headers['x']}; expected the same size")
    if y.dtype.kind not in "iuU":
        raise UserError(f"{path}: y{suffix} is {y.dtype}; expected class numbers 0, 1, 2 … or strings")
    y = y.reshape(-1)
    if y.dtype.kind != "U" and classes == [str(number) for number in range(len(classes))]:
        return y.astype(np.int64)
    names = [str(name) for name in y]
    _require_known(sorted(set(names)), classes, f"{path}: y{suffix}")
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[name] for name in names], dtype=np.int64)
