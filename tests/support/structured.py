"""Pictures with as much structure as photographs have, drawn from a seed."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["photo"]


def photo(seed: int, side: int = 200) -> Image.Image:
    """A picture in colour with as much structure as a photograph."""
    draw = np.random.default_rng(seed)
    pixels = sum(
        np.asarray(Image.fromarray(draw.integers(0, 256, (k, k, 3), dtype=np.uint8)).resize((side, side), 3), float)
        for k in (4, 9, 16)
    )
    return Image.fromarray((pixels / 3).astype(np.uint8))
