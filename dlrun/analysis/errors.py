"""Images ranked by their loss, and the pairs of classes that are confused: errors.csv and confusions.csv (D11).

Written at the end of `dlrun train` and `dlrun ensemble`, and by `dlrun report` for older runs, from stored logits. An
image with a high loss is a hard case, or its label is wrong. Nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrun.folders import reading
from dlrun.folders.disk import write_atomic
from dlrun.folders.formats import as_csv

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["COLUMNS", "PAIRS", "confusions", "losses", "picked", "ranked", "write"]

COLUMNS = ("rank", "split", "id", "true", "predicted", "confidence", "p_true", "loss", "rank_in_class", "rank_in_pair")
PAIRS = ("split", "true", "predicted", "n", "share", "worst")
WORST = 3  # images named per pair of classes


def losses(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return the log probabilities (N, K) of logits, and the cross-entropy of each image (N,), in double precision."""
    z = np.asarray(logits, dtype=np.float64)
    z = z - z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    return log_p, 0.0 - np.take_along_axis(log_p, np.asarray(labels, dtype=np.int64)[:, None], 1)[:, 0]


def ranked(
    split: str, logits: Array, labels: Array, ids: Sequence[str] | Array, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row of errors.csv per image of a split, the highest cross-entropy first; values that are NaN lead.

    `logits` (N, K), `labels` (N,) as class numbers, `ids` (N,), `classes` (K,). `rank_in_class` counts among the images
    of the same true class, `rank_in_pair` among those of the same true and predicted class; all ranks start at 1.
    Among equal losses the order of the split stays.
    """
    log_p, loss = losses(logits, labels)
    guesses, known = log_p.argmax(1), np.asarray(labels).tolist()
    names = [str(name) for name in (ids.tolist() if isinstance(ids, np.ndarray) else ids)]
    seen: Counter[Any] = Counter()
    rows = []
    for rank, k in enumerate(np.argsort(np.where(np.isnan(loss), -np.inf, -loss), kind="stable").tolist(), 1):
        true, guess = known[k], int(guesses[k])
        seen.update((true, (true, guess)))
        numbers = {"confidence": np.exp(log_p[k, guess]), "p_true": np.exp(log_p[k, true]), "loss": loss[k]}
        rows.append(
            {"rank": rank, "split": split, "id": names[k], "true": str(classes[true]), "predicted": str(classes[guess])}
            | {name: f"{value:.6g}" for name, value in numbers.items()}
            | {"rank_in_class": seen[true], "rank_in_pair": seen[true, guess]}
        )
    return rows


def confusions(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row of confusions.csv per split and pair of classes that is confused, the most frequent first.

    `rows` are those of `ranked`, of one or more splits. `share` is the part of the images of the true class; `worst`
    names up to three images of the pair, the highest loss first.
    """
    totals = Counter((row["split"], row["true"]) for row in rows)
    pairs: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["true"] != row["predicted"]:
            pairs.setdefault((row["split"], row["true"], row["predicted"]), []).append(str(row["id"]))
    order = {split: place for place, split in enumerate(dict.fromkeys(row["split"] for row in rows))}
    return [
        {"split": split, "true": true, "predicted": guess, "n": len(names)}
        | {"share": f"{len(names) / totals[split, true]:.4f}", "worst": "; ".join(names[:WORST])}
        for (split, true, guess), names in sorted(pairs.items(), key=lambda item: (order[item[0][0]], -len(item[1])))
    ]


def picked(logits: Array, labels: Array, most: int, more: int) -> Array:
    """Return the row numbers of wrong images for a gallery, from logits (N, K) and labels (N,).

    The `most` with the highest loss come first, then up to `more` others: the worst image of each confused pair and
    each class, then the second of each pair and so on, from the most frequent pairs.
    """
    log_p, loss = losses(logits, labels)
    guesses, labels = log_p.argmax(1), np.asarray(labels)
    wrong = np.flatnonzero(guesses != labels)
    wrong = wrong[np.argsort(-loss[wrong], kind="stable")]
    pairs: dict[tuple[int, int], list[int]] = {}
    classes: dict[int, list[int]] = {}
    for k in wrong.tolist():
        pairs.setdefault((int(labels[k]), int(guesses[k])), []).append(k)
        classes.setdefault(int(labels[k]), []).append(k)
    by_size = sorted(pairs.values(), key=len, reverse=True)[:more]
    queue = [group[0] for group in (*by_size, *sorted(classes.values(), key=len, reverse=True))]
    queue += [group[place] for place in range(1, WORST) for group in by_size if place < len(group)]
    first = wrong[:most].tolist()
    others = [k for k in dict.fromkeys(queue) if k not in first][:more]
    return np.array([*first, *sorted(others, key=lambda k: -loss[k])], dtype=np.int64)


def write(folder: Path) -> bool:
    """Write errors.csv and confusions.csv of a run or an ensemble from its predictions; False if it has none.

    Predictions that are damaged or foreign count as none. Raises UserError if the files cannot be written.
    """
    arrays = reading.arrays(folder, "predictions")
    data = reading.stored(folder).get("data")
    named = data.get("classes") if isinstance(data, dict) else None
    rows: list[dict[str, Any]] = []
    for split in ("val", "test"):
        found = [arrays.get(f"{split}_{what}") for what in ("logits", "labels", "ids")]
        if _usable(*found):
            logits, labels, ids = (np.asarray(one) for one in found)
            count = logits.shape[1]
            fits = isinstance(named, list) and len(named) == count
            rows += ranked(split, logits, labels, ids, named if fits else list(map(str, range(count))))  # type: ignore[arg-type]
    if not rows:
        return False
    errors, pairs = reading.error_tables(folder)
    write_atomic(errors, as_csv(rows).encode("utf-8", "surrogateescape"))
    confused = confusions(rows)
    text = as_csv(confused) if confused else ",".join(PAIRS) + "\n"  # a reader finds the columns of an empty table
    write_atomic(pairs, text.encode("utf-8", "surrogateescape"))
    return True


def _usable(logits: Any, labels: Any, ids: Any) -> bool:
    """Whether the arrays of a split hold a number of classes for each image."""
    if logits is None or labels is None or ids is None or logits.ndim != 2 or logits.dtype.kind != "f":
        return False
    if labels.dtype.kind not in "iu" or labels.shape != logits.shape[:1] or ids.shape != labels.shape:
        return False
    return bool(len(labels)) and int(labels.min()) >= 0 and int(labels.max()) < logits.shape[1]
