"""C9, O1, R1: how the optimizer answers gradients that are known, on small copies of the tensors; `dlrun check`.

The optimizer is copied onto small tensors, and gets made gradients. Its steps must be proportional to the rate of each
group, reach only tensors that have a gradient, use the momentum that is configured and let it fade, and lead away from
the start; weight decay must shrink by about rate × decay, and a hand-written Adam, SGD or RMSprop must move like that
of torch with the same settings. Detects: a rate that is squared
or taken from another group, momentum that is never used, shared or never fades, bias correction with a wrong count,
decay inside the adaptive term, gradients that add up because zero_grad() does nothing, an accumulation that forgets to
divide, slow weights that never follow. Cannot detect: a faulty rule that agrees with all this, or a poor rate (O5).
"""

from __future__ import annotations

import math
import re
from itertools import pairwise

import torch
from torch import Tensor

from dlrun.checks.check import SETUP, check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import peak_rates
from dlrun.checks.small import STEPS, Small, length, published, reference
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["updates"]

COAST = 40  # steps without a gradient
POWER = 0.3  # of the exponent of the rate, which is 1
FADED = 0.8  # of a coasting step that momentum of the configured size leaves after COAST steps, at most, to be judged
LIKE = 0.6, 1.6  # times as far as torch's own: rounding and the place of epsilon explain no more
SHRUNK = 1 / 3, 3.0  # times rate × decay: some define decay with a factor of a half or two
LOOKS = (1, 5, STEPS)
UPHILL = 0.3  # cosine of all moves and the gradient

Found = tuple[Outcome, str] | None


@check(order=131, depends_on=(*SETUP, "optimizer", "scheduler", "trainer"))
def updates(exp: Experiment) -> Verdict:
    """Give a copy of the optimizer made gradients, and compare its steps with its settings."""
    expected = "steps that follow the settings"
    name = type(exp.optimizer).__name__
    if not any(rate > 0 for rate in peak_rates(exp)):
        return Verdict(Outcome.SKIP, "not run", expected, "skipped: the rate is 0; see `optimizer`")
    if (swapped := _betas(exp)) is not None:
        return Verdict(Outcome.WARN, swapped[0], "the first below the second", swapped[1])
    if published(type(exp.optimizer)):
        return Verdict(
            Outcome.PASS, name, expected, "the rule of an installed package; only its settings were looked at"
        )
    try:
        made = Small(exp)
        tests = (_uncalled, _kept, _power, _isolated, _coasting, _backwards, _returning, _summed, _unlike, _shrinking)
        found = next((f for f in (test(made) for test in tests) if f is not None), None)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError) as error:
        message = (
            f"undecided: {name} does not work on small copies of its tensors ({type(error).__name__}); see `descent`"
        )
        return Verdict(Outcome.SKIP, "not run", expected, message)
    first, last = (made.lengths[t] / made.lengths[0] if made.lengths[0] else 0.0 for t in (1, -1))
    shown = f"steps 1 : {first:.2g} : {last:.2g} of a constant gradient"
    if found is not None:
        return Verdict(found[0], shown, expected, found[1])
    return Verdict(Outcome.PASS, shown, expected, f"{name} follows its rate, momentum and decay")


def _betas(exp: Experiment) -> tuple[str, str] | None:
    """What was found and a sentence if the betas of an Adam look swapped."""
    betas = exp.optimizer.param_groups[0].get("betas")
    if not isinstance(betas, (tuple, list)) or len(betas) != 2 or not float(betas[0]) > float(betas[1]):
        return None
    message = "the mean of squares forgets faster than the mean of gradients, so single gradients decide the steps: "
    return f"betas {betas[0]:g}, {betas[1]:g}", f"{message}type optimizer.betas=[{betas[1]:g},{betas[0]:g}]"


def _uncalled(small: Small) -> Found:
    """Whether step() leaves out the closure."""
    if small.called:
        return None
    message = f"{small.name}.step(closure) never calls the closure, which computes the gradients: begin it with "
    return Outcome.FAIL, message + "loss = closure()"


def _kept(small: Small) -> Found:
    """Whether zero_grad() leaves the gradients of the last step."""
    made, tensors = small.copy()
    for p in tensors:
        p.grad = torch.ones_like(p)
    made.zero_grad(set_to_none=True)
    if not any(p.grad is not None and bool(p.grad.any()) for p in tensors):
        return None
    message = f"{small.name}.zero_grad() leaves the gradients, so those of all steps add up: remove this method, "
    return Outcome.FAIL, message + "or set p.grad = None for every tensor in it"


def _power(small: Small) -> Found:
    """Whether a step of a group is proportional to the rate of that group."""
    tenth = small.walk(lambda i, t: small.slope[i], STEPS, 0.1)
    first = next((t for t, length in enumerate(small.lengths) if length > 0), None)
    for group, rate in enumerate(small.rates):
        if first is None or not rate:
            continue
        full, less = (length(small.of(group, small.moves(path, first))) for path in (small.path, tenth))
        if not (math.isfinite(full) and full > 0 and less > 0):
            continue
        power = math.log10(full / less)
        if abs(power - 1) > POWER:
            message = (
                f"a tenth of the rate makes the first step of {small.name} {full / less:.3g} times smaller, not 10: "
            )
            what = (
                "the step does not use the rate of its group"
                if power < POWER
                else "it is multiplied by a power of the rate"
            )
            return small.severe if power < POWER else Outcome.WARN, f"{message}{what}; step by group['lr'], once"
    return None


def _isolated(small: Small) -> Found:
    """Whether tensors with a zero gradient move while others have one: a buffer that several share."""
    seen: dict[tuple[int, ...], int] = {}
    given = []
    for s in small.start:
        shape = tuple(s.shape)
        seen[shape] = seen.get(shape, 0) + 1
        given.append(seen[shape] % 2 == 1)
    if all(given):
        return None
    path = small.walk(lambda i, t: small.slope[i] * given[i], 3)
    moves = small.moves(path, 2, 0)
    those, others = ([m for m, has in zip(moves, given, strict=True) if has == which] for which in (True, False))
    if not length(others) > 0.01 * length(those):
        return None
    message = (
        f"{small.name} moves tensors whose gradient is 0 while others of their shape have one: they share a buffer; "
    )
    return Outcome.WARN, message + "keep one per tensor, in self.state[p]"


def _coasting(small: Small) -> Found:
    """Whether steps go on after the gradient ends as momentum says."""
    momentum = small.momentum
    if not 0.3 <= momentum < 1:
        return None
    path = small.walk(lambda i, t: small.slope[i] * (t < 4), 4 + COAST)
    lengths = [length(small.moves(path, t)) for t in range(4 + COAST)]
    if lengths[3] > 0 and lengths[4] < 1e-6 * lengths[3]:
        message = f"momentum {momentum:g} has no effect: {small.name} stands still at once when the gradient ends; "
        return small.severe, message + "step by the buffer, and store it back in self.state[p]"
    left = lengths[-1] / lengths[4] if lengths[4] > 0 else 0.0
    larger = small.moves(small.walk(lambda i, t: 10 * small.slope[i], 1), 0)
    signs = length(larger) < 3 * small.lengths[0]  # their length says nothing of the buffer
    if momentum ** (COAST - 1) < FADED and left > 0.98 and not signs:
        message = (
            f"momentum {momentum:g} never fades: {COAST} steps after the gradient ended {small.name} still moves as "
        )
        message += f"far ({left:.2g} times); multiply the buffer by the momentum before adding the gradient"
        return Outcome.FAIL, message
    return None


def _backwards(small: Small) -> Found:
    """Whether a constant gradient is climbed in the long run, though the first step descends."""

    def along(t: int) -> float:
        moves = small.moves(small.path, t, 0)
        far = length(moves) * length(small.slope)
        return sum(float((m * s).sum()) for m, s in zip(moves, small.slope, strict=True)) / far if far else 0.0

    if not along(0) < 0 or (t := next((t for t in range(1, STEPS) if along(t) > UPHILL), None)) is None:
        return None
    message = (
        f"after {t + 1} steps on a constant gradient {small.name} has moved up it, though its first step goes down: "
    )
    return Outcome.FAIL, message + "slow weights that step away from the fast ones (slow += alpha × (fast - slow))?"


def _returning(small: Small) -> Found:
    """Whether the weights come back to where they began under a constant gradient."""
    whole = sum(small.lengths)
    nets = [length(small.moves(small.path, t, 0)) for t in range(STEPS)]
    if not whole or min(nets[STEPS // 2 :]) > 0.02 * whole:
        return None
    t = next(t for t in range(STEPS // 2, STEPS) if nets[t] <= 0.02 * whole) + 1
    message = f"after {t} steps on a constant gradient {small.name} is back where it began: slow weights that never "
    return Outcome.FAIL, message + "follow (slow += alpha × (fast - slow)), or steps that alternate in sign"


def _summed(small: Small) -> Found:
    """Whether an optimizer that moves once in several steps moves by the sum of their gradients."""
    moved = [t for t, far in enumerate(small.lengths) if far > 0]
    if not moved or moved[0] == 0 or len(moved) < 2 or any(b - a != moved[0] + 1 for a, b in pairwise(moved)):
        return None
    every = moved[0] + 1
    plain = length([small.rates[g] * s for s, g in zip(small.slope, small.owner, strict=True)])
    ratio = small.lengths[moved[0]] / plain
    if abs(ratio - every) > 0.02 * every:
        return None
    message = (
        f"{small.name} moves once in {every} steps, by the sum of {every} gradients: the rate is {every} times as "
    )
    return (
        Outcome.WARN,
        f"{message}high as it says; divide the sum by {every}, or type trainer.accumulate={every} instead",
    )


def _unlike(small: Small) -> Found:
    """How far a hand-written rule moves, compared with that of torch."""
    other = reference(small)
    if other is None:
        return None
    generator = torch.Generator().manual_seed(1)
    noise = [
        [s[torch.randperm(len(s), generator=generator)] if s.ndim else s for s in small.slope] for _ in range(STEPS)
    ]

    def rule(i: int, t: int) -> Tensor:
        return small.slope[i] + noise[t][i] / 2

    mine = small.walk(rule, STEPS)
    tensors = [p for group in other.param_groups for p in group["params"]]
    theirs = [[p.detach().clone() for p in tensors]]
    for t in range(STEPS):
        for i, p in enumerate(tensors):
            p.grad = rule(i, t)
        other.step()
        theirs.append([p.detach().clone() for p in tensors])
    far = [length(small.moves(mine, t - 1, 0)) / length(small.moves(theirs, t - 1, 0)) for t in LOOKS]
    if all(LIKE[0] < ratio < LIKE[1] for ratio in far):
        return None
    shown = ", ".join(f"{ratio:.2g}" for ratio in far)
    message = (
        f"on the same gradients {small.name} has moved {shown} times as far as torch.optim.{type(other).__name__} "
    )
    message += f"with these settings after {', '.join(map(str, LOOKS))} steps: "
    if isinstance(other, torch.optim.Adam):
        return Outcome.WARN, message + "look at its bias correction, 1 - beta ** step with a step of its own per tensor"
    if isinstance(other, torch.optim.SGD):
        return Outcome.WARN, message + "look at its momentum, buffer = momentum × buffer + gradient"
    return Outcome.WARN, message + "look at its running mean of squares and the root of it"


def _shrinking(small: Small) -> Found:
    """Whether decay at a zero gradient takes about rate × decay of a weight, in proportion to both."""
    if any("weight_decay" not in group for group in small.groups):
        return None
    for number, (group, rate) in enumerate(zip(small.groups, small.rates, strict=True)):
        if not float(group["weight_decay"] or 0.0) or not rate or number not in small.owner:
            continue
        asked = float(group["weight_decay"])
        share, less, slower = (_taken(small, number, a, s) for a, s in ((asked, 1.0), (asked / 3, 1.0), (asked, 0.1)))
        if share <= 0:
            continue  # `descent` reports it
        rises, falls = (share / part if part else math.inf for part in (less, slower))
        word = f"weight_decay {group['weight_decay']:g}"
        if rises < 1.5:
            if re.search(r"(?i)adam.?w|decoupled", small.name) is None:
                continue  # L2 in the gradient of an adaptive optimizer, as torch.optim.Adam does it
            message = (
                f"{word} is divided by the gradient's size: three times as much takes {rises:.2g} times as much of "
            )
            return (
                Outcome.WARN,
                f"{message}a weight, so {small.name} is no AdamW; p.mul_(1 - lr * weight_decay) instead",
            )
        if falls < 3:
            message = f"{word} is not multiplied by the rate: a tenth of the rate shrinks weights as much; "
            return Outcome.WARN, message + "take lr × weight_decay of a weight per step"
        if not SHRUNK[0] < share / (rate * asked) < SHRUNK[1]:
            message = (
                f"{word} shrinks weights {share / (rate * asked):.2g} times as much per step as rate × decay says: "
            )
            return Outcome.WARN, message + (
                "the rate is multiplied twice" if falls > 30 else "look at the decay in step()"
            )
    return None


def _taken(small: Small, group: int, decay: float, scale: float) -> float:
    """The share of the norm of a group that one step with a zero gradient takes."""
    decays = {g: decay if g == group else 0.0 for g in range(len(small.groups))}
    path = small.walk(lambda i, t: torch.zeros_like(small.slope[i]), 1, scale, decays)
    before, after = (length(small.of(group, tensors)) for tensors in path)
    return 1 - after / before
