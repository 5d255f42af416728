"""Where adversarial images come from: `dlrun evaluate RUN --adversarial 8` writes it, `dataset=arrays` reads it (D9).

A model that trains on changed test images has seen these images; its score on that test split would be too good.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dlrun.data.array_files import Stored, stored_arrays
from dlrun.errors import UserError

__all__ = ["ARRAY", "made_of"]

ARRAY = "origin"  # of texts: the run, the data it was evaluated on ("" for its own), the split
PART = 1024  # images compared at a time


def made_of(path: str | None, slots: Mapping[str, Stored]) -> tuple[str, ...]:
    """Return a line for the screen if a file says that its images were made of others than training images.

    Raises UserError if one of the originals is in the test split that the same data are scored on.
    """
    there = stored_arrays(path) if path else {}
    if ARRAY not in there or there[ARRAY].dtype.kind != "U" or there[ARRAY].shape != (3,):
        return ()
    run, data, split = (str(word) for word in there[ARRAY].read())
    if split == "train":
        return ()
    source = f"the {split + ' split' if split else 'images'} of {data or run}"
    if "x_test" in slots and "original" in there and (count := _shared(there["original"], slots["x_test"])):
        what = f"{count} of its images were made of images in {slots['x_test']}, which would score the model"
        raise UserError(f"dataset.path={path}: {what}; omit dataset.x_test, or make them of training images")
    return (f"{path}: its images were made of {source}; a score on that split says nothing about a model trained here",)


def _shared(originals: Stored, test: Stored) -> int:
    """How many of the original images are in a test split, value by value."""
    if originals.dtype != test.dtype or originals.dtype.hasobject:
        return 0
    seen = {image.tobytes() for image in originals.read()}
    images, found = test.read(), set[bytes]()
    for start in range(0, len(images), PART):
        found |= seen & {image.tobytes() for image in np.asarray(images[start : start + PART])}
    return len(found)
