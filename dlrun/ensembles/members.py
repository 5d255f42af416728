"""The members of an ensemble, selected on validation (`dlrun ensemble`, E1–E7).

Reads the stored predictions of runs: nothing is trained or evaluated, and torch is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlrun.analysis import compare
from dlrun.analysis.ranking import Scored, Setting, ranked, repeats
from dlrun.ensembles.votes import Vote, greedy, scores, softmax
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders.opener import Unreadable
from dlrun.vocabulary import Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["SPLITS", "Member", "agree", "apart", "completed", "one_target", "read", "select", "settings", "splits"]

SPLITS = ("val", "test")
# how a run records what decides the pixels of files, and the key for it
DECODED = {"interpolation": "interpolation", "resize": "resize", "crop": "crop_pct"}
DECODED |= {"background": "background", "decode": "decode"}
FEW = 4  # values of a list shown in a message


@dataclass
class Member:
    """A trained model and its outputs: logits (N, K), labels (N,) and ids of `val` and `test` in `arrays`."""

    path: Path
    data: Mapping[str, Any]  # classes, shape, mean, std as the run recorded them
    arrays: Mapping[str, Array]
    parameters: int | None = None
    ms: float | None = None  # milliseconds per image, without decoding
    checkpoint: str = ""  # the file name, if the member is one of several checkpoints of a run
    weight: int = 1
    own: Mapping[str, Array] | None = None  # its own arrays, if those of validation are of all folds
    val_loss: float | None = None  # as the run recorded it; None if it was evaluated again
    config: Mapping[str, str] = field(default_factory=dict)  # by dotted key, values as text

    @property
    def name(self) -> str:
        """The folder, and the checkpoint if the run has several."""
        return str(self.path) + (f":{self.checkpoint}" if self.checkpoint else "")


def splits(members: Sequence[Member]) -> tuple[str, ...]:
    """Return the splits that members predicted; runs without a validation split have test alone."""
    return tuple(split for split in SPLITS if f"{split}_labels" in members[0].arrays)


def completed(paths: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the completed runs at or below `paths`, and a line with the reason for each that is omitted.

    A weight-averaged model joins only if it is named explicitly: below outputs its own parts lie beside it.
    """
    named = {Path(name).expanduser().resolve() for name in paths}
    found, left_out = [], []
    for path in reading.find(paths):
        try:
            result = reading.result(path)
        except Unreadable as error:
            left_out.append(str(error))
            continue
        if result.get("status") != Status.COMPLETED:
            left_out.append(f"{path} is {result.get('status', 'no run')}, not completed")
        elif result.get("average_of") and path.resolve() not in named:
            left_out.append(f"{path} is an average of other runs; name it explicitly to include it")
        elif result.get("pruned_from") and path.resolve() not in named:
            left_out.append(f"{path} is a pruned run; name it explicitly to include it")
        else:
            found.append(path)
    return found, left_out


def read(paths: Sequence[str]) -> tuple[list[Member], list[str]]:
    """Return the completed runs at or below `paths`, and a line with the reason for each that is omitted.

    Raises UserError when none remains.
    """
    members: list[Member] = []
    found, left_out = completed(paths)
    for path in found:
        try:
            members.append(member(path))
        except UserError as error:
            left_out.append(str(error))
    if not members:
        why = f": {left_out[0]}" if left_out else "; `dlrun train -m 'seed=range(0,5)'` trains five"
        raise UserError(f"no completed runs in {' '.join(paths)}{why}")
    return members, left_out


def member(path: Path) -> Member:
    """Return a run as a member. Raises UserError that names what is missing."""
    _, result, config = compare.read([str(path)])[0]
    arrays = reading.arrays(path, "predictions")
    if result.get("status") != Status.COMPLETED:
        raise UserError(f"{path} is {result.get('status', 'no run')}, not completed")
    data = result.get("data")
    if not isinstance(data, dict) or not {"classes", "shape", "mean", "std"} <= data.keys():
        raise UserError(f"{path}: result.json has no valid record of its data")
    one_target(path, data)
    if reason := _malformed(arrays, len(data["classes"])):
        raise UserError(f"{path}: predictions.npz: {reason}; `dlrun ensemble --fresh` evaluates again")
    count, loss = result.get("parameters"), result.get("val_loss")
    return Member(
        path, data, arrays, count if isinstance(count, int) else None, _milliseconds(path, arrays),
        val_loss=float(loss) if isinstance(loss, (int, float)) else None, config=config,
    )  # fmt: skip


def one_target(path: Path, data: Mapping[str, Any]) -> None:
    """Raise UserError for a run with several targets, by its record of its data (M11)."""
    if data.get("tasks"):
        raise UserError(f"{path}: has several targets, {', '.join(data['tasks'])}; expected a run with one")


def _malformed(arrays: Mapping[str, Array], classes: int) -> str:
    """What is wrong with stored predictions, which may be damaged or foreign; empty if nothing is."""
    for split in SPLITS:
        if split == "val" and not any(name.startswith("val_") for name in arrays):
            continue  # trained without a validation split
        if not {f"{split}_logits", f"{split}_labels", f"{split}_ids"} <= arrays.keys():
            return "missing, unreadable or incomplete"
        logits, labels, ids = (arrays[f"{split}_{what}"] for what in ("logits", "labels", "ids"))
        if logits.dtype.kind != "f" or logits.shape != (len(labels), classes) or ids.shape != labels.shape:
            return f"{split}_logits has shape {logits.shape}, expected ({len(labels)}, {classes})"
        if labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0 or labels.max() >= classes:
            return f"{split}_labels: expected class numbers from 0 to {classes - 1}"
        if not np.isfinite(logits).all():
            return f"{split}_logits are not finite"
    return ""


def _milliseconds(path: Path, arrays: Mapping[str, Array]) -> float | None:
    """The median over epochs of the validation time per image."""
    try:
        seconds = [float(row["eval_seconds"]) for row in reading.metrics(path)]
    except (KeyError, TypeError, ValueError):
        return None
    return 1e3 * float(np.median(seconds)) / len(arrays["val_labels"]) if seconds and "val_labels" in arrays else None


def agree(members: Sequence[Member]) -> None:
    """Compare all members with the first. Raises UserError that names the first that differs, and how.

    Members on different folds may differ in mean and std: each normalises by those of its own training images.
    """
    first = members[0]
    for other in members[1:]:
        _must_decode_alike(first, other)
        for what in ("classes", "shape", *(("mean", "std") if first.own is None else ())):
            # of the training images: members may normalise by other statistics, such as those of pretrained weights
            a, b = (member.data.get(f"train_{what}", member.data[what]) for member in (first, other))
            if what in ("classes", "shape"):
                same = list(a) == list(b)
            else:
                same = len(a) == len(b) and np.allclose(a, b, rtol=1e-5)
            if not same:
                raise UserError(f"{other.name} and {first.name} differ in {what}: {' and '.join(apart(b, a))}")
        if splits([other]) != splits([first]):
            one, without = (first, other) if "val" in splits([first]) else (other, first)
            raise UserError(f"{without.name} has no validation split, and {one.name} has one; combine runs of one kind")
        for split in splits(members):
            for what in ("ids", "labels"):
                a, b = first.arrays[f"{split}_{what}"], other.arrays[f"{split}_{what}"]
                if a.shape != b.shape or not (a == b).all():
                    how = f"{len(b)} and {len(a)} images" if len(a) != len(b) else _first_difference(b, a)
                    hint = "; seeds share a fold if dataset.split_seed and dataset.limit are the same"
                    raise UserError(f"{other.name} and {first.name} differ in {split} {what}: {how}{hint}")
        for key in ("test_identity", *(("identity",) if first.own is None else ())):
            a, b = first.data.get(key), other.data.get(key)
            if None not in (a, b) and a != b:
                where = "the test split" if key == "test_identity" else "training or validation"
                why = "images of the same names have other content or labels"
                raise UserError(f"{other.name} and {first.name} differ in {where}: {why}; train them on the same data")


def _must_decode_alike(first: Member, other: Member) -> None:
    """Raise UserError for files that become other pixels: their content and predictions cannot be compared."""
    a, b = (member.data.get("decoding") for member in (first, other))
    if not isinstance(a, dict) or not isinstance(b, dict):
        return  # arrays, or a run of before
    for name, key in DECODED.items():
        if a.get(name) != b.get(name):
            values = f"{b.get(name)} and {a.get(name)}"
            hint = f"train members with the same one, such as dataset.{key}={a.get(name)}"
            raise UserError(f"{other.name} and {first.name} differ in dataset.{key}: {values}; {hint}")


def apart(a: Sequence[Any], b: Sequence[Any]) -> tuple[str, str]:
    """Return each of two lists as its length and a few values, among them the first that differs."""
    same = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
    start = same if same >= FEW else 0
    return _some(list(a), start), _some(list(b), start)


def _some(values: list[Any], start: int) -> str:
    shown = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in values[start : start + FEW]]
    more = ["…"] * (start + FEW < len(values))
    return f"{len(values)} ({', '.join(['…'] * (start > 0) + shown + more)})"


def _first_difference(a: Array, b: Array) -> str:
    at = int(np.flatnonzero(a != b)[0])
    return f"{a[at]} and {b[at]} at number {at}"


def settings(members: Sequence[Member]) -> list[Setting]:
    """Return the settings of members with their places, best first by the mean validation accuracy over seeds.

    Among equal ones the recorded val_loss decides; if one has none, the log loss of the validation predictions.
    """
    keys = [key for key in compare.varying([m.config for m in members]) if not repeats(key)]
    if "val" not in splits(members):
        return ranked(
            [Scored(tuple(map(m.config.get, keys)), "", 0.0, None, k) for k, m in enumerate(members)], lower=False
        )
    labels, recorded = members[0].arrays["val_labels"], all(m.val_loss is not None for m in members)
    runs = []
    for place, m in enumerate(members):
        p = softmax(m.arrays["val_logits"])
        found = scores(Vote(p, p.argmax(1)), labels)
        loss = m.val_loss if recorded else found["loss"]
        runs.append(Scored(tuple(map(m.config.get, keys)), m.config.get("seed", ""), found["acc"], loss, place))
    return ranked(runs, lower=False)


def select(members: Sequence[Member], *, top: int = 0, by_greed: bool = False) -> list[Member]:
    """Return the selected members, best first on validation: all, the best `top`, or by greedy selection (E2).

    The order is that of `dlrun compare`: settings by their mean over seeds. Never uses the test split. Greedy selection
    sets `weight` to how often it picked a member.
    """
    if "val" not in splits(members):
        if top or by_greed:
            flag = f"--top={top}" if top else "--greedy"
            raise UserError(
                f"{flag}: {members[0].name} has no validation split to choose by; omit it: all members vote"
            )
        return list(members)
    logits, labels = [m.arrays["val_logits"] for m in members], members[0].arrays["val_labels"]
    order = [m for setting in settings(members) for m in setting.runs]
    if top:
        order = order[:top]
    counts = dict.fromkeys(order, 1)
    if by_greed:
        found = greedy([logits[m] for m in order], labels)
        counts = dict(zip(order, found, strict=True))
    chosen = [members[m] for m in order if counts[m]]
    for m in order:
        members[m].weight = counts[m]
    return chosen
