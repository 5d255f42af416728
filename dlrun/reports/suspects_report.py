"""The page of `dlrun suspects`: the images whose labels may be wrong, with the given and the suggested class (D2).

One self-contained page with the images inside it. Nothing imports torch.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dlrun.reports.galleries import Shown, gallery
from dlrun.reports.page import card, section, table, text, write_page

__all__ = ["write"]


def write(folder: Path, rows: Sequence[Mapping[str, Any]], images: Mapping[str, bytes], said: Sequence[str]) -> Path:
    """Write the page of the suspects of a table, with encoded images by id, and return it.

    `said`: what the predictions cover, one sentence each.
    """
    pairs = [(str(row["label"]), str(row["suggested"])) for row in rows]
    counts = [{"given label": a, "suggested": b, "images": n} for (a, b), n in Counter(pairs).most_common()]
    shown = [_shown(row, images[str(row["id"])]) for row in rows if str(row["id"]) in images]
    lines = "".join(f"<p class=soft>{text(line)}</p>" for line in said)
    count = "All suspects" if len(shown) == len(rows) else f"{len(shown)} of {len(rows):,} suspects"
    pictures = gallery(shown, f"{count}, the most suspicious first; a click enlarges one.", pairs, "suggested")
    parts = [
        f"<header><h1>Labels that may be wrong</h1>{lines}</header>",
        section("Images", pictures if shown else "" if rows else card("No label looks wrong.", "fine")),
        section("By pair of classes", table(counts, tall=True)),
        section("All suspects", table(rows, tall=True)),
    ]
    return write_page(folder, "suspects", parts)


def _shown(row: Mapping[str, Any], data: bytes) -> Shown:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as file:
        side = max(file.size)
    given, other = str(row["label"]), str(row["suggested"])
    caption = (
        f"given <b>{escape(given)}</b> ({float(row['score']):.1%})<br>"
        f"suggested <b>{escape(other)}</b> ({float(row['probability']):.1%})"
    )
    return Shown(data, side, str(row["id"]), given, other, caption)
