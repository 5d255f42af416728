"""What a teacher says of every training image: asked once, kept on disk by content (`objective=distill`, E6)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlrun.console import Screen
from dlrun.data import Data, Split
from dlrun.data.images import Streamed, read
from dlrun.ensembles.members import apart
from dlrun.errors import UserError
from dlrun.folders.memo import read_targets, write_targets
from dlrun.inference.predictor import Predictor, load

__all__ = ["log_probabilities"]

BATCH = 256


def log_probabilities(teacher: str, data: Data, trust: list[str], device: torch.device) -> Tensor:
    """Return the logarithms (N, K) of the teacher's probabilities of the training split, without augmentation.

    Raises UserError when the teacher knows other classes or images, or was trained on the student's validation fold.
    """
    path = Path(teacher).expanduser()
    predictor = load(path, trust, device.type)
    _must_match(predictor, data)
    key = _key(predictor, data.train)
    kept = read_targets(key)
    if kept is None or kept.shape != (len(data.train), len(data.classes)) or kept.dtype != np.float32:
        kept = np.concatenate(list(_asked(predictor, data.train)))
        write_targets(key, kept)
    return torch.from_numpy(kept)


def _asked(predictor: Predictor, split: Split) -> Iterator[Any]:
    order = torch.split(torch.arange(len(split)), BATCH)
    with Screen() as screen:
        told = f"{len(split):,} images"
        batches = screen.work(read(split.images, order), len(order), "asking the teacher", lambda: told)
        for images in batches:
            yield np.log(predictor(images).probabilities + 1e-12).astype(np.float32)


def _must_match(predictor: Predictor, data: Data) -> None:
    mine = data.record()
    for what in ("classes", "shape", "val_sha256", "content_sha256"):
        theirs, ours = predictor.data.get(what), mine[what]
        if what == "content_sha256" and None in (theirs, ours):
            continue  # files that nobody has decoded: their names in val_sha256 must do
        if (list(theirs or ()), what) != (list(ours), what):
            said = {
                "classes": "knows other classes than this data has: {} and {}".format(*apart(theirs or (), ours)),
                "shape": f"takes images of shape {list(predictor.shape)}, these have {mine['shape']}",
                # an image that the teacher learned by heart would tell the student its label
                "val_sha256": "had another validation fold; give both the same dataset, limit and split_seed",
                "content_sha256": "was trained on other images; give both the same dataset, limit and split_seed",
            }[what]
            raise UserError(f"objective.teacher={predictor.path}: the teacher {said}")


def _key(predictor: Predictor, split: Split) -> str:
    """A hash of all that the targets follow from: the teacher's weights and vote, the images and their order."""
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
