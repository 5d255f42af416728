"""A model under attack: its accuracy by the size of the change (`dlrun evaluate RUN --adversarial 1,2,4,8`, D9).

The attack is projected gradient ascent in the norm linf: STEPS steps from a random start. It knows the model, so the
accuracy is at most that against an attacker who does not; a stronger attack may find more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dlrun.console import Screen
from dlrun.errors import UserError
from dlrun.inference.evaluate import Evaluation
from dlrun.inference.predictor import Predictor
from dlrun.models.adversarial import Attack
from dlrun.models.outputs import logits_of

__all__ = ["Attacked", "attack"]

STEPS = 10  # Madry et al. 2018 take 7 to 20
KEPT = 500  # images in adversarial.npz


@dataclass
class Attacked:
    """Accuracy by epsilon, and the images that the largest one fools, the most certain errors first."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


class _Voter(nn.Module):
    """Raw images (B, C, H, W) to logits, or of an ensemble to the logarithms of its mean probabilities."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.members = nn.ModuleList(predictor.models)
        self.dtypes, self.weights = predictor.dtypes, torch.tensor(predictor.weights)

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for model, dtype in zip(self.members, self.dtypes, strict=True):
            low = dtype != torch.float32
            with torch.autocast(x.device.type, dtype=dtype if low else torch.bfloat16, enabled=low):
                found.append(logits_of(model(x)).float())
        if len(found) == 1:
            return found[0]
        shares = (self.weights / self.weights.sum()).to(x).log().view(-1, 1, 1)
        voted: Tensor = torch.logsumexp(torch.stack(found).log_softmax(-1) + shares, 0)
        return voted


def attack(
    predictor: Predictor, made: Evaluation, epsilons: Sequence[float], screen: Screen, seed: int = 0
) -> Attacked:
    """Attack every image of an evaluation with each epsilon, in 255ths of the range from black to white.

    Changed images are rounded to what the type of the dataset can hold before they are judged. Raises UserError for a
    run that does not tell the range of its images.
    """
    units = predictor.units
    if units is None:
        raise UserError(f"{predictor.path} does not tell the range of its images; train again")
    low, high = (units.low, units.high) if units.white is None else (0.0, units.white)
    channels, model = predictor.shape[2], _Voter(predictor)
    zero, one = torch.zeros(channels), torch.ones(channels)
    attacks = [Attack(e / 255, STEPS, "linf", zero, one, low, high) for e in sorted(epsilons)]
    generator = torch.Generator(predictor.device).manual_seed(seed)
    right, kept = np.zeros(len(attacks), dtype=np.int64), list[_Fooled]()
    parts = torch.split(torch.arange(len(made.labels)), predictor.batch_size)
    sizes = f"{len(made.labels):,} images, {len(attacks)} times"
    for rows in screen.work(iter(parts), len(parts), "attacking", lambda: sizes):
        images, y = made.split.images.take(rows), made.split.labels[rows].to(predictor.device)
        x = images.to(predictor.device).permute(0, 3, 1, 2).float()
        before = _judged(model, x)
        for number, one_attack in enumerate(attacks):
            moved = one_attack(model, nn.CrossEntropyLoss(), x, y, generator)
            moved = moved.round() if units.dtype.startswith("uint") else moved
            after = _judged(model, moved)
            right[number] += int((after.argmax(1) == y).sum())
        fooled = (before.argmax(1) == y) & (after.argmax(1) != y)
        kept += _fooled(fooled, rows, moved, after, y)
        kept = sorted(kept, key=lambda one: -one.loss)[:KEPT]
    count = len(made.labels)
    first = int((made.vote.classes == made.labels).sum())
    found = [{"epsilon": 0.0, "accuracy": first / count, "images": count}]
    pairs = zip(sorted(epsilons), right.tolist(), strict=True)
    found += [{"epsilon": float(e), "accuracy": n / count, "images": count} for e, n in pairs]
    return Attacked(found, _arrays(made, kept, units.dtype, max(epsilons)))


@dataclass
class _Fooled:
    row: int
    loss: float
    predicted: int
    image: Tensor  # (C, H, W)


def _judged(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(x)
    return found


def _fooled(which: Tensor, rows: Tensor, moved: Tensor, logits: Tensor, y: Tensor) -> Iterator[_Fooled]:
    losses, guesses = F.cross_entropy(logits, y, reduction="none").tolist(), logits.argmax(1).tolist()
    for k in which.nonzero().flatten().tolist():
        yield _Fooled(int(rows[k]), losses[k], guesses[k], moved[k].cpu())


def _arrays(made: Evaluation, kept: Sequence[_Fooled], dtype: str, epsilon: float) -> dict[str, NDArray[Any]]:
    rows = torch.tensor([one.row for one in kept], dtype=torch.int64)
    originals = made.split.images.take(rows).cpu().numpy()
    changed = np.empty(originals.shape, dtype=dtype)
    for k, one in enumerate(kept):
        changed[k] = one.image.permute(1, 2, 0).numpy()
    return {
        "x": changed,
        "y": made.labels[rows.numpy()],
        "original": originals,
        "predicted": np.array([one.predicted for one in kept], dtype=np.int64),
        "loss": np.array([one.loss for one in kept], dtype=np.float32),
        "ids": np.array([made.ids[one.row] for one in kept], dtype=np.str_),
        "epsilon": np.array(epsilon),
    }
