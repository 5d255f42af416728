"""A trained run or ensemble as a torch module with its preprocessing: `dlrun.load("outputs/latest")` (E6)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dlrun.console import Screen
from dlrun.errors import UserError
from dlrun.inference.classify import Outcome, Sources, votes
from dlrun.inference.predictor import Predictor
from dlrun.training.evaluating import logits

__all__ = ["Model", "Prediction"]

# one image or several: a path, an array (H, W), (H, W, C) or (N, H, W, C), or a list of these
Pictures: TypeAlias = "str | Path | NDArray[Any] | Tensor | Sequence[str | Path | NDArray[Any]]"
TINY = 1e-30  # below float32's smallest probability that matters, so that a logarithm is finite


@dataclass(frozen=True)
class Prediction:
    """The class of each image by name, and the probability of each class (N, K); `names` tells which image is which.

    `classes, probabilities = model.predict(...)` takes the first two.
    """

    classes: list[str]
    probabilities: NDArray[np.float32]
    names: list[str]

    def __iter__(self) -> Iterator[list[str] | NDArray[np.float32]]:
        yield self.classes
        yield self.probabilities


class Model(nn.Module):
    """A trained model in evaluation mode, its normalisation included.

    Called with images (B, C, H, W) in the units of the training images (uint8, or float), it returns logits (B, K); of
    an ensemble the logarithms of its probabilities, without gradients. `predict` takes photos as they are. `classes`
    are the names of the K classes, `shape` is (H, W, C) of an image.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.path, self.classes, self.shape = predictor.path, list(predictor.classes), predictor.shape
        self.members = nn.ModuleList(predictor.models)
        self.eval()
        self._predictor = predictor

    def forward(self, images: Tensor) -> Tensor:
        found = []
        for model, dtype in zip(self.members, self._predictor.dtypes, strict=True):
            low = dtype != torch.float32
            with torch.autocast(images.device.type, dtype=dtype if low else torch.bfloat16, enabled=low):
                found.append(logits(model, images))
        if len(found) == 1:
            return found[0]
        vote = self._predictor.voted(torch.stack(found).detach().cpu().numpy())
        return torch.from_numpy(np.log(np.maximum(vote.probabilities, TINY))).float().to(images.device)

    def predict(self, images: Pictures) -> Prediction:
        """Return classes and probabilities of image files, folders, .npy files or arrays, as `dlrun predict` does.

        An array is one image (H, W) or (H, W, C), or several (N, H, W, C); images of uint8 that have another size are
        resized as files are. Raises UserError that names the first image that cannot be read.
        """
        prediction, done = Prediction([], np.empty((0, len(self.classes)), np.float32), []), Outcome()
        rows = []
        self._predictor.device = self._predictor.models[0].mean.device  # the module may have been moved
        with tempfile.TemporaryDirectory() as folder, Screen() as screen:
            for part in self._sources(images, Path(folder)):
                for name, p, k in votes(self._predictor, part, screen, done):
                    prediction.names.append(name)
                    prediction.classes.append(self.classes[k])
                    rows.append(p)
                for name, why in done.unreadable.items():
                    raise UserError(f"{name}: {why}")
        return Prediction(prediction.classes, np.asarray(rows, dtype=np.float32), prediction.names)

    def _sources(self, images: Pictures, folder: Path) -> Iterator[Sources]:
        """The images in the order given: neighbouring paths together, arrays one by one."""
        several = [images] if isinstance(images, str | Path | np.ndarray | Tensor) else list(images)
        if not several:
            raise UserError("predict: expected images, found an empty list")
        paths: list[str] = []
        for number, one in enumerate(several):
            if isinstance(one, str | Path):
                paths.append(str(Path(one).expanduser()))
                if not Path(paths[-1]).exists():
                    raise UserError(f"{paths[-1]}: no such file or folder; expected images, folders of them or .npy")
                continue
            if paths:
                yield Sources(paths)
                paths = []
            yield self._held(np.asarray(one), f"array {number}" if len(several) > 1 else "array", folder)
        if paths:
            yield Sources(paths)

    def _held(self, array: NDArray[Any], name: str, folder: Path) -> Sources:
        """The images of an array; of uint8 with another size as files, which are resized."""
        height, width, channels = self.shape
        if array.shape == (channels, height, width):
            array = array[None]
        gray = array.ndim == 2 or (array.ndim == 3 and array.shape[2] not in (1, 3, 4))
        whole = array[..., None] if gray else array
        whole = whole[None] if whole.ndim == 3 else whole
        if whole.ndim != 4:
            raise UserError(f"{name}: is {array.shape}; expected (H, W), (H, W, C) or (N, H, W, C)")
        fits = whole.shape[1:] in (self.shape, (channels, height, width))
        if fits or whole.dtype != np.uint8 or whole.shape[3] not in (1, 3, 4):
            return Sources([], held={name: whole})
        files = []
        for number, image in enumerate(whole):
            files.append(str(folder / f"{name}[{number}].png"))
            Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(files[-1])
        return Sources(files)
