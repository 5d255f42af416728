"""What a checkpoint must be: names, shapes, types and ranges, compared before it is loaded (`dlrun resume`).

torch's fused Adam and SGD write through their state without a look at its size, numpy's generator reads at any place
that it is given, and load_state_dict converts types and takes any number. A file that was damaged, or made by another
program, is named in one line instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlrun.training.experiment import Experiment
from dlrun.training.objective import state_of
from dlrun.training.stored_tensors import MOST, Misfit, Tensors, described, extent, tensor

__all__ = ["Misfit", "all_finite", "hold", "hold_size", "hold_weights"]

WORD = 2**32 - 1
MOST_ENTRIES = 5_000_000  # of a checkpoint, walked in a second or two; that of a large network has some ten thousand
# what the state of torch's optimizers has beside `step`, each entry as large as its weight; the classes not named here
# keep something else, which they compare themselves
ENTRIES: dict[str, tuple[str, ...]] = {
    "SGD": ("momentum_buffer",),
    "Adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "NAdam": ("exp_avg", "exp_avg_sq"),
    "RAdam": ("exp_avg", "exp_avg_sq"),
    "Adamax": ("exp_avg", "exp_inf"),
    "Adagrad": ("sum",),
    "Adadelta": ("square_avg", "acc_delta"),
    "RMSprop": ("square_avg", "momentum_buffer", "grad_avg"),
}
# those of them that an option of the group adds
ADDED = {"momentum_buffer": "momentum", "max_exp_avg_sq": "amsgrad", "grad_avg": "centered"}
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf")  # never negative
FLAGS = ("amsgrad", "maximize", "capturable", "differentiable", "centered", "nesterov")
BELOW_ONE = ("betas", "momentum", "alpha", "rho")


def all_finite(content: Mapping[str, Any]) -> bool:
    """Whether all numbers in the tensors of a checkpoint are finite."""
    values = Tensors()
    try:
        for node in _nodes([content[key] for key in ("model", "ema", "optimizer")]):
            if isinstance(node, Tensor):
                values.add(node, "", node.dtype, node.shape)
        values.hold()
    except Misfit:
        return False
    return True


def hold_size(found: Any, size: int) -> None:
    """Raise Misfit if what was loaded is much larger than the file that it is from, of `size` bytes.

    Strides of 0 make a tensor of any size from one number, and lists in lists a tree of any size from a few.
    """
    for count, node in enumerate(_nodes(found)):
        if count >= MOST_ENTRIES:
            raise Misfit(f"more than {MOST_ENTRIES:,} entries")
        if isinstance(node, Tensor) and node.layout == torch.strided and node.numel() * node.itemsize > size:
            raise Misfit(f"{described(node)} in a file of {size:,} bytes")


def _nodes(content: Any) -> Iterator[Any]:
    """Yield a value, and all that is in its dicts, lists and tuples; without an end if one of them contains itself."""
    nodes = [content]
    while nodes:
        yield (node := nodes.pop())
        if isinstance(node, (dict, list, tuple)):
            nodes.extend(node.values() if isinstance(node, dict) else node)


def hold(found: Mapping[str, Any], exp: Experiment, finite: bool = False) -> None:
    """Compare the content of a checkpoint with the experiment that is to continue from it. Raises Misfit.

    With `finite` the numbers were found to be so when they were written, and a digest tells that they are the same.
    """
    hold_weights(found["model"], exp.kept.model, finite=finite)
    if exp.kept.average is not None:
        if not isinstance(found["ema"], dict):
            raise Misfit("the running average of trainer.ema or trainer.swa is missing")
        hold_weights(found["ema"], exp.kept.average, "the average of ", finite)
    _hold_counters(found)
    _hold_optimizer(found["optimizer"], exp, finite)
    _hold_schedule(found["scheduler"], exp)
    _hold_random(found["rng"])
    if (own := state_of(exp.objective)) is not None:
        _hold_objective(found.get("objective"), own, exp.num_classes)
    if exp.scale is not None and found.get("scale") is not None:
        scale = _mapping(found["scale"], "the scale of the loss", ("value", "fine"))
        _number(scale["value"], "the scale of the loss", low=1e-30)
        _count(scale["fine"], "the steps of the scale of the loss")


def hold_weights(found: Any, model: torch.nn.Module, whose: str = "", finite: bool = False) -> None:
    """Compare the weights of a checkpoint with those of a model. Raises Misfit.

    Names are left to load_state_dict, whose hooks may change them. Values must be finite where those of the model are:
    a mask may contain infinities.
    """
    if not isinstance(found, dict):
        raise Misfit(f"{whose or 'the '}weights: expected names and tensors, found {described(found)}")
    values = Tensors(finite)
    for name, own in model.state_dict().items():
        if name in found and isinstance(own, Tensor):
            values.add(found[name], f"{whose}{name}", own.dtype, own.shape, like=own)
    values.hold()


def _hold_objective(found: Any, own: Mapping[str, Any], classes: int) -> None:
    """Compare the weights of the objective, the images without labels, and the labels of a model: -1 for none."""
    state = _mapping(found, "objective", tuple(own))
    for name, value in own.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            tensor(state[name], f"objective.{name}", value.dtype, value.shape, like=value)
    if state.get("images") != own.get("images"):
        raise Misfit("objective.unlabelled has other images than those the run began with; put them back")
    if isinstance(labels := own.get("labels"), Tensor):
        tensor(state["labels"], "the labels of objective.unlabelled", labels.dtype, labels.shape)
        if len(labels) and not -1 <= int(state["labels"].min()) <= int(state["labels"].max()) < classes:
            raise Misfit(f"the labels of objective.unlabelled: expected -1 to {classes - 1}")


def _hold_counters(found: Mapping[str, Any]) -> None:
    epoch = _count(found["epoch"], "epoch")
    _count(found["step"], "step")
    _number(found.get("seconds", 0.0), "seconds", low=0.0)
    if _count(found.get("averaged", 0), "averaged") > epoch:
        raise Misfit(f"averaged: expected at most epoch {epoch}, found {found['averaged']}")
    if (best := found["best"]) is not None:
        best = _mapping(best, "best", ("epoch", "value", "val_loss"))
        if _count(best["epoch"], "best.epoch") > epoch:
            raise Misfit(f"best.epoch: expected at most epoch {epoch}, found {best['epoch']}")
        for name in ("value", "val_loss"):
            if best[name] is not None and type(best[name]) not in (int, float):
                raise Misfit(f"best.{name}: expected a number, found {described(best[name])}")
    pace = _mapping(found.get("pace", {}), "pace", ())
    if strange := pace.keys() - {"before", "left", "position"}:
        raise Misfit(f"pace: unknown entry {min(map(str, strange))[:40]}")
    _count(pace.get("left", 0), "pace.left")
    for name in ("before", "position"):
        _number(pace.get(name, 0.0), f"pace.{name}", low=0.0)


def _hold_schedule(found: Any, exp: Experiment) -> None:
    state = _mapping(found, "scheduler", ("base_lrs", "values"))
    rates, groups = _list(state["base_lrs"], "scheduler.base_lrs"), len(exp.scheduler.state_dict()["base_lrs"])
    if len(rates) != groups:
        raise Misfit(f"scheduler.base_lrs: expected {groups} parameter groups, found {len(rates)}; another config?")
    for rate in rates:
        _number(rate, "scheduler.base_lrs", low=0.0)
    for value in _list(state["values"], "scheduler.values"):
        if type(value) not in (int, float):
            raise Misfit(f"scheduler.values: expected numbers, found {described(value)}")


def _hold_optimizer(found: Any, exp: Experiment, finite: bool) -> None:
    optimizer: Any = exp.optimizer
    own = optimizer.state_dict()
    if own.keys() == {"inner", "slow", "steps"}:  # Lookahead
        found = _mapping(found, "optimizer", ("inner", "slow", "steps"))
        _count(found["steps"], "the steps of lookahead")
        fast = [p for group in optimizer.param_groups for p in group["params"]]
        slow = _list(found["slow"], "the slow weights of lookahead")
        if len(slow) not in (0, len(fast)):
            raise Misfit(f"the slow weights of lookahead: expected {len(fast)} tensors, found {len(slow)}")
        for number, (one, p) in enumerate(zip(slow, fast, strict=False)):
            tensor(one, f"slow weight {number} of lookahead", p.dtype, p.shape)
        optimizer, own, found = optimizer.inner, own["inner"], found["inner"]
    if own.keys() != {"state", "param_groups"}:
        return  # a user's own
    found = _mapping(found, "optimizer", ("state", "param_groups"))
    groups = _list(found["param_groups"], "optimizer.param_groups")
    if len(groups) != len(own["param_groups"]):
        raise Misfit(f"optimizer: expected {len(own['param_groups'])} parameter groups, found {len(groups)}")
    for number, (group, ours) in enumerate(zip(groups, own["param_groups"], strict=True)):
        _hold_group(group, ours, f"optimizer.param_groups.{number}")
    names = {id(p): name for name, p in exp.model.named_parameters()}
    weights = dict(_indexed(own["param_groups"], optimizer))
    state = _mapping(found["state"], "optimizer.state", ())
    options = {index: group for group in groups for index in group["params"]}
    seen: set[int] = set()
    values = Tensors(finite)
    for index, entry in state.items():
        if type(index) is not int or index not in weights:
            raise Misfit(f"optimizer.state: expected the numbers of {len(weights)} weights, found {str(index)[:40]}")
        weight, name = weights[index], names.get(id(weights[index]), str(index))
        state[index] = _entry(entry, weight, name, optimizer, options[index], values)
        _separate(state[index], weight, seen)
    values.hold()


def _indexed(groups: Sequence[Mapping[str, Any]], optimizer: Optimizer) -> list[tuple[int, Tensor]]:
    pairs = zip(groups, optimizer.param_groups, strict=True)
    return [pair for ours, group in pairs for pair in zip(ours["params"], group["params"], strict=True)]


def _hold_group(found: Any, own: Mapping[str, Any], name: str) -> None:
    found = _mapping(found, name, ("params",))
    if not all(type(one) is int for one in _list(found["params"], name)) or [*found["params"]] != own["params"]:
        raise Misfit(f"{name}: expected {len(own['params'])} weights, found others; was it written by another config?")
    for key, ours in own.items():
        if key == "params" or key not in found:  # torch adds what an older version did not have
            continue
        value = found[key]
        if key in FLAGS and value is not ours:
            raise Misfit(f"{name}.{key}: expected {ours}, found {str(value)[:40]}")
        for one, wanted in _pairs(value, ours, f"{name}.{key}"):
            if type(wanted) in (int, float):
                at_least = 0.0 if key in ("lr", "eps", "weight_decay", "dampening", *BELOW_ONE) else -math.inf
                number = _number(one, f"{name}.{key}", low=at_least)
                if key in BELOW_ONE and number >= 1.0 > wanted:
                    raise Misfit(f"{name}.{key}: expected a number below 1, found {number:g}")
            elif isinstance(wanted, (bool, str, type(None))) and type(one) not in (type(wanted), bool, type(None)):
                raise Misfit(f"{name}.{key}: expected {wanted}, found {described(one)}")


def _pairs(found: Any, own: Any, name: str) -> list[tuple[Any, Any]]:
    if isinstance(own, (list, tuple)):
        found = _list(found, name)
        if len(found) != len(own):
            raise Misfit(f"{name}: expected {len(own)} numbers, found {len(found)}")
        return list(zip(found, own, strict=True))
    return [(found, own)]


def _entry(
    found: Any, weight: Tensor, name: str, optimizer: Optimizer, group: Mapping[str, Any], values: Tensors
) -> dict[str, Any]:
    """The state of one weight, whose tensors are added to `values`. Raises Misfit."""
    state, place = dict(_mapping(found, f"the optimizer state of {name}", ())), f"the optimizer state of {name}"
    kind = type(optimizer)
    known = ENTRIES.get(kind.__name__) if kind.__module__.startswith("torch.optim.") else None
    for key in known or ():
        if key not in state and group.get(ADDED.get(key, ""), key not in ADDED):
            raise Misfit(f"{place}: {key} is missing")
    for key, value in state.items():
        what = f"{place}, {key}"
        if key == "step":
            _number(value.item() if isinstance(value, Tensor) and value.dim() == 0 else value, what, low=0.0)
        elif known and key in known:
            if value is None and key == "momentum_buffer":
                continue
            values.add(value, what, weight.dtype, weight.shape, low=0.0 if key in SQUARES else -math.inf)
        elif isinstance(value, Tensor) and not all(map(math.isfinite, extent(value))):
            raise Misfit(f"{what}: expected finite values")
    return state


def _separate(state: dict[str, Any], weight: Tensor, seen: set[int]) -> None:
    """Give each tensor memory of its own, in the order of the weight: fused steps write through it as it lies."""
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == weight.shape and value.numel():
            whole = value.untyped_storage().nbytes() == value.numel() * value.itemsize
            if not whole or value.stride() != weight.stride() or value.data_ptr() in seen:
                state[key] = torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)
            seen.add(value.data_ptr())


def _hold_random(found: Any) -> None:
    state = _mapping(found, "rng", ("torch", "cuda", "mps", "numpy", "python"))
    tensor(state["torch"], "rng.torch", torch.uint8, torch.get_rng_state().shape)
    for one in _list(state["cuda"], "rng.cuda"):
        tensor(one, "rng.cuda", torch.uint8, (16,))
    if state["mps"] is not None and not isinstance(state["mps"], Tensor):
        raise Misfit(f"rng.mps: expected a tensor, found {described(state['mps'])}")
    name, keys, position, has_gauss, gauss = _of_length(state["numpy"], 5, "rng.numpy")
    if name != "MT19937":
        raise Misfit(f"rng.numpy: expected MT19937, found {str(name)[:40]}")
    tensor(keys, "rng.numpy", torch.int64, (624,))
    if int(keys.min()) < 0 or int(keys.max()) > WORD:
        raise Misfit("rng.numpy: expected numbers of 32 bits")
    _number(gauss, "rng.numpy")
    # numpy reads at this place without a look at it
    if _count(position, "rng.numpy") > 624 or _count(has_gauss, "rng.numpy") > 1:
        raise Misfit(f"rng.numpy: expected a place up to 624, found {position}")
    version, numbers, following = _of_length(state["python"], 3, "rng.python")
    if version != 3 or not (following is None or isinstance(following, float)):
        raise Misfit("rng.python: expected a state of version 3")
    if isinstance(numbers, Tensor):
        tensor(numbers, "rng.python", torch.int64, (625,))
        numbers = numbers.tolist()
    for number in _of_length(numbers, 625, "rng.python"):  # a tuple in the files of older versions
        if type(number) is not int or not 0 <= number <= WORD:
            raise Misfit("rng.python: expected numbers of 32 bits")
    if numbers[-1] > 624:
        raise Misfit(f"rng.python: expected a place up to 624, found {numbers[-1]}")


def _mapping(found: Any, name: str, keys: Sequence[str]) -> dict[Any, Any]:
    if not isinstance(found, dict):
        raise Misfit(f"{name}: expected names and values, found {described(found)}")
    if missing := [key for key in keys if key not in found]:
        raise Misfit(f"{name}: {missing[0]} is missing")
    return found


def _list(found: Any, name: str) -> Sequence[Any]:
    if not isinstance(found, (list, tuple)):
        raise Misfit(f"{name}: expected a list, found {described(found)}")
    return found


def _of_length(found: Any, length: int, name: str) -> Sequence[Any]:
    entries = _list(found, name)
    if len(entries) != length:
        raise Misfit(f"{name}: expected {length} entries, found {len(entries)}")
    return entries


def _count(found: Any, name: str) -> int:
    if type(found) is not int or not 0 <= found <= MOST:
        raise Misfit(f"{name}: expected a whole number of at least 0, found {described(found)}")
    return found


def _number(found: Any, name: str, low: float = -math.inf) -> float:
    if type(found) not in (int, float) or abs(found) > MOST or not math.isfinite(found) or found < low:
        expected = "a finite number" if low == -math.inf else f"a finite number of at least {low:g}"
        raise Misfit(f"{name}: expected {expected}, found {described(found)}")
    return float(found)
