"""Processor time of decoding a photo of 12 megapixels, and what a reduced scale changes in the pixels.

    python tests/benchmarks/bench_decode.py [PHOTO.jpg]

Without a photo it draws one with detail at all scales, as a JPEG of quality 90. Seconds are the least of five.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dlrun.data.decoding import Decoding, decoded

HEIGHT, WIDTH = 3000, 4000
SIZES = (64, 224, 512)


def drawn(path: Path) -> Path:
    """A photograph-like JPEG: noise whose amplitude falls with its frequency."""
    draw = np.random.default_rng(0)
    pixels = draw.normal(0, 24, (HEIGHT, WIDTH, 3))
    for side in (4, 8, 16, 32, 64, 128, 256, 512):
        small = draw.integers(0, 256, (max(2, side * HEIGHT // WIDTH), side, 3), dtype=np.uint8)
        layer = Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        pixels += (np.asarray(layer, dtype=float) - 127) * 12 / side**0.5
    Image.fromarray(np.clip(pixels + 127, 0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def least(task: Callable[[], Any]) -> tuple[float, Any]:
    seconds = []
    for _ in range(5):
        started = time.process_time()
        found = task()
        seconds.append(time.process_time() - started)
    return min(seconds), found


def theirs(path: Path, size: int) -> Any:
    """Resize and CenterCrop of torchvision."""
    from torchvision import transforms

    with Image.open(path) as file:
        return transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])(file.convert("RGB"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else drawn(Path(folder) / "photo.jpg")
        for size in SIZES:
            shape = (size, size, 3)
            whole, exact = least(lambda shape=shape: decoded(path, shape, Decoding(decode="exact")))
            print(f"{size}: exact {whole:.3f} s, torchvision {least(lambda size=size: theirs(path, size))[0]:.3f} s")
            for decode in ("auto", "fast"):
                seconds, found = least(lambda d=decode, shape=shape: decoded(path, shape, Decoding(decode=d)))
                gap = np.abs(found.astype(int) - exact)
                print(f"  {decode} {seconds:.3f} s, difference of a value: mean {gap.mean():.2f}, largest {gap.max()}")


if __name__ == "__main__":
    main()
