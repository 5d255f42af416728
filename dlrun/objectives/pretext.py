"""Learning a trunk from images without labels, before training with few (M10).

`dlrun train objective=autoencode`, denoise, rotation or simclr; then `trainer.start_from=RUN` loads the trunk. Labels
are never read: val_loss is the loss of the objective on validation images, and there is no accuracy. Each has a small
head of its own on what the last layer of the model gets; its weights are part of the optimizer and of checkpoints, and
no other run loads them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.data.augment import Augment
from dlrun.data.draws import Draws
from dlrun.errors import UserError
from dlrun.models.depths import classifiers
from dlrun.models.outputs import logits_of

if TYPE_CHECKING:
    from dlrun.data import Data
    from dlrun.data.batches import Batch

__all__ = ["Autoencode", "Rotation", "SimCLR"]

SIDE = 32  # pixels of the shorter side of what a decoder draws, at most
START = 4  # pixels of a side from which it begins
TURNS = 4


class _Pretext:
    """A loss of images alone, from the features that the last layer of the model gets (B, D) or (B, D, h, w)."""

    train_acc_valid = False
    unsupervised = True

    def __init__(self, model: nn.Module, data: Data, device: torch.device) -> None:
        places = classifiers(model, len(data.classes))
        if not places:
            name = type(model).__name__
            raise UserError(f"objective: {name} has no last layer with {len(data.classes)} outputs to learn before")
        self.place, self.head = places[-1], nn.Module()
        self.shape = (data.shape[2], *data.shape[:2])
        was = model.training
        with torch.no_grad():
            features, _ = self._seen(model.eval(), torch.zeros(2, *self.shape, device=device))
        model.train(was)
        self.width = features.shape[1]

    def _seen(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, D), the mean over their pixels if they are a map, and the logits (B, K) of images."""
        found: list[Tensor] = []
        layer = model.get_submodule(self.place)
        handle = layer.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        try:
            logits = logits_of(model(x))
        finally:
            handle.remove()
        features = found[-1]
        return features.flatten(2).mean(2) if features.ndim > 2 else features, logits

    def parameters(self) -> list[nn.Parameter]:
        """Return the weights of the head, which an optimizer trains with those of the model."""
        return [*self.head.parameters()]

    def columns(self) -> dict[str, None]:
        """Return the columns of metrics.csv that have no value."""
        return {"train_acc": None}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return dict(self.head.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what a checkpoint kept."""
        self.head.load_state_dict(state)


class Autoencode(_Pretext):
    """A decoder draws the image again from its features: the mean square error of normalised values.

    With `noise` (standard deviation, in those of the data) the network sees a noisy image and draws the clean one
    (Vincent et al. 2008, Extracting and composing robust features with denoising autoencoders). Images are drawn with a
    shorter side of at most 32 pixels. A loss of 1 is that of a gray image.
    """

    def __init__(self, model: nn.Module, data: Data, device: torch.device, noise: float = 0.0) -> None:
        super().__init__(model, data, device)
        self.noise = noise
        channels, height, width = self.shape
        scale = min(1.0, SIDE / min(height, width))
        self.size = (round(height * scale), round(width * scale))
        self.head = _decoder(self.width, channels, self.size).to(device)

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K), which nothing learns."""
        x = batch.x
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=batch.generator, device=x.device, dtype=x.dtype)
        features, logits = self._seen(model, x)
        drawn = self.head(features).float()
        return F.mse_loss(drawn, F.adaptive_avg_pool2d(batch.x, drawn.shape[2:])), logits.detach()


class Rotation(_Pretext):
    """A linear layer tells by how many quarters each image is turned: cross-entropy of four classes.

    Gidaris et al. 2018, Unsupervised representation learning by predicting image rotations. Each image of a batch gets
    one of the turns at random. Raises UserError for images that are not square.
    """

    def __init__(self, model: nn.Module, data: Data, device: torch.device) -> None:
        super().__init__(model, data, device)
        if data.shape[0] != data.shape[1]:
            size = "×".join(map(str, data.shape[:2]))
            raise UserError(f"objective=rotation: turned images are square, these have {size} pixels; set image_size")
        self.head = nn.Linear(self.width, TURNS).to(device)

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K), which nothing learns."""
        turns = torch.randint(TURNS, (len(batch),), generator=batch.generator, device=batch.x.device)
        every = torch.stack([torch.rot90(batch.x, k, (2, 3)) for k in range(TURNS)])
        x = every[turns, torch.arange(len(batch), device=batch.x.device)]
        features, logits = self._seen(model, x.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(self.head(features).float(), turns), logits.detach()


class SimCLR(_Pretext):
    """Two views of an image find each other among all views of the batch: the loss NT-Xent at a `temperature`.

    Chen et al. 2020, A simple framework for contrastive learning of visual representations, §2: views are cropped to
    `crop_scale` of their area or more, mirrored and changed in colour by `strength` (1: as on ImageNet, 0.5: as on
    CIFAR); a head of two layers projects them to `width` numbers. A loss of ln(2 B - 1) is chance. A batch comes as a
    whole: without trainer.accumulate.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        device: torch.device,
        temperature: float = 0.5,
        crop_scale: float = 0.2,
        strength: float = 0.5,
        width: int = 64,
    ) -> None:
        super().__init__(model, data, device)
        self.temperature = temperature
        self.head = nn.Sequential(nn.Linear(self.width, self.width), nn.ReLU(), nn.Linear(self.width, width)).to(device)
        units = data.units
        low, high = (units.low, units.high) if units.white is None else (0.0, units.white)
        self.mean, self.std = (torch.tensor(values, device=device) for values in (data.mean, data.std))
        self.change = Augment(
            crop="full",
            crop_scale=(crop_scale, 1.0),
            flip=True,
            brightness=0.8 * strength,
            contrast=0.8 * strength,
            saturation=0.8 * strength,
            hue=0.2 * strength,
            grayscale=0.2 if data.shape[2] > 1 else 0.0,
            span=(low, high),
        )

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K), which nothing learns."""
        features, logits = self._seen(model, torch.cat([self._view(batch, 0), self._view(batch, 1)]))
        points = F.normalize(self.head(features).float(), dim=1)
        likeness = points @ points.T / self.temperature
        likeness.fill_diagonal_(-math.inf)  # of an image with itself
        count = len(batch)
        partner = torch.arange(2 * count, device=points.device).roll(count)
        return F.cross_entropy(likeness, partner), logits[:count].detach()

    def _view(self, batch: Batch, which: int) -> Tensor:
        raw = (batch.x.permute(0, 2, 3, 1) * self.std + self.mean).contiguous()
        sample = torch.arange(len(batch)) + which * len(batch)
        changed = self.change(raw, Draws(batch.seed * 1_000_003 + batch.step, batch.epoch, sample))
        return ((changed - self.mean) / self.std).permute(0, 3, 1, 2)


def _decoder(width: int, channels: int, size: tuple[int, int]) -> nn.Sequential:
    """From features (B, D) to images (B, C, h, w): doubled from four pixels of a side until they are large enough."""
    doublings = max(0, math.ceil(math.log2(max(size) / START)))
    planes = 64
    layers: list[nn.Module] = [nn.Linear(width, planes * START * START), nn.Unflatten(1, (planes, START, START))]
    for _ in range(doublings):
        less = max(16, planes // 2)
        layers += [nn.ReLU(), nn.Upsample(scale_factor=2.0), nn.Conv2d(planes, less, 3, padding=1)]
        planes = less
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(size), nn.Conv2d(planes, channels, 3, padding=1))
