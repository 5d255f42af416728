"""The size, channels and decoding to which image files are brought (`dlrun train dataset.image_size=64`, D4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlrun.data.decoding import VERSION, Decoding
from dlrun.data.headers import first_size, held
from dlrun.data.images import Streamed
from dlrun.data.members import File
from dlrun.errors import UserError

__all__ = ["Form"]


@dataclass(frozen=True)
class Form:
    """The keys of `dataset` with these names.

    `image_size`: side, or height and width in pixels, to which all are brought; 0: all have the size of the first.
    Raises UserError for a size and a number of channels that cannot be.
    """

    image_size: int | Sequence[int]
    channels: int
    decoding: Decoding

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise UserError(f"dataset.channels={self.channels}: must be 1 (gray) or 3 (RGB)")
        if len(self._sides) != 2 or min(self._sides) < 0 or (min(self._sides) == 0 != max(self._sides)):
            expected = "a number of pixels, [height,width], or 0 to keep it"
            raise UserError(f"dataset.image_size={self.image_size}: must be {expected}")

    @classmethod
    def of(
        cls,
        *,
        image_size: int | Sequence[int] = 0,
        channels: int = 3,
        resize: str = "crop",
        interpolation: str = "auto",
        crop_pct: str | float = "auto",
        background: str = "white",
        decode: str = "auto",
        max_pixels: int = Decoding.max_pixels,
        decoder: int = VERSION,
    ) -> Form:
        """Return the form that keys of `dataset` with these names ask for."""
        # auto is that of pretrained weights, which are in the config by now, see dlrun/training/statistics.py
        chosen = "bilinear" if interpolation == "auto" else interpolation
        share = 1.0 if isinstance(crop_pct, str) else float(crop_pct)
        how = Decoding(resize, chosen, background, decode, max_pixels, decoder=decoder, crop=share)
        return cls(image_size, channels, how)

    @property
    def _sides(self) -> tuple[int, ...]:
        size = self.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def stream(self, files: Sequence[File], root: Path | None = None) -> Callable[[Sequence[File]], Streamed]:
        """Return a function that makes images of files, of the shape and type that `files`, those of train, have.

        `root`: the folder of the dataset, whose splits share a pack of the cache.
        """
        height, width = self._sides if self._sides[0] else first_size(files)
        shape, decoding = (height, width, self.channels), held(files, self.decoding)
        return lambda chosen: Streamed(chosen, shape, resize=self._sides[0] > 0, decoding=decoding, root=root)
