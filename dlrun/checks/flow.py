"""M2, M4, R2: the values in a forward pass go where the code means them to go; `dlrun check`.

Watches one forward pass of a copy, function by function, and names the line of the user's own code. Detects: a result
that nothing uses, such as a residual sum or an activation that is not assigned; dropout of 0.7 and more, of whole
samples or of the logits; a tensor added to itself or concatenated with itself; softmax over another axis than the next
product sums over; two linear layers with nothing between; an activation on the images; a norm with statistics 0 and 1;
in-place operations that change the images, or a tensor that is read again. Each may be meant, so these are warnings.
Cannot detect: what is computed in libraries, by functions of other packages, or in custom autograd functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import samples, settle
from dlrun.checks.tracing import Call, Trace, below, elsewhere, tensors, writes
from dlrun.models.outputs import logits_of
from dlrun.training.bends import BENDS
from dlrun.training.copies import copied
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["flow"]

COUNT = 4
MUCH = 0.7  # of the units dropped: essays take 0.2 to 0.5 (R2)
SUMS = {"add", "sub", "cat", "concat", "stack"}
NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize"}
DROPS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
SOFTMAX = {"softmax", "_softmax"}
WEIGHED = {"linear", "conv1d", "conv2d", "conv3d", "matmul", "bmm", "mm", "addmm", "einsum", "bilinear", "cdist"}
WEIGHED |= {"conv_transpose2d", "scaled_dot_product_attention", "multi_head_attention_forward", "tensordot"}
PRODUCTS = {"matmul", "bmm", "mm", "__matmul__"}
HALVING = {"relu", "relu_", "relu6"}  # what cuts off the negative half
# what no one computes without a use for it
VALUABLE = SUMS | NORMS | DROPS | SOFTMAX | {n for n in BENDS if not n.endswith("_")} | {"log_softmax"}
VALUABLE |= {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "pad"}
Found = tuple[str, str]
FINE = ("", "")


@check(order=69, needs_outputs=True, labels=False)
def flow(exp: Experiment) -> Verdict:
    """Look for results that are lost, tensors that meet themselves, and what is changed in place."""
    model = copied(exp.model).train()
    x, _ = samples(exp, COUNT)
    given = x.clone()
    with torch.enable_grad(), Trace() as trace:
        outputs = model(given)
    calls = [call for call in trace.calls if call.place is not None and call.place.near]
    expected = "every result is used, as it was computed"
    for value, message in (
        _input(trace.calls, x, given),
        _lost(model, calls, outputs),
        _dropped(trace.calls, logits_of(outputs)),
        _itself(calls),
        _axis(calls),
        _rectified(calls, given),
        _frozen(calls),
        _linear(calls),
        _in_place(exp, x, trace.calls),
    ):
        if message:
            return Verdict(Outcome.WARN, value, expected, message)
    return Verdict(Outcome.PASS, f"{len(trace.calls)} calls", expected, "every result is used, as it was computed")


def _line(call: Call) -> str:
    return "" if call.place is None else call.place.line


def _input(calls: list[Call], x: Tensor, given: Tensor) -> Found:
    """Whether forward() changes the batch that it is given."""
    if torch.equal(x, given):
        return FINE
    start = given.untyped_storage().data_ptr()
    writing = (c for c in calls if c.name.endswith("_") or c.kwargs.get("inplace") is True)
    first = next((c for c in writing if isinstance(c.args[0], Tensor) and _start(c.args[0]) == start), None)
    at = f" at {_line(first)}" if first is not None and first.place is not None else ""
    message = (
        f"forward() changes the batch that it is given, in place{at}: an objective, an ensemble or a second pass then "
        "gets other images; write x = x * 2 instead of x *= 2, and no inplace=True on the images"
    )
    return "images changed in place", message


def _start(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _lost(model: nn.Module, calls: list[Call], outputs: Any) -> Found:
    """A result that neither the outputs nor anything that the model keeps depends on."""
    kept = [*tensors(outputs), *(t for m in model.modules() for t in tensors(vars(m)))]
    # what a custom autograd function was given is not recorded, but its backward pass leads there
    names, nodes = {id(t) for t in kept}, below(kept)

    @functools.cache
    def lost(call: Call) -> bool:
        if call.taken or call.node in nodes or id(call.result) in names:
            return False
        return all(lost(reader) for reader in call.readers)

    for call in calls:
        if call.name in VALUABLE and call.node is not None and lost(call):
            while call.readers and call.readers[-1].place is not None:
                call = call.readers[-1]
            message = (
                f"the result of {call.name} at {_line(call)} is never used: assign it to a name and use that in what "
                "follows, or remove the line"
            )
            return f"{call.name} without effect", message
    return FINE


def _dropped(calls: list[Call], logits: Tensor) -> Found:
    """Dropout of most units, of whole samples, or of the logits."""
    reached = below([logits])  # an auxiliary head may drop more
    for k, call in enumerate(calls):
        if call.name not in DROPS or call.node not in reached or not call.option("training", 2, True):
            continue
        rate, at = call.option("p", 1, 0.5), f" at {_line(call)}" if call.place is not None else ""
        if isinstance(rate, bool):
            message = f"the second argument of {call.name}{at} is p, the share that is dropped: write training="
            return f"dropout {rate}", f"{message}self.training, as in F.{call.name}(x, 0.2, training=self.training)"
        if rate >= MUCH:
            message = f"dropout of {rate:g}{at} drops {rate:.0%} of the units: p is the share that is dropped, not kept"
            return f"dropout {rate:g}", f"{message}; if {1 - rate:.2g} was meant, use nn.Dropout({1 - rate:.2g})"
        given = call.option("input", 0)
        if rate > 0 and given.ndim == {"dropout1d": 2, "dropout3d": 4}.get(call.name):
            message = f"{call.name}{at} takes a batch of {given.ndim} axes for one sample, and drops whole samples"
            return "whole samples dropped", f"{message}: use nn.Dropout for features, nn.Dropout2d for channels"
        last = not any(after.name in WEIGHED for after in calls[k + 1 :])
        if rate > 0 and last and given.numel() == logits.numel() and given.shape[-1] == logits.shape[-1]:
            return "dropout on the logits", f"dropout{at} sets logits to 0 at random: move it before the last layer"
    return FINE


def _itself(calls: list[Call]) -> Found:
    """A tensor that is added to itself, or concatenated with itself."""
    for call in calls:
        parts = call.args[0] if call.args and isinstance(call.args[0], (list, tuple)) else call.args[:2]
        parts = [p for p in parts if isinstance(p, Tensor) and p.requires_grad]
        if call.name.rstrip("_") in SUMS and len({id(p) for p in parts}) < len(parts):
            verb = {"add": "adds a tensor to itself", "sub": "subtracts a tensor from itself"}
            what = verb.get(call.name.rstrip("_"), "joins a tensor with itself")
            message = (
                f"{_line(call)} {what}: one of its operands was to be another tensor, such as the input of a residual "
                "block, saved before the block changes it"
            )
            return what, message
    return FINE


def _axis(calls: list[Call]) -> Found:
    """Attention whose weights sum to 1 over another axis than the product that uses them sums over."""
    weights: dict[int, tuple[int, Tensor, Call]] = {}
    for call in calls:
        made, first = call.result, call.args[0] if call.args else None
        if call.name in SOFTMAX:
            axis = call.option("dim", 1)
            if isinstance(axis, int):
                weights[id(made)] = axis % made.ndim, made, call
        elif call.name in DROPS and id(first) in weights:
            weights[id(made)] = weights[id(first)][0], made, weights[id(first)][2]
        elif call.name in PRODUCTS and id(first) in weights:
            axis, tensor, softmax = weights[id(first)]
            if axis == tensor.ndim - 2 and tensor.ndim > 2:
                message = (
                    f"softmax at {_line(softmax)} normalises axis {axis - tensor.ndim}, but the product at "
                    f"{_line(call)} sums over the last axis, so its weights do not sum to 1: softmax(dim=-1)"
                )
                return "softmax over another axis", message
        elif call.name == "linear" and id(first) in weights:
            _, tensor, softmax = weights[id(first)]
            if tensor.ndim == 2:
                message = (
                    f"softmax at {_line(softmax)} is used as a hidden activation: its units sum to 1, so they are "
                    "small and share one gradient; use ReLU, and no softmax before the loss"
                )
                return "softmax in a hidden layer", message
    return FINE


def _rectified(calls: list[Call], given: Tensor) -> Found:
    """An activation that is applied to the images."""
    for call in calls:
        if call.name in HALVING and call.args and call.args[0] is given and bool((given < 0).any()):
            share = float((given < 0).float().mean())
            message = (
                f"{call.name} at {_line(call)} is applied to the images, which are normalised: it sets the {share:.0%} "
                "of their values below the mean to 0; apply it after the first layer"
            )
            return "images below the mean cut off", message
    return FINE


def _frozen(calls: list[Call]) -> Found:
    """F.batch_norm that uses running statistics of 0 and 1 in training."""
    for call in calls:
        mean, var = (call.option(n, k + 1) for k, n in enumerate(("running_mean", "running_var")))
        if call.name != "batch_norm" or call.option("training", 5, False) or mean is None or var is None:
            continue
        if not bool(mean.any()) and bool((var == 1).all()):
            message = (
                f"F.batch_norm at {_line(call)} uses running statistics of 0 and 1 in training, so it normalises "
                "nothing: pass training=self.training, or use nn.BatchNorm2d"
            )
            return "a norm frozen at 0 and 1", message
    return FINE


def _linear(calls: list[Call]) -> Found:
    """Two linear layers, the second of which is fed the output of the first, that are worth no more than one."""
    made: dict[int, tuple[Tensor, Tensor, Call]] = {}
    for call in calls:
        if call.name != "linear":
            if call.args and (call.name.endswith("_") or call.kwargs.get("inplace") is True):
                made.pop(id(call.args[0]), None)  # an activation in place
            continue
        first, weight, result = call.option("input", 0), call.option("weight", 1), call.result
        if id(first) in made and made[id(first)][0] is first:
            _, before, where = made[id(first)]
            if before.shape[0] >= min(before.shape[1], weight.shape[0]):
                message = (
                    f"the linear layers at {_line(where)} and {_line(call)} follow each other without an activation, "
                    f"so the {before.shape[0]} units between add nothing: call an activation there"
                )
                return "two linear layers in a row", message
        made[id(result)] = result, weight, call
    return FINE


def _in_place(exp: Experiment, x: Tensor, calls: list[Call]) -> Found:
    """Whether the logits change if nothing is computed in place."""
    if not any(writes(c.name, c.args, c.kwargs, c.place) for c in calls):
        return FINE
    model = copied(exp.model)
    settle(model, x)
    model.eval()

    def run(change: Callable[..., Any] | None = None) -> tuple[Tensor, list[Call]]:
        with torch.enable_grad(), Trace(change) as trace:
            logits: Tensor = logits_of(model(x.clone()))
        return logits.detach().float(), trace.calls

    before, calls = run()
    acting = [c for c in calls if writes(c.name, c.args, c.kwargs, c.place)]
    if not acting:
        return FINE
    try:
        (again, _), (after, _) = run(), run(elsewhere)
    except (RuntimeError, TypeError):
        return FINE  # it depends on being computed in place
    same = functools.partial(torch.allclose, before, rtol=1e-3, atol=1e-3 * float(before.std()))
    if same(after) or not same(again):
        return FINE
    lines = dict.fromkeys(_line(c) for c in acting if c.place is not None)
    at = f" at {', '.join([*lines][:3])}" if lines else ""
    message = (
        f"computing in place{at} changes a tensor that is read again, so a skip connection or a list carries other "
        "values than it was given: use inplace=False, and x = x + y instead of x += y"
    )
    return "changed in place", message
