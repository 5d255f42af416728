"""Galleries of images on a page, each with a caption and a choice of class or pair (`dlrun report`, D11).

The images lie in the page as the bytes of PNG or JPEG files. The files of a run are untrusted: every text is escaped.
Nothing imports torch.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlrun.folders import reading
from dlrun.reports import run_plots
from dlrun.reports.page import card, text

__all__ = ["Shown", "gallery", "worst"]

PHOTO = 48  # pixels from which an image is shown large and smooth; smaller ones show their pixels


class Shown(NamedTuple):
    """An image of a gallery: its file, the longer side in pixels, its id, and two classes by name."""

    data: bytes
    side: int
    name: str
    first: str
    second: str
    caption: str  # HTML


def worst(folder: Path, split: str = "val") -> str:
    """Return the gallery of the worst errors of a run, or on `test` of an evaluation; "" if none are stored."""
    shown, found = reading.arrays(folder, "showcase"), reading.arrays(folder, "predictions")
    if f"{split}_logits" not in found or "images" not in shown:
        return ""
    if not len(shown["images"]):
        where = " of the validation split" if split == "val" else ""
        return card(f"No image{where} is classified wrongly.", "fine")
    logits, labels, ids = (found[f"{split}_{what}"] for what in ("logits", "labels", "ids"))
    classes, pictures, guesses = run_plots.names(folder, logits.shape[1]), [], logits.argmax(1)
    for row, (data, side), loss in zip(shown["rows"], _files(shown), shown["losses"], strict=True):
        true, guess = classes[labels[row]], classes[guesses[row]]
        caption = f"<b>{escape(true)}</b>, predicted <b>{escape(guess)}</b><br>loss {loss:.2f}"
        pictures.append(Shown(data, side, str(ids[row]), true, guess, caption))
    errors = [(classes[a], classes[b]) for a, b in zip(labels, guesses, strict=True) if a != b]
    how = "images as they are stored, at most 1,600 pixels wide or high; " if "originals" in shown else ""
    count = "All errors" if len(pictures) == len(errors) else f"{len(pictures)} of {len(errors):,} errors"
    more = (
        ", with the worst of the classes and pairs confused most"
        if len(errors) > len(pictures) > run_plots.LARGEST
        else ""
    )
    said = f"{count}, the highest loss first{more}; {how}a click enlarges one."
    return gallery(pictures, said, errors, "predicted")


def gallery(shown: Sequence[Shown], said: str, pairs: Iterable[tuple[str, str]], word: str) -> str:
    """Return a gallery below the sentence `said`, with a choice among its classes and pairs.

    `pairs` are the two classes of all images, of which the gallery shows some: the choice has their counts. `word` is
    what the second class of a pair is, such as predicted.
    """
    cards, numbers = [], {name: k for k, name in enumerate(sorted({n for one in shown for n in one[3:5]}))}
    for one in shown:
        kind, name = "png" if one.data[:4] == b"\x89PNG" else "jpeg", text(one.name)
        of = f"c{numbers[one.first]} p{numbers[one.first]}-{numbers[one.second]}"
        source = f"data:image/{kind};base64,{base64.b64encode(one.data).decode()}"
        cards.append(
            f"<figure data-of='{of}'><img alt='{name}' src='{source}'>"
            f"<figcaption>{one.caption}<br><span class=soft>{name}</span></figcaption></figure>"
        )
    kind = "gallery large" if max((one.side for one in shown), default=0) >= PHOTO else "gallery"
    choice = _choice(shown, numbers, Counter(pairs), word) if len(shown) > 1 else ""
    return f"<p class=soft>{said}</p>{choice}<div class='{kind}'>{''.join(cards)}</div>"


def _choice(shown: Sequence[Shown], numbers: Mapping[str, int], pairs: Counter[tuple[str, str]], word: str) -> str:
    firsts: Counter[str] = Counter()
    for (first, _), count in pairs.items():
        firsts[first] += count
    there = {one.first for one in shown}, {(one.first, one.second) for one in shown}
    by_class = "".join(
        f"<option value='c{numbers[name]}'>{text(name)}: {count:,}</option>"
        for name, count in firsts.most_common()
        if name in there[0]
    )
    by_pair = "".join(
        f"<option value='p{numbers[a]}-{numbers[b]}'>{text(a)}, {word} {text(b)}: {count:,}</option>"
        for (a, b), count in pairs.most_common()
        if (a, b) in there[1]
    )
    return (
        f"<p><select class=filter aria-label='which images'><option value=''>all</option><optgroup label='one class'>"
        f"{by_class}</optgroup><optgroup label='one pair'>{by_pair}</optgroup></select></p>"
    )


def _files(shown: Mapping[str, Any]) -> Iterator[tuple[bytes, int]]:
    """Bytes and longer side of each image as it is stored; an older run has only what the network got."""
    from PIL import Image

    whole, start = np.asarray(shown.get("originals", ())).tobytes(), 0
    ends = np.ravel(shown.get("ends", ()))
    if ends.dtype.kind not in "iu" or len(ends) != len(shown["images"]):  # of an older run, or foreign
        ends = np.zeros(len(shown["images"]), int)
    for image, end in zip(shown["images"], ends.tolist(), strict=True):
        data, start = whole[start:end], end
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as file:
                yield data, max(file.size)
        except Exception:  # none, or bytes that are no image
            buffer = io.BytesIO()
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
            yield buffer.getvalue(), max(image.shape[:2])
