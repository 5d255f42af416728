"""Weights of a file put into a model: what fits, what is left, what is new (`model.weights=`, `trainer.start_from=`).

Names, shapes, kinds and values are compared before the model changes. A classifier takes the rows of its classes; a
file whose names alone differ is matched by shape and order if that is unambiguous (M3).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from dlrun.errors import UserError
from dlrun.models import positions
from dlrun.models.weights_file import Weights

__all__ = ["Loaded", "heads", "loaded", "put", "record"]

COUNTER = "num_batches_tracked"  # of batch norm; older files lack it
# outputs that exist during training only
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
SHOWN = 3  # names in a message
_RECORDS: WeakKeyDictionary[nn.Module, Loaded] = WeakKeyDictionary()


@dataclass
class Loaded:
    """What was loaded into a model: one row per weight (name, shape, state, found, rows), and the source."""

    source: str
    sha256: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    head: str = "loaded"  # loaded, partly loaded, new
    part: str = ""  # the entry of a checkpoint: model, or ema, the average of its weights

    def count(self, state: str) -> int:
        """The number of weights that were `loaded`, `partly loaded`, made `new`, or `left` in the file."""
        return sum(row["state"] == state for row in self.rows)

    def record(self) -> dict[str, Any]:
        """The source and the counts as JSON types."""
        counts = {state.replace(" ", "_"): self.count(state) for state in ("loaded", "partly loaded", "new", "left")}
        return {
            "source": self.source,
            "sha256": self.sha256,
            "part": self.part,
            **counts,
            "head": self.head,
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """What the screen shows: the counts, what is new and left, and the notes."""
        total = sum(row["state"] != "left" for row in self.rows)
        parts = [f"{self.count('loaded')} of {total} weights loaded from {self.source}"]
        for state in ("partly loaded", "new", "left"):
            if names := [row["name"] for row in self.rows if row["state"] == state]:
                parts.append(f"{len(names)} {state}{' in the file' * (state == 'left')} ({_some(names)})")
        return ["; ".join(parts), *self.notes]


def loaded(model: nn.Module) -> Loaded | None:
    """Return what was loaded into a model; None if it started from random weights."""
    return _RECORDS.get(model)


def record(model: nn.Module, made: Loaded) -> None:
    """Keep what was loaded into a model, for `loaded`."""
    _RECORDS[model] = made


def heads(model: nn.Module, classes: int = 0) -> list[str]:
    """Return the names of the modules that give the logits: those that timm names, else the last layer with them."""
    named = getattr(model, "pretrained_cfg", None)
    if isinstance(named, Mapping) and (found := named.get("classifier")):
        return [found] if isinstance(found, str) else list(found)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    fitting = [n for n, m in layers if classes in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]
    return (fitting or [n for n, _ in layers])[-1:]


def put(
    model: nn.Module, weights: Weights, key: str, head: Sequence[str], classes: Sequence[str], *, extra: bool = False
) -> Loaded:
    """Load weights into a model and keep what was loaded; `head` are the names of its classifiers.

    `classes` are those of the model: rows of the head whose class the file has are taken. With `extra` weights that
    the model does not have are left; else only auxiliary classifiers are. Raises UserError that lists what differs.
    """
    own: dict[str, Tensor] = model.state_dict()
    found, made = dict(weights.tensors), Loaded(weights.source, weights.sha256)
    left = [name for name in found if name.startswith(AUXILIARY) and name not in own]
    for name in left:
        del found[name]
    names = {name: name for name in own if name in found}
    if missing := [n for n in own if n not in names and _module(n) not in head and not n.endswith(COUNTER)]:
        if ordered := _by_order(own, found, head) if weights.ordered else None:
            names, first = ordered, next(iter(own))
            found = {name: value for name, value in found.items() if not name.endswith(COUNTER)}
            made.notes.append(f"the names differ ({names[first]}: {first} …): matched by shape and order")
        else:
            raise UserError(_differs(key, own, found, missing))
    taken: OrderedDict[str, Tensor] = OrderedDict()
    first = next((n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), "") + ".weight"
    for name, value in own.items():
        row = {"name": name, "shape": list(value.shape), "state": "new", "found": names.get(name, ""), "rows": ""}
        if name in names:
            source = found.pop(names[name])
            if name == first:
                source = _channels(source, value)
            if source.shape != value.shape and (other := positions.resampled(name, source, value, model)):
                source = other[0]
                made.notes.append(other[1])
            taken |= _fitted(name, source, value, row, weights, classes if _module(name) in head else ())
            if name not in taken and _module(name) not in head:
                shapes = f"has shape {list(source.shape)}, the model expects {list(value.shape)}"
                raise UserError(f"{key}: {names[name]} {shapes}{_size_hint(model)}")
        elif name.endswith(COUNTER):
            continue
        made.rows.append(row)
    if found and not extra:
        raise UserError(f"{key} has {_some(list(found))}, which the model does not have")
    for name in (*left, *found):
        made.rows.append({"name": name, "shape": "", "state": "left", "found": name, "rows": ""})
    _must_be_numbers(key, taken, own)
    _load(model, taken, weights.tensors, key)
    made.head = _of_head(made.rows, head)
    _note(made, head, weights, classes)
    record(model, made)
    return made


def _size_hint(model: nn.Module) -> str:
    """What to type if the shapes of weights depend on the size of the images; empty if they do not."""
    cfg: Any = getattr(model, "pretrained_cfg", None)
    size = cfg.get("input_size") if isinstance(cfg, Mapping) and cfg.get("fixed_input_size") else None
    return f"; weights for images of {size[-1]} pixels need dataset.image_size={size[-1]}" if size else ""


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _by_order(own: Mapping[str, Tensor], found: Mapping[str, Tensor], head: Sequence[str]) -> dict[str, str] | None:
    """The names of a file by those of the model, if kinds and shapes agree one by one; None if they do not.

    The weights of one layer of the model must be those of one layer of the file, and equal names must meet.
    """
    ours = [name for name in own if not name.endswith(COUNTER)]
    theirs = [name for name in found if not name.endswith(COUNTER)]
    if len(theirs) == len(ours) - sum(_module(name) in head for name in ours):
        ours = [name for name in ours if _module(name) not in head]  # a file without a classifier
    if len(ours) != len(theirs) or not ours:
        return None
    layers: dict[str, str] = {}
    for name, other in zip(ours, theirs, strict=True):
        a, b = own[name].shape, found[other].shape
        same = a == b or (_module(name) in head and a[1:] == b[1:]) or (name == ours[0] and len(a) == len(b) == 4)
        if not same or name.rpartition(".")[2] != other.rpartition(".")[2]:
            return None
        if (name in found and name != other) or layers.setdefault(_module(name), _module(other)) != _module(other):
            return None
    if len(set(layers.values())) != len(layers):
        return None
    return dict(zip(ours, theirs, strict=True))


def _differs(key: str, own: Mapping[str, Tensor], found: Mapping[str, Tensor], missing: Sequence[str]) -> str:
    strange = [name for name in found if name not in own]
    has = f"; it has {_some(strange)}, which the model does not have" if strange else ""
    return f"{key} lacks {_some(missing)}, which the model needs{has}"


def _channels(filters: Tensor, own: Tensor) -> Tensor:
    """Filters for another number of channels: summed over the colours and divided among the channels."""
    have, want = filters.shape[1] if filters.ndim == 4 else 0, own.shape[1]
    if have == want or have not in (1, 3):
        return filters
    return filters.to(own.dtype).sum(1, keepdim=True).div(want).repeat(1, want, 1, 1)


def _fitted(
    name: str, source: Tensor, own: Tensor, row: dict[str, Any], weights: Weights, classes: Sequence[str]
) -> dict[str, Tensor]:
    """The tensor to load under a name, if any; of a head the rows of its classes. Fills in the row's state."""
    known = {label: number for number, label in enumerate(weights.classes)}
    if classes and known and list(classes) != list(weights.classes) and source.shape[1:] == own.shape[1:]:
        pairs = [(k, known[label]) for k, label in enumerate(classes) if label in known and known[label] < len(source)]
        if not pairs:
            return {}
        merged = own.detach().clone()
        merged[[k for k, _ in pairs]] = source[[k for _, k in pairs]].to(merged)
        row.update(state="loaded" if len(pairs) == len(own) else "partly loaded", rows=len(pairs))
        return {name: merged}
    if source.shape != own.shape:
        return {}
    row["state"] = "loaded"
    return {name: source}


def _must_be_numbers(key: str, taken: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    for name, value in taken.items():
        if value.is_floating_point() != own[name].is_floating_point():
            kinds = f"expected {own[name].dtype}, found {value.dtype}".replace("torch.", "")
            raise UserError(f"{key}: {name}: {kinds}")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{key}: {name} has values that are not finite; expected weights of a sound model")


def _load(model: nn.Module, taken: OrderedDict[str, Tensor], tensors: Mapping[str, Tensor], key: str) -> None:
    if (versions := getattr(tensors, "_metadata", None)) is not None:
        taken._metadata = versions  # type: ignore[attr-defined]
    try:
        model.load_state_dict(taken, strict=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{key} does not fit the model: {' '.join(str(error).split())}") from None


def _of_head(rows: Sequence[Mapping[str, Any]], head: Sequence[str]) -> str:
    states = {row["state"] for row in rows if row["state"] != "left" and _module(row["name"]) in head}
    return states.pop() if len(states) == 1 else "partly loaded" if states else "loaded"


def _note(made: Loaded, head: Sequence[str], weights: Weights, classes: Sequence[str]) -> None:
    """Say which classes of the head were carried over, and which kinds of numbers were converted."""
    if made.head == "partly loaded":
        kept = [label for label in classes if label in weights.classes]
        new = [label for label in classes if label not in weights.classes]
        made.notes.append(f"classes carried over: {_some(kept)}; new: {_some(new)}")
    elif made.head == "loaded" and not weights.classes and classes and weights.source:
        made.notes.append(f"the file does not name its {len(classes)} classes: taken to be in the order of these data")
    kinds = {str(t.dtype) for t in weights.tensors.values() if t.is_floating_point()} - {"torch.float32"}
    if kinds:
        made.notes.append(f"converted from {', '.join(sorted(kinds)).replace('torch.', '')}")
