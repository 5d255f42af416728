"""A teacher's probabilities for training images (`objective=distill`, E6).

Of every image once, without augmentation, cached on disk; with `objective.consistent=true` of what the student sees, in
every step (Beyer et al. 2022, Knowledge distillation: A good teacher is patient and consistent, §3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dlrun.console import Screen
from dlrun.data import Data, Split, crops
from dlrun.data.changes import Rows
from dlrun.data.identity import Digests, keys_of
from dlrun.data.images import Streamed, read
from dlrun.ensembles.members import apart
from dlrun.ensembles.votes import TINY
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders.memo import read_targets, write_targets
from dlrun.inference.predictor import Predictor, load
from dlrun.training.multi_crop import unviewed

__all__ = ["Consistent", "log_probabilities"]

BATCH = 256


def log_probabilities(
    teacher: str, data: Data, trust: list[str], device: torch.device, split: Split | None = None, hint: str = ""
) -> Tensor:
    """Return the teacher's log probabilities (N, K) for a split, by default the training split, without augmentation.

    Raises UserError if the teacher has other classes or images, with `hint` for images of another size, or knows images
    that the student is evaluated on.
    """
    predictor = _loaded(teacher, data, trust, device)
    if predictor.shape != data.shape:
        what = f"the teacher was trained on images of shape {list(predictor.shape)}, this data has {list(data.shape)}"
        more = hint if predictor.shape[2] == data.shape[2] else ""
        raise UserError(f"objective.teacher={predictor.path}: {what}{more}")
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
            yield np.log(predictor(images).probabilities + TINY).astype(np.float32)


class Consistent:
    """A teacher that predicts what the student sees, in one view: normalised images (B, C, H, W) as `data` has them.

    Each member of an ensemble gets them in the size that it was trained on, bilinearly resized. Raises UserError as
    `log_probabilities` does, but images of the teacher may have another size.
    """

    def __init__(self, teacher: str, data: Data, trust: list[str], device: torch.device) -> None:
        self.predictor = _loaded(teacher, data, trust, device)
        theirs, ours = self.predictor.shape[2], data.shape[2]
        if theirs != ours:
            what = f"{theirs} for the teacher, {ours} for this data; use the same dataset.channels"
            raise UserError(f"objective.teacher={self.predictor.path}: other channels per image: {what}")
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (data.mean, data.std))
        self.mean, self.std = mean, std
        self.weights = torch.tensor(self.predictor.weights, device=device).view(-1, 1, 1)
        self.sizes = [_size(path) for path in self.predictor.members or (self.predictor.path,)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Consistent:
        return self  # nothing changes it, and checks copy an experiment many times

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return log probabilities float32 (B, K)."""
        teacher, found = self.predictor, []
        pixels = x.float() * self.std + self.mean
        for whole, dtype, size in zip(teacher.models, teacher.dtypes, self.sizes, strict=True):
            low = dtype != torch.float32
            seen = (pixels - whole.mean) * whole.std.reciprocal()
            if seen.shape[2:] != size:
                seen = F.interpolate(seen, size, mode="bilinear", antialias=True)
            with torch.autocast(x.device.type, dtype=dtype if low else torch.bfloat16, enabled=low):
                found.append(unviewed(whole.model)(seen).float())
        return self._voted(torch.stack(found))

    def _voted(self, logits: Tensor) -> Tensor:
        """The log probabilities (B, K) of logits (M, B, K); an accelerator is waited for if votes are counted alone."""
        vote, heat = self.predictor.vote, self.predictor.temperature
        shares = self.weights / self.weights.sum()
        if vote == "mean_logit":
            return ((shares * logits).sum(0).log_softmax(1) / heat).log_softmax(1)
        if vote == "mean_probability":
            return (((shares * logits.softmax(2)).sum(0) + TINY).log() / heat).log_softmax(1)
        counted = self.predictor.voted(logits.cpu().numpy()).probabilities
        return torch.from_numpy(np.log(counted + TINY)).float().to(logits.device)


def _size(path: Path) -> tuple[int, int]:
    """Height and width of the images that a run was trained on."""
    height, width, _ = crops.fed(reading.config(path).get("augment") or {}, reading.stored(path)["data"]["shape"])
    return height, width


def _loaded(teacher: str, data: Data, trust: list[str], device: torch.device) -> Predictor:
    """Load a teacher of the classes of this data, which knows no label that the student is evaluated on."""
    predictor = load(Path(teacher).expanduser(), trust, str(device))
    why = ""
    if list(predictor.classes) != list(data.classes):
        theirs, ours = apart(predictor.classes, data.classes)
        why = f"the teacher was trained on classes {theirs}, this data has {ours}"
    elif (why := _other_folds(predictor, data)) and not len(data.val):
        why = _unknown(predictor, data)
    if why:
        raise UserError(f"objective.teacher={predictor.path}: {why}")
    return predictor


def _other_folds(predictor: Predictor, data: Data) -> str:
    """How images or folds of the teacher differ: a validation image that it knows would reveal its label."""
    mine = data.record()
    # of runs before `identity`: names of images in val_sha256, and their pixels unless files were not decoded yet
    hashes = ("identity",) if predictor.data.get("identity") else ("val_sha256", "content_sha256")
    for what in hashes:
        theirs, ours = predictor.data.get(what), mine[what]
        if theirs != ours and not (what == "content_sha256" and None in (theirs, ours)):
            kind = {"val_sha256": "another validation fold", "content_sha256": "other images"}
            known = kind.get(what, "other images or folds")
            return f"the teacher was trained on {known}; use the same dataset, limit and split_seed for both"
    for path in predictor.members:
        theirs = (reading.stored(path).get("data") or {}).get("identity")
        if theirs not in (None, mine["identity"]):
            what = "was trained on other images or folds; use members of the same fold as the student"
            return f"its member {path} {what}"
    return ""


def _unknown(predictor: Predictor, data: Data) -> str:
    """Which images of the teacher a student without validation does not train on: they may be those of its test."""
    mine = _labelled(data.train.digests, data.train.labels.numpy())
    for path in predictor.members or (predictor.path,):
        rows = Rows.read(reading.arrays(path, "identity"))
        known = np.array([]) if rows is None else np.flatnonzero(rows.splits != "test")
        if rows is None or not len(known):
            return f"{path} has no record of its images; train the teacher without validation too: trainer.fit_all=true"
        theirs = _labelled(rows.digests[known], rows.labels[known])
        if beyond := len(theirs - mine):
            what = f"{beyond:,} of {len(theirs):,} images of {path} are not among the student's training images"
            return f"{what} with the same label; use the same dataset, limit and test_seed for both"
    ours, other = (record.get("decoding") or {} for record in (data.record(), predictor.data))
    if [ours.get(key) for key in ("held", "whites")] != [other.get(key) for key in ("held", "whites")]:
        return "the teacher reads files with another white level; train it without validation too: trainer.fit_all=true"
    return ""


def _labelled(digests: Digests | None, labels: NDArray[np.int64]) -> set[tuple[bytes, int]]:
    return set() if digests is None else set(zip(keys_of(digests), labels.tolist(), strict=True))


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
