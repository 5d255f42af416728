"""C4-C6: backward computes the derivative of what forward computes; `dlrun check check.only=[gradient]`.

A float64 copy of the model, three or four samples, dropout on with one seed: derivatives from autograd
against centred differences, along a random direction through every parameter tensor, its largest entry and a few
random ones; at the start, after a short burn-in, and for the penalty alone. A crossed kink (C5) is removed from the
comparison, or excuses an error that it can explain.

Detects: a custom backward with a wrong sign, factor or term, down to that of one bias; a detached branch,
item(), rounding; gradients that are NaN or too small to compare (C6). Cannot detect: a forward that computes
something other than intended, a backward that is wrong for a few entries of a big tensor only, code that does
not run on these samples, errors that appear only in float32 or bfloat16. An intentional surrogate gradient, such as
straight-through rounding, is reported as wrong: check.skip=[gradient:blocks.3.ste] holds the output of this module
constant, so that all other gradients are compared, and names the tensors that act through it alone as not judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import Tensor, nn

from dlrun.checks.advice import advice
from dlrun.checks.check import check
from dlrun.checks.exempt import exempt
from dlrun.checks.gradient.differences import KINKED, SMOOTH, Comparison, NotComparable, Slopes
from dlrun.checks.gradient.doubles import burn_in, doubled, float64, hold_outputs, holds_constant, off_zero
from dlrun.checks.gradient.kinks import STEPS
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named, no_trace
from dlrun.checks.smaller import shown, smaller_side
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["gradient"]

RANDOM_ENTRIES = {"start": 2, "burn-in": 1, "penalty": 1}
BAD = ("wrong", "suspicious")
TINY = 1e-10  # C6
CONSTANT = "; the loss holds a part of itself constant, so the network was checked with cross-entropy"


@dataclass
class _Findings:
    """The comparisons of all phases."""

    names: list[str]
    samples: int
    layers: int = 1
    done: list[Comparison] = field(default_factory=list)
    tiny: list[str] = field(default_factory=list)
    advice: str = ""
    unreached: str = ""  # the phase in which the time ran out
    exempt: tuple[str, ...] = ()  # modules with a surrogate gradient (check.skip)
    behind: list[str] = field(default_factory=list)  # tensors that act through these alone
    side: int = 0  # of smaller images, in pixels
    coarse: bool = False  # directions alone, for want of time

    def tensors(self, *states: str, whole: bool = False) -> set[str]:
        """Names of those with a comparison in one of the states; along a direction if `whole`."""
        moves = (m for c in self.done if c.state in states for m in c.moves)
        return {m.name for m in moves if m.entry is None or not whole}


@check(order=190, needs_outputs=True, timed=True, by_module=True, share=6)
def gradient(exp: Experiment, seconds: float = float("inf")) -> Verdict:
    """Compare the gradients of a float64 copy with centred differences, for about `seconds` at most."""
    deadline = time.perf_counter() + seconds
    side = smaller_side(exp)
    with no_trace(), float64():
        try:
            constant = holds_constant(exp)
            model, loss, samples = doubled(replace(exp, loss=nn.CrossEntropyLoss()) if constant else exp, side)
            parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
            if not parameters:
                raise NotComparable("no parameter is trainable")
            off_zero(parameters)
            found = _Findings(list(parameters), samples, advice=advice(exp, "model.norm=batch", "model.init=he_normal"))
            found.side = side
            hold_outputs(model, exempt(exp, "gradient"))
            found.exempt = exempt(exp, "gradient")
            verdict = _phases(exp, model, loss, parameters, found, deadline)
            return replace(verdict, message=f"{verdict.message}{CONSTANT}") if constant else verdict
        except NotComparable as error:
            return Verdict(Outcome.SKIP, "", "", str(error))


def _phases(
    exp: Experiment,
    model: nn.Module,
    loss: Callable[[], Tensor],
    parameters: Mapping[str, Tensor],
    found: _Findings,
    deadline: float,
) -> Verdict:
    phases = [("start", loss), ("burn-in", loss)]
    if exp.penalty.active:
        phases.append(("penalty", lambda: exp.penalty.penalty(model)))
    for phase, function in phases:
        if phase == "burn-in":
            now = time.perf_counter()
            burn_in(loss, parameters, now + (deadline - now) / 3)
        slopes = Slopes(function, parameters, deadline)
        if found.exempt and phase == "start":
            found.behind = [n for n in slopes.parameters if not slopes.gradients[n].any()]
            if len(found.behind) == len(slopes.parameters):
                raise NotComparable(f"undecided: every gradient passes through {named([*found.exempt])} (check.skip)")
        found.layers = max(found.layers, slopes.layers)
        bad = _not_finite(slopes, phase, found.advice) or _compared(slopes, phase, found, deadline)
        if bad is None and phase == "start":
            bad = _vanished(slopes, found)
        if bad is not None:
            return bad
        if time.perf_counter() > deadline:
            found.unreached = phase
            break
    return _summary(found)


def _compared(slopes: Slopes, phase: str, found: _Findings, deadline: float) -> Verdict | None:
    """Compare directions of all tensors, then entries; return a verdict if one is wrong or suspicious, else None.

    Directions tell most: entries are omitted if they would leave no time for those of the next phase.
    """
    seed = {"start": 0, "burn-in": 1, "penalty": 2}[phase]
    generator = torch.Generator().manual_seed(seed)
    entries = [slopes.entry(n, int(g.abs().argmax())) for n, g in slopes.gradients.items()]
    for _ in range(RANDOM_ENTRIES[phase]):
        sizes = {n: p.numel() for n, p in slopes.parameters.items()}
        entries += [slopes.entry(n, int(torch.randint(k, (), generator=generator))) for n, k in sizes.items()]
    draws = [[slopes.direction(n, seed) for n in slopes.parameters], entries]
    suspicious: list[Comparison] = []
    began = time.perf_counter()
    for moves in draws:
        now = time.perf_counter()
        if (
            moves is entries
            and (now - began) * (RANDOM_ENTRIES[phase] + (5 if phase == "start" else 2)) > deadline - now
        ):
            found.coarse = True
            break
        for comparison in slopes.compare(moves):
            found.done.append(comparison)
            if comparison.state == "wrong":
                return _traced(slopes, comparison, phase, seed, found.samples)
            if comparison.state == "suspicious":
                suspicious.append(comparison)  # an error that is small along a direction may be clear in an entry
    if suspicious:
        return _traced(slopes, max(suspicious, key=lambda c: c.error), phase, seed, found.samples)
    return None


def _traced(slopes: Slopes, worst: Comparison, phase: str, seed: int, samples: int) -> Verdict:
    """The verdict on a wrong comparison; first finds the last tensor in forward order that has one."""
    right: list[str] = []  # tensors used after the last wrong one
    bad: list[str] = []
    for name in reversed(slopes.forward_order):
        comparison = next(slopes.compare([slopes.direction(name, seed)]), None)
        if comparison is None or (bad and (comparison.state not in BAD or len(bad) == 2)):
            break
        if comparison.state not in BAD:
            right.append(name)
            continue
        if not bad:
            largest = slopes.entry(name, int(slopes.gradients[name].abs().argmax()))
            more = [
                slopes.direction(name, seed + other) for other in (3, 4, 5)
            ]  # a single one may show little of the error
            nearest = [comparison, *(c for move in (*more, largest) for c in slopes.compare([move]))]
            worst = next((c for c in reversed(nearest) if c.state == worst.state), worst)
        bad.append(name)
    where = ""
    if len(bad) > 1:
        where = f"; {right[-1]}, used next, is correct: look between these" if right else "; look at the loss as well"
    elif bad and len(slopes.parameters) > 1:
        where = "; its neighbours are correct: look at the backward of this tensor only"
    return _worded(slopes, worst, phase, samples, where)


def _worded(slopes: Slopes, c: Comparison, phase: str, samples: int, where: str) -> Verdict:
    (move,) = c.moves
    message = f"{'penalty: ' if phase == 'penalty' else ''}{move}: analytic {move.sign * c.analytic:.4g}, "
    message += f"numeric {move.sign * c.numeric:.4g}, relative error {c.error:.2g} at h={c.h:g}: "
    message += _cause(c, samples) + where
    if slopes.seen.cuts and phase != "penalty":
        message += f"; {', '.join(slopes.seen.cuts)} is called on tensors that carry a gradient"
    if phase == "burn-in":
        message += "; only after the burn-in: at the start all were correct"
    status = Outcome.FAIL if c.state == "wrong" else Outcome.WARN
    return Verdict(status, f"{c.error:.2g} in {move.name}", _expected(slopes.layers), message)


def _cause(c: Comparison, samples: int) -> str:
    """The likely mistake, from the ratio of the analytic to the numeric derivative."""
    if c.state != "wrong":
        return "too large for rounding: the backward lacks a small term, or has an inexact constant"
    if abs(c.numeric) <= c.floor:
        return (
            "the loss does not change: a mistake, or an intentional surrogate gradient (straight-through), "
            "which check.skip=[gradient:MODULE] declares"
        )
    ratio = c.analytic / c.numeric
    known = {
        -1.0: "the sign is flipped",
        2.0: "too large by a factor of 2",
        0.5: "too small by a factor of 2",
        0.0: "the gradient is lost: detach(), .data, item(), no_grad() or a conversion to numpy",
        float(samples): "a sum over the batch instead of the mean",
        1.0 / samples: "divided by the batch size once too often",
    }
    for value, cause in known.items():
        if abs(ratio - value) <= 0.01 * max(abs(value), 0.1):
            return cause
    return f"{ratio:.3g} times the correct value: the backward lacks a term or factor"


def _vanished(slopes: Slopes, found: _Findings) -> Verdict | None:
    """Examine gradients that are zero within rounding: either no influence on the loss, or a lost gradient (C6)."""
    zero = found.tensors("zero", whole=True)
    lost = [n for n in slopes.parameters if n in zero and slopes.reaches(n)]
    without = [n for n in lost if not slopes.gradients[n].any()]
    steps = [s for s in slopes.seen.cuts if s in STEPS]
    if without and steps and not found.exempt:
        message = f"the loss depends on {without[0]}, but its gradient is 0: it is lost in {', '.join(steps)}"
        return Verdict(Outcome.FAIL, f"0 in {len(without)} tensors", "a gradient", message)
    largest = {n: float(g.abs().max()) for n, g in slopes.gradients.items()}
    tiny = [n for n in slopes.parameters if 0 < largest[n] < TINY]
    # vectors only if the loss depends on them: the gradient of a bias before a norm is 0 up to rounding
    found.tiny = [n for n in tiny if slopes.parameters[n].ndim > 1 or n in lost]
    return None


def _not_finite(slopes: Slopes, phase: str, advice: str) -> Verdict | None:
    if not torch.isfinite(torch.tensor(slopes.value)):
        return Verdict(
            Outcome.FAIL, f"{slopes.value}", "a finite loss", f"the loss is {slopes.value} at the {phase}{advice}"
        )
    for name in reversed(slopes.forward_order):
        if not bool(slopes.gradients[name].isfinite().all()):
            message = f"the gradient of {name} is not finite and the loss is {slopes.value:.4g}: "
            message += f"a root, norm or logarithm of 0, or a division by 0; add a small number first{advice}"
            return Verdict(Outcome.FAIL, f"nan or inf in {name}", "finite", message)
    return None


def _summary(found: _Findings) -> Verdict:
    errors = [c.error for c in found.done if c.state == "fine"]
    covered = found.tensors("fine", "zero", "kink", "rough", whole=True)
    rough = [n for n in found.names if n not in found.tensors("fine", "zero", "kink")]
    value = f"{median(errors):.1e} (median), {len(found.names)} tensors" if errors else f"{len(found.names)} tensors"
    status, message = Outcome.PASS, "backward agrees with centred differences"
    if len(covered) < len(found.names):
        value = f"{len(covered)} of {len(found.names)} tensors"
        status = Outcome.SKIP
        message = "the time is used up; the tensors compared so far are correct: raise check.budget"
    elif found.unreached:
        status = Outcome.SKIP
        message = f"correct so far; the time is used up at the {found.unreached}: raise check.budget"
    elif found.tiny:
        status, message = Outcome.WARN, f"gradients too small to compare: {named(found.tiny)}; units may be saturated: "
        message += "scale the loss, the inputs or the initialisation, or add a norm" + found.advice
    elif rough:
        status, message = (
            Outcome.WARN,
            f"not smooth enough for a difference quotient: {named(rough)}; jumps, rounding or noise: ",
        )
        message += "if intended, use check.skip=[gradient], or check.skip=[gradient:MODULE] for one module"
    else:
        crossed = sum(c.crossed > 0 for c in found.done)
        message += f"; {crossed} of {len(found.done)} comparisons crossed a kink" if crossed else ""
        message += "; along one direction per tensor, for want of time" if found.coarse else ""
        message += shown(found.side)
        if found.behind:
            message += f"; not judged, as they act through {named([*found.exempt])} alone: {named(found.behind)}"
    return Verdict(status, value, _expected(found.layers), message)


def _expected(layers: int) -> str:
    return f"< {SMOOTH * layers:.0e}, across kinks < {KINKED:.0e}"
