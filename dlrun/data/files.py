"""A user's own images: `dlrun train dataset=image_folder dataset.root=photos dataset.image_size=64` (D4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dlrun.data.decoding import VERSION, Decoding
from dlrun.data.form import Form
from dlrun.data.groups import by_pattern
from dlrun.data.reader import read_folder
from dlrun.data.splits import Raw, Split

__all__ = ["image_folder"]


def image_folder(
    root: str,
    image_size: int | Sequence[int] = 0,
    channels: int = 3,
    *,
    train_dir: str | None = None,
    val_dir: str | None = None,
    test_dir: str | None = None,
    test: str = "auto",
    class_level: str | int = "auto",
    group_pattern: str | None = None,
    resize: str = "crop",
    interpolation: str = "auto",
    crop_pct: str | float = "auto",
    background: str = "white",
    decode: str = "auto",
    max_pixels: int = Decoding.max_pixels,
    decoder: int = VERSION,
) -> Raw:
    """Image files in one folder per class: `root/train/<class>/`, optionally `root/test/` and `root/val/`, or
    `root/<class>/`; `layout.splits` has the other names. Nothing is decoded here.

    `train_dir` and its like: folders of class folders, relative to root. `test`: none leaves a test folder out, auto
    reads it. `class_level` is that of `classes.labelled_files`. `image_size`: side, or height and width in pixels, to
    which `resize` brings all images; 0: all have one size. `channels`: 3 for RGB, 1 for gray, whatever the files
    contain. `group_pattern` is that of `groups.by_pattern`. The others are those of `Decoding`. Classes are the sorted
    names of those of train. Raises UserError for a missing or empty folder and for a class that train does not have.
    """
    # those of pretrained weights are in the config by now, see dlrun/training/statistics.py
    chosen = "bilinear" if interpolation == "auto" else interpolation
    share = 1.0 if isinstance(crop_pct, str) else float(crop_pct)
    how = Decoding(resize, chosen, background, decode, max_pixels, decoder=decoder, crop=share)
    form = Form(image_size, channels, how)
    typed, top = {"train": train_dir, "val": val_dir, "test": test_dir}, Path(root).expanduser()
    found = read_folder(top, typed, test, str(class_level))
    stream = form.stream([file for file, *_ in found.splits["train"]], top)
    numbers = {name: number for number, name in enumerate(found.classes)}

    def split(role: str) -> Split:
        files, names, ids = (list(part) for part in zip(*found.splits[role], strict=True))
        labels = torch.tensor([numbers[name] for name in names])
        return Split(stream(files), labels, ids, groups=by_pattern(group_pattern, ids))

    read_test = (lambda: split("test")) if "test" in found.splits else None
    val = split("val") if "val" in found.splits else None
    train = split("train")
    counted = () if train.groups is None else (f"{len({*train.groups.tolist()}):,} groups by dataset.group_pattern",)
    notes = (*((str(found.account),) if found.account else ()), *counted)
    return Raw(train, read_test, found.classes, val, notes, account=found.account)
