"""C4: derivatives from centred differences, compared with those of autograd (`dlrun check check.only=[gradient]`).

A move changes one entry of a parameter tensor by h, or the whole tensor by h along a random direction. Moves
with derivatives of similar size are compared together, (f(x+h·Σv) − f(x−h·Σv)) / 2h against the sum of their
derivatives. If the difference is small relative to the weakest of them, all are correct; otherwise halves are
compared. So a correct backward costs few forward passes, and a wrong one is traced to its tensor and entry.
Kinks that x±h crosses are counted (C5) and removed: functions are held to the piece in force at x, the one
that autograd differentiates. Only kinks that cannot be held require smaller steps, and excuse an error.

Bands (cs231n notes, "Gradient checks"): a relative error above 1e-2 is wrong; below 1e-4 it is fine across
kinks, and below 1e-7 without. The notes allow deeper networks more, as errors accumulate: here 1e-7 per layer. In
between is suspicious. Both need quotients of two steps h that agree with each other. If a derivative is so small
that rounding takes up to a hundredth of it, only an error above that hundredth is detected. Other steps than the
usual 1e-4 to 1e-6 are used if these are inconclusive: 1e-7 and 1e-8 against kinks and curvature, 1e-3 and 1e-2
against rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlrun.checks.gradient.kinks import Winners
from dlrun.errors import first_line

__all__ = ["KINKED", "SMOOTH", "Comparison", "Move", "NotComparable", "Slopes", "gradients"]

WRONG, KINKED, SMOOTH = 1e-2, 1e-4, 1e-7
STEPS, FINER, COARSER = (1e-5, 1e-6, 1e-4), (1e-7, 1e-8), (1e-3, 1e-2)
LADDER = sorted((*STEPS, *FINER, *COARSER), reverse=True)
GROUP = 64  # with more, tracing a wrong one takes more passes
FLOOR = 4.0  # the rounding of a quotient has the deviation of the loss over 2^½·h: this is over five of them
POWER = 1e-2  # a comparison is conclusive if rounding is at most this share of the derivative: WRONG needs it


class NotComparable(Exception):
    """The loss has no difference quotient; the message is the reason."""


@dataclass(frozen=True)
class Move:
    """A step of length h along one entry of a tensor, or of h·n^¼ along a random direction of its n entries.

    n^¼ is about the norm of a tensor of trained weights (He: variance 2/m), so that h is a relative step.
    """

    name: str
    entry: tuple[int, ...] | None
    seed: int = 0
    slope: float = 0.0  # of the loss along the move, from autograd
    sign: float = 1.0  # makes the slope positive, so that slopes of a group do not cancel

    def direction(self, like: Tensor) -> Tensor:
        """The direction as a tensor; a scalar for one entry."""
        if self.entry is not None:
            return torch.full((), self.sign, dtype=like.dtype, device=like.device)
        # drawn on the CPU, since generators of devices differ, and in float32, which takes a quarter of the time
        generator = torch.Generator().manual_seed(self.seed)
        v = torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.dtype)
        return v.mul_(self.sign * v.numel() ** 0.25 / v.norm().clamp_min(1e-30)).to(like.device)

    def __str__(self) -> str:
        if self.entry is None:
            return f"{self.name} along a random direction"
        return f"{self.name}[{','.join(map(str, self.entry))}]" if self.entry else self.name


@dataclass(frozen=True)
class Comparison:
    """Derivatives along some moves, from autograd and from differences, and reasons for a difference."""

    moves: tuple[Move, ...]
    analytic: float
    numeric: float
    h: float
    floor: float  # rounding error of numeric
    crossed: int  # winners that changed at x+h or x−h (C5)
    loose: int  # of these, the ones whose piece could not be held
    jump: float  # between the slopes on both sides of x
    state: str = ""  # fine, zero, kink, rough, suspicious or wrong

    @property
    def size(self) -> float:
        """The larger of |fa| and |fn|."""
        return max(abs(self.analytic), abs(self.numeric))

    @property
    def error(self) -> float:
        """|fa − fn| / max(|fa|, |fn|), 0 if both are 0."""
        return abs(self.analytic - self.numeric) / self.size if self.size else 0.0

    @property
    def excess(self) -> float:
        """The absolute difference that rounding does not explain."""
        return max(0.0, abs(self.analytic - self.numeric) - self.floor)

    @property
    def conclusive(self) -> bool:
        """Whether rounding is small enough, relative to the derivative, for a verdict."""
        return self.floor <= POWER * self.size

    @property
    def excused(self) -> bool:
        """Whether the kinks crossed and not held bend the loss enough to explain the difference (C5)."""
        return self.loose > 0 and abs(self.analytic - self.numeric) <= 2 * self.jump + self.floor


def gradients(value: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the derivatives of value by the parameters, 0 for unused ones; no `grad` is changed."""
    found: Sequence[Tensor | None] = [None] * len(parameters)
    if value.requires_grad:
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), found, strict=True)
    return {n: torch.zeros_like(p) if g is None else g.to_dense().double() for (n, p), g in pairs}


class Slopes:
    """Compares the derivatives of `loss`, a function of no arguments, by float64 `parameters` that it reads.

    `loss` must give the same value each time. Raises NotComparable when it does not, or is not in float64.
    """

    def __init__(
        self, loss: Callable[[], Tensor], parameters: Mapping[str, Tensor], deadline: float = float("inf")
    ) -> None:
        self.parameters, self.deadline, self.step = dict(parameters), deadline, STEPS[0]
        self._loss, self._graph, self.evaluations = loss, False, 0
        self.layers = max(1, sum(p.ndim > 1 for p in self.parameters.values()))
        try:
            with torch.enable_grad(), Winners(None, self.parameters.values()) as self.seen:
                value = loss()
            self.gradients = gradients(value, self.parameters)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
            raise NotComparable(f"a float64 copy of the model does not run ({first_line(error)})") from error
        self.value = float(value.detach())
        if value.dtype != torch.float64 or self.seen.lossy:
            raise NotComparable(
                f"part of the model computes in less than float64 ({self.seen.lossy or 'the loss'}), "
                "too coarse for difference quotients"
            )
        self._repeatable()
        self.noise = self._rounding()
        # in the order of their use; last those whose use was not seen
        place = {key: i for i, key in enumerate(self.seen.order)}
        self.forward_order = sorted(self.parameters, key=lambda n: place.get(id(self.parameters[n]), len(place)))

    def _repeatable(self) -> None:
        for self._graph in (False, True):  # a model may behave differently without a graph
            again, *_ = self._evaluate()
            if not abs(again - self.value) > 1e-10 * abs(self.value):  # NaN is reported by the caller
                return
        raise NotComparable(
            f"two passes with the same weights, samples and seed give {self.value:.10g} and {again:.10g}: "
            "the model keeps a counter, or draws random numbers that torch, numpy and random do not seed"
        )

    @torch.no_grad()
    def _rounding(self) -> float:
        """Standard deviation of the loss from rounding, by differences of high order over tiny steps.

        Moré & Wild 2011, "Estimating computational noise": a difference of order k removes what is smooth, and
        independent errors of deviation σ leave one of σ·((2k)!/(k!)²)^½.
        """
        saved = {n: p.clone() for n, p in self.parameters.items()}
        values = [self.value]
        for step in range(1, 7):
            for n, p in self.parameters.items():
                p.copy_(saved[n]).mul_(1 + step * 1e-10)
            values.append(self._evaluate()[0])
        for n, p in self.parameters.items():
            p.copy_(saved[n])
        table = torch.tensor(values, dtype=torch.float64)
        spreads = [(table.diff(n=k).square().mean() / math.comb(2 * k, k)).sqrt().item() for k in (3, 4)]
        return max(*spreads, torch.finfo(torch.float64).eps * abs(self.value))

    def _evaluate(self, hold: bool = False) -> tuple[float, int, int]:
        """The loss, how many winners moved, and how many of these could not be held."""
        self.evaluations += 1
        with torch.set_grad_enabled(self._graph), Winners(self.seen.winners, hold=hold) as seen:
            value = float(self._loss().detach())
        return value, seen.moved, seen.moved - seen.held

    def entry(self, name: str, index: int) -> Move:
        """The move along the entry at a flat index."""
        gradient = self.gradients[name]
        entry = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), gradient.shape))
        return self._signed(Move(name, entry), float(gradient[entry]))

    def direction(self, name: str, seed: int = 0) -> Move:
        """The move along a random direction through the whole tensor."""
        move = Move(name, None, seed)
        gradient = self.gradients[name]
        return self._signed(move, float((gradient * move.direction(gradient)).sum()))

    @staticmethod
    def _signed(move: Move, slope: float) -> Move:
        return Move(move.name, move.entry, move.seed, abs(slope), -1.0 if slope < 0 else 1.0)

    def compare(self, moves: Sequence[Move]) -> Iterator[Comparison]:
        """Compare all moves, those with slopes of similar size together; stops early at the deadline."""
        ordered = sorted(moves, key=lambda m: -m.slope)
        zero = [m for m in ordered if m.slope <= self.rounding(COARSER[-1]) / POWER]
        rest = ordered[: len(ordered) - len(zero)]
        for some in (rest, zero):
            for first in range(0, len(some), GROUP):
                yield from self._group(some[first : first + GROUP])

    def rounding(self, h: float) -> float:
        """Rounding error of a difference quotient of step h."""
        return FLOOR * self.noise / h

    def _group(self, moves: Sequence[Move]) -> Iterator[Comparison]:
        if time.perf_counter() > self.deadline:
            return
        if len(moves) == 1:
            yield self._alone(moves[0])
            return
        found = self._closer(moves)
        if found.state:
            yield found
            return
        half = len(moves) // 2
        yield from self._group(moves[:half])
        yield from self._group(moves[half:])

    def _closer(self, moves: Sequence[Move]) -> Comparison:
        """Compare a group with smaller and smaller steps, as long as each one reduces the difference by much."""
        steps = [h for h in LADDER if self._clear(h, moves[-1].slope)]
        begin = next((h for h in reversed(steps) if h >= self.step), STEPS[0])
        found = self._judged(self.measure(moves, begin))
        for h in (s for s in steps if s < begin and not found.state):
            finer = self._judged(self.measure(moves, h))
            bent = finer if finer.state else self._judged(_straightened(found, finer))
            if bent.state:
                self.step = h if finer.state else found.h  # later moves need similar steps
                return bent
            if finer.excess > found.excess / 10:
                break  # the difference is not due to curvature
            found = finer
        return found

    def _clear(self, h: float, weakest: float) -> bool:
        """Whether rounding at step h is small enough to compare; steps below the usual ones must be exact."""
        return self.rounding(h) <= (POWER if h >= min(STEPS) else KINKED) * weakest

    def _alone(self, move: Move) -> Comparison:
        tried: list[Comparison] = []
        first = max(self.step, min(STEPS))
        for h in dict.fromkeys((first, *STEPS[:2], *FINER, STEPS[2], *COARSER)):
            inconclusive = not any(c.conclusive for c in tried)
            if tried and ((inconclusive and h < tried[0].h) or (h in COARSER and not inconclusive)):
                continue  # smaller steps help against kinks and curvature, larger ones against rounding
            tried.append(self._judged(self.measure([move], h)))
            if tried[-1].state:
                return tried[-1]
            bad = _settled(tried) if min(c.h for c in tried) <= 1e-6 else None
            if bad is not None and not bad.loose and not self._bends(move, bad):
                return bad
        conclusive = [c for c in tried if c.conclusive]
        if not conclusive:
            best = min(tried, key=lambda c: c.excess)
            return replace(best, state="zero" if best.excess == 0 else "rough")
        best = min(conclusive, key=lambda c: c.excess / c.size)
        return replace(best, state="kink") if best.excused else _settled(tried) or replace(best, state="rough")

    def _bends(self, move: Move, bad: Comparison) -> bool:
        """Whether finer steps are closer to autograd: to large steps a batch norm of three values looks like a jump."""
        finer = (self.measure([move], h) for h in FINER)
        return any(abs(c.analytic - c.numeric) + c.floor < abs(bad.analytic - bad.numeric) / 2 for c in finer)

    def _judged(self, c: Comparison) -> Comparison:
        """Set the state to fine or zero if that holds for every move of the comparison."""
        weakest = min(m.slope for m in c.moves)
        limit = KINKED if c.loose else min(KINKED, SMOOTH * self.layers)
        if c.excess == 0 and c.analytic <= self.rounding(COARSER[-1]) / POWER * len(c.moves):
            return replace(c, state="zero")
        if c.floor <= POWER * weakest and c.excess <= limit * weakest:
            return replace(c, state="fine")
        return c

    def reaches(self, name: str, h: float = 0.1) -> bool:
        """Whether the loss changes at all when the tensor takes a large step."""
        c = self.measure([self.direction(name)], h, hold=False)
        return max(abs(c.numeric), c.jump) * h > 1e3 * self.noise  # a norm may divide by a small number

    @torch.no_grad()
    def measure(self, moves: Sequence[Move], h: float, hold: bool = True) -> Comparison:
        """Compare the sum of the moves' derivatives with the centred difference of step h."""
        views = [p if m.entry is None else p[m.entry] for m in moves for p in [self.parameters[m.name]]]
        saved = [v.clone() for v in views]
        steps = [m.direction(self.parameters[m.name]) for m in moves]
        sides = []
        try:
            for side in (h, -h):
                for view, step in zip(views, steps, strict=True):
                    view.add_(step, alpha=side)
                sides.append(self._evaluate(hold))
                for view, before in reversed(list(zip(views, saved, strict=True))):
                    view.copy_(before)
        finally:
            for view, before in zip(views, saved, strict=True):
                view.copy_(before)
        (plus, moved, loose), (minus, *also) = sides
        return Comparison(
            moves=tuple(moves),
            analytic=sum(m.slope for m in moves),
            numeric=(plus - minus) / (2 * h),
            h=h,
            floor=self.rounding(h),
            crossed=moved + also[0],
            loose=loose + also[1],
            jump=abs(plus + minus - 2 * self.value) / h,
        )


def _straightened(coarse: Comparison, fine: Comparison) -> Comparison:
    """Remove the curvature from two quotients (Richardson): if no kink is loose, their error grows with h²."""
    if coarse.loose or fine.loose:
        return fine
    square = (coarse.h / fine.h) ** 2
    return replace(
        fine,
        numeric=(square * fine.numeric - coarse.numeric) / (square - 1),
        floor=(square * fine.floor + coarse.floor) / (square - 1),
        crossed=max(coarse.crossed, fine.crossed),
    )


def _settled(tried: Sequence[Comparison]) -> Comparison | None:
    """Wrong or suspicious if the two smallest conclusive steps agree with each other but not with autograd.

    Larger steps may agree by chance, or skip the same feature: a batch norm of few values bends within 1e-5.
    """
    finest = sorted((c for c in tried if c.conclusive), key=lambda c: c.h)[:2]
    if len(finest) < 2 or finest[0].excess == 0:
        return None
    first, second = finest
    if abs(first.numeric - second.numeric) > abs(first.analytic - first.numeric) / 10:
        return None
    found = replace(second, crossed=max(first.crossed, second.crossed), loose=max(first.loose, second.loose))
    return replace(found, state="wrong" if second.excess > WRONG * second.size else "suspicious")
