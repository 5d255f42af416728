"""Whether a run decodes JPEGs on its device or on the processor (`dlrun train dataset=shards dataset.jpeg=auto`, D1).

On CUDA auto measures both on the first images and takes the faster, once: the choice becomes part of the run's config,
so a resumed run, the other processes of a training and every later verb keep it, and no result depends on a timing
after the start.
"""

from __future__ import annotations

import time

import torch

from dlrun.config import ranks
from dlrun.config.settings import Settings
from dlrun.data import Data
from dlrun.data.images import Streamed, read
from dlrun.data.jpegs import AUTO, DEVICE, PROCESSOR, NoRoom, asked, broken, read_on, refused
from dlrun.errors import UserError

__all__ = ["chosen", "on_device"]

MEASURED = ("cuda",)  # kinds of devices that have a decoder of their own
IMAGES, BATCH = 128, 32


def on_device(cfg: Settings) -> bool:
    """Whether images are decoded on the device."""
    return asked(cfg.plain["dataset"]) == DEVICE


def chosen(cfg: Settings, data: Data, device: torch.device, begun: bool) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings with the place where JPEGs are decoded, and a line for the screen.

    A run that has `begun` keeps what it has: auto, which it left open, is the processor. Raises UserError if the device
    was asked for and cannot be had.
    """
    how, images = asked(cfg.plain["dataset"]), data.train.images
    if how == AUTO and not begun and device.type in MEASURED and isinstance(images, Streamed) and not refused(images):
        how, line = _faster(images, device)
        return cfg.changed(dataset={"jpeg": how}), (line,)
    if how != DEVICE:
        return cfg, ()
    key = f"dataset.jpeg={DEVICE}"
    if not begun and not isinstance(images, Streamed):
        why = "the images are decoded once, by the processor; dataset.cache=none dataset.memory_gb=0 decodes them anew"
        return cfg.changed(dataset={"jpeg": PROCESSOR}), (f"{key}: {why} in every epoch",)
    if not begun:
        why = refused(images) if isinstance(images, Streamed) else ""
        if why := why or (_cannot(device) if broken(device) else ""):
            raise UserError(f"{key}: {why}; type dataset.jpeg={PROCESSOR}")
    if device.type not in MEASURED:
        return cfg, (f"{key}: no CUDA here, torchvision decodes on the processor, which was measured to be slower",)
    return cfg, ()


def _cannot(device: torch.device) -> str:
    return f"torchvision cannot decode on {device} ({broken(device)})"


def _faster(images: Streamed, device: torch.device) -> tuple[str, str]:
    """Where the first images are decoded faster, and a line with both rates."""
    key, taken = f"dataset.jpeg={AUTO}", f"dataset.jpeg={PROCESSOR} is used"
    if broken(device):
        return PROCESSOR, f"{key}: {_cannot(device)}; {taken}"
    first = images.subset(torch.arange(min(IMAGES, len(images))))
    try:
        rates = {how: rate(first, how, device) for how in (PROCESSOR, DEVICE)}
    except NoRoom:
        return PROCESSOR, f"{key}: {device} has no memory left to decode images; {taken}"
    place, share = ranks.own(), ""
    if place is not None and place.near > 1:  # the others have cards of their own, and wait until this one has measured
        rates[PROCESSOR] /= place.near
        share = f" for each of {place.near} processes"
    how = max(rates, key=lambda one: rates[one])
    both = f"{rates[DEVICE]:,.0f} images a second on {device}, {rates[PROCESSOR]:,.0f} on the processor{share}"
    return how, f"{key}: {len(first):,} images decoded, {both}; dataset.jpeg={how} is used"


def rate(images: Streamed, how: str, device: torch.device) -> float:
    """Return how many images a second are decoded and brought to a device, after once to warm up."""
    order = torch.split(torch.arange(len(images)), BATCH)
    started = 0.0
    for _ in range(2):
        started = time.perf_counter()
        for batch in read_on(images, order, device) if how == DEVICE else read(images, order):
            batch.to(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return len(images) / (time.perf_counter() - started)
