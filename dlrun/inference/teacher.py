"""A teacher's probabilities for every training image, computed once and cached on disk (`objective=distill`, E6)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.console import Screen
from dlrun.data import Data, Split
from dlrun.data.images import Streamed, read
from dlrun.ensembles.members import apart
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders.memo import read_targets, write_targets
from dlrun.inference.predictor import Predictor, load

__all__ = ["log_probabilities"]

BATCH = 256


def log_probabilities(
    teacher: str, data: Data, trust: list[str], device: torch.device, split: Split | None = None
) -> Tensor:
    """Return the teacher's log probabilities (N, K) for a split, by default the training split, without augmentation.

    Raises UserError if the teacher has other classes or images, or was trained on the student's validation fold.
    """
    path = Path(teacher).expanduser()
    predictor = load(path, trust, str(device))
    _must_match(predictor, data)
    split = data.train if split is None else split
    key = _key(predictor, split)
    targets = read_targets(key)
    if targets is None or targets.shape != (len(split), len(data.classes)) or targets.dtype != np.float32:
        targets = np.concatenate(list(_targets(predictor, split)))
        write_targets(key, targets)
    return torch.from_numpy(targets)


def _targets(predictor: Predictor, split: Split) -> Iterator[NDArray[np.float32]]:
    order = torch.split(torch.arange(len(split)), BATCH)
    with Screen() as screen:
        size = f"{len(split):,} images"
        batches = screen.work(read(split.images, order), len(order), "running the teacher", lambda: size)
        for images in batches:
            yield np.log(predictor(images).probabilities + 1e-12).astype(np.float32)


def _must_match(predictor: Predictor, data: Data) -> None:
    mine = data.record()
    # of runs before `identity`: names of images in val_sha256, and their pixels unless files were not decoded yet
    hashes = ("identity",) if predictor.data.get("identity") else ("val_sha256", "content_sha256")
    for what in ("classes", "shape", *hashes):
        theirs, ours = predictor.data.get(what), mine[what]
        if what == "content_sha256" and None in (theirs, ours):
            continue
        if (list(theirs or ()), what) != (list(ours), what):
            difference = {
                "classes": "classes {}, this data has {}".format(*apart(theirs or (), ours)),
                "shape": f"images of shape {list(predictor.shape)}, this data has {mine['shape']}",
                # a validation image that the teacher memorised would reveal its label to the student
                "val_sha256": "another validation fold; use the same dataset, limit and split_seed for both",
                "identity": "other images or folds; use the same dataset, limit and split_seed for both",
                "content_sha256": "other images; use the same dataset, limit and split_seed for both",
            }[what]
            raise UserError(f"objective.teacher={predictor.path}: the teacher was trained on {difference}")
    for path in predictor.members:
        theirs = (reading.stored(path).get("data") or {}).get("identity")
        if theirs not in (None, mine["identity"]):
            which = f"objective.teacher={predictor.path}: its member {path}"
            raise UserError(
                f"{which} was trained on other images or folds; use members of the same fold as the student"
            )


def _key(predictor: Predictor, split: Split) -> str:
    """A hash of all that determines the targets: the teacher's weights and vote, the images and their order."""
    total = hashlib.sha256(repr((predictor.vote, predictor.weights, predictor.temperature, split.ids)).encode())
    for model in predictor.models:
        total.update(type(model.model).__qualname__.encode())
        for name, tensor in model.state_dict().items():
            total.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    if split.images.marks is not None:
        total.update(b"".join(split.images.marks.digests))
    elif isinstance(split.images, Streamed):
        stats = [file.stat() for file in split.images.files]
        total.update(repr([(s.st_size, s.st_mtime_ns) for s in stats]).encode())
    return total.hexdigest()
