"""C5: which side of every kink a forward pass took, recorded by a torch-function mode in modules and functions.

Reached by `dlrun check check.only=[gradient]`. A kink is a point where a derivative jumps: ReLU and similar
functions, max pooling, maxout, hinge, |x|, comparisons. Each has a winner, the piece in force; if winners differ
between x and x±h, the difference quotient straddles a kink. Most functions can be held to the piece in force at x,
which removes the kink. The mode also keeps the pass in float64 (`x.float()` returns doubles), and records what cuts
gradients, such as `item()`. Cannot detect: the inside of compiled code (TorchScript, custom kernels), or of the
rarer functions of torch.nn.functional that are written in Python and not in `WINNERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["STEPS", "Winners"]

_LOW = (torch.float32, torch.float16, torch.bfloat16)


def _side(x: Tensor, edges: Sequence[float]) -> Tensor:
    """Which piece every entry is on: even between edges, odd on an edge."""
    return torch.stack([(x > e).to(torch.int8) + (x >= e) for e in edges]).sum(0, dtype=torch.int8)


def _clamp(x: Tensor, min: Any = None, max: Any = None, **_: Any) -> Tensor:
    low = torch.zeros_like(x, dtype=torch.int8) if min is None else (x > min).to(torch.int8)
    return low if max is None else low + (x > max)


def _larger(x: Tensor, other: Tensor, **_: Any) -> Tensor:
    return (x > other).to(torch.int8) + (x >= other)


def _max(x: Tensor, other: Any = None, *_: Any, **named: Any) -> Tensor:
    other = named.get("other", named.get("dim", other))
    return _larger(x, other) if isinstance(other, Tensor) else x.argmax(other)


def _min(x: Tensor, other: Any = None, *_: Any, **named: Any) -> Tensor:
    other = named.get("other", named.get("dim", other))
    return _larger(x, other) if isinstance(other, Tensor) else x.argmin(other)


def _norm(x: Tensor, p: Any = 2, *_: Any, **named: Any) -> Tensor:
    order = named.get("ord", p)
    if order in (float("inf"), float("-inf"), "inf"):
        return x.abs().argmax()
    return x > 0 if order == 1 else torch.zeros(0)


def _pool(name: str) -> Callable[..., Tensor]:
    with_indices = getattr(F, f"{name}_with_indices")

    def winner(x: Tensor, *args: Any, return_indices: bool = False, **named: Any) -> Tensor:
        return with_indices(x, *args, **named)[1]  # type: ignore[no-any-return]

    return winner


def _multi_margin(x: Tensor, y: Tensor, p: int = 1, margin: float = 1.0, *_: Any, **__: Any) -> Tensor:
    return x - x.gather(-1, y.unsqueeze(-1)) + margin > 0


# name of a function of one entry, continuous and bent at edges -> these, from its arguments
EDGES: dict[str, Callable[..., tuple[float, ...]]] = {
    **dict.fromkeys(
        ("relu", "leaky_relu", "prelu", "elu", "celu", "selu", "abs", "absolute", "softsign"),
        lambda *_, **__: (0.0,),
    ),
    "relu6": lambda *_, **__: (0.0, 6.0),
    **dict.fromkeys(("hardswish", "hardsigmoid"), lambda *_, **__: (-3.0, 3.0)),
    "hardtanh": lambda x, min_val=-1.0, max_val=1.0, *_, **__: (min_val, max_val),
    "softshrink": lambda x, lambd=0.5, *_, **__: (-lambd, lambd),
    **dict.fromkeys(
        ("clamp", "clip"), lambda x, min=None, max=None, **_: tuple(e for e in (min, max) if e is not None)
    ),
    "clamp_min": lambda x, min, **_: (min,),
    "clamp_max": lambda x, max, **_: (max,),
}
# name of a torch function -> the winner, from its arguments
WINNERS: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("rrelu", "sign", "sgn"), lambda x, *_, **__: _side(x, (0.0,))),
    "threshold": lambda x, threshold, *_, **__: x > threshold,
    "_threshold": lambda x, threshold, *_, **__: x > threshold,
    "hardshrink": lambda x, lambd=0.5, *_, **__: _clamp(x, -lambd, lambd),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": lambda x, min, **_: x > min,
    "clamp_max": lambda x, max, **_: x > max,
    "max": _max,
    "min": _min,
    "amax": lambda x, dim=(), *_, **__: x == x.amax(dim, keepdim=True),
    "amin": lambda x, dim=(), *_, **__: x == x.amin(dim, keepdim=True),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), _larger),
    **dict.fromkeys(("norm", "linalg_vector_norm"), _norm),
    **dict.fromkeys(("l1_loss", "smooth_l1_loss", "huber_loss"), lambda x, y, *_, **__: x > y),
    "multi_margin_loss": _multi_margin,
    "hinge_embedding_loss": lambda x, y, margin=1.0, *_, **__: x < margin,
    "margin_ranking_loss": lambda a, b, y, margin=0.0, *_, **__: y * (a - b) < margin,
    **{
        f"{adaptive}max_pool{d}d{indices}": _pool(f"{adaptive}max_pool{d}d")
        for adaptive in ("", "adaptive_")
        for d in (1, 2, 3)
        for indices in ("", "_with_indices")
    },
}
STEPS = (
    "round",
    "floor",
    "ceil",
    "trunc",
    "sign",
    "sgn",
    "heaviside",
    "argmax",
    "argmin",
    "long",
    "int",
    "bool",
)
# functions whose result contains the winner: booleans, integers, indices
_OUTCOMES = {
    "gt",
    "lt",
    "ge",
    "le",
    "argsort",
    "argmax",
    "argmin",
    "round",
    "floor",
    "ceil",
    "trunc",
    "heaviside",
}
_SIDES = {"gt", "lt", "ge", "le"}
_INDICES = {"sort", "topk", "kthvalue", "median", "mode", "cummax", "cummin", "aminmax"}
_CUTS = {"detach", "detach_", "item", "tolist", "numpy", "__float__", "__array__", *STEPS}


class Winners(TorchFunctionMode):
    """Records the winners of one forward pass, or, given those of another pass, counts in `moved` how many differ.

    With `hold`, functions continue along the piece that was in force in the other pass, as if it had no end, and
    `held` counts the winners whose kink this removes. Excepted: ties, sorting, norms, functions with jumps.

    Without `others` it also records `cuts`, names of functions that block gradients; `lossy`, the first function
    that computes in less than float64; and `order`, the ids of `parameters` in the order of their first use.
    """

    def __init__(
        self, others: Sequence[Tensor] | None = None, parameters: Iterable[Tensor] = (), hold: bool = False
    ) -> None:
        super().__init__()
        self.others, self.hold = others, hold
        self.count, self.moved, self.held = 0, 0, 0
        self.winners: list[Tensor] = []
        self.cuts: dict[str, None] = {}  # a dict keeps the order
        self.order: dict[int, None] = {}
        self.lossy = ""
        self._parameters = {id(p) for p in parameters}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        args, named = self._doubles(name, args, kwargs or {})
        if name in ("float", "half", "bfloat16"):
            name, func = "double", Tensor.double
        if self.others is None:
            self._note(name, func, args, named)
        plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        real = bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point()
        piece = self._piece(plain, func, args, named) if real else None  # an in-place function overwrites its input
        result = func(*args, **named)
        if piece is not None and isinstance(result, Tensor):
            where, value, count = piece
            self.held += count
            with torch.no_grad():  # .data: an objective may differentiate this pass, which a counted change forbids
                result.data.copy_(torch.where(where, value, result))
        if real and plain in _OUTCOMES:
            before, moved = self._keep(result.detach().clone())  # a mask may be changed in place later
            if moved is not None and self.hold and name in _SIDES:
                self.held += int(moved.sum())
                return before.clone()
        elif real and plain in _INDICES and isinstance(result, tuple):
            self._keep(result[1])
        if self.others is None and not self.lossy and isinstance(result, Tensor) and result.dtype in _LOW:
            self.lossy = name if any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args) else ""
        return result

    @staticmethod
    def _doubles(name: str, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Replace a smaller dtype in the arguments by float64."""
        if any(isinstance(a, torch.dtype) and a in _LOW for a in args):
            args = tuple(torch.float64 if isinstance(a, torch.dtype) and a in _LOW else a for a in args)
        if isinstance(named.get("dtype"), torch.dtype) and named["dtype"] in _LOW:
            named = {**named, "dtype": torch.float64}
        return args, named

    def _note(self, name: str, func: Any, args: Any, named: dict[str, Any]) -> None:
        for value in (*args, *named.values()):
            for one in value if isinstance(value, (list, tuple)) else (value,):
                if id(one) in self._parameters:
                    self.order[id(one)] = None
        if args and isinstance(args[0], Tensor) and args[0].requires_grad and torch.is_grad_enabled():
            if name in _CUTS:
                self.cuts[name] = None
            elif name == "__get__" and func == Tensor.data.__get__:  # type: ignore[attr-defined]
                self.cuts["data"] = None

    @torch.no_grad()
    def _piece(self, name: str, func: Any, args: Any, named: dict[str, Any]) -> _Piece | None:
        """Record the winner; return the piece that was in force if it changed and can be held."""
        plain = {k: v for k, v in named.items() if k not in ("inplace", "out")}
        edges = EDGES[name](*args, **plain) if name in EDGES else ()
        if edges and not any(isinstance(e, Tensor) for e in edges):
            before, moved = self._keep(_side(args[0], edges))
            return _mirrored(func, args, plain, edges, before) if moved is not None and self.hold else None
        if name not in WINNERS:
            return None
        before, moved = self._keep(WINNERS[name](*args, **plain))
        return _followed(name, args, plain, before, moved) if moved is not None and self.hold else None

    def _keep(self, winner: Tensor) -> tuple[Tensor, Tensor | None]:
        """Record a winner; return that of the other pass, and a mask of differences if there are any, else None."""
        self.count += 1
        if self.others is None:
            self.winners.append(winner)
            return winner, None
        if self.count > len(self.others) or self.others[self.count - 1].shape != winner.shape:
            self.moved += 1  # the code took another path
            return winner, None
        before = self.others[self.count - 1]
        moved = before != winner
        count = int(moved.sum())
        self.moved += count
        return before, moved if count else None


# a mask of outputs, their values if the piece of the other pass had no end, how many winners are held
_Piece = tuple[Tensor, Tensor, int]


def _mirrored(func: Any, args: Any, named: dict[str, Any], edges: Sequence[float], before: Tensor) -> _Piece:
    """A function of one entry past its edge, 2·f(edge) − f(2·edge − x): exact if the piece is linear.

    An entry that was on an edge has no piece and is not held; neither is one that crossed two.
    """
    x = args[0]
    if len(edges) == 1:
        edge = torch.full_like(x, edges[0])
    else:
        at = torch.tensor(edges, dtype=x.dtype, device=x.device)
        edge = at[(x.unsqueeze(-1) - at).abs().argmin(-1)]
    back = 2 * edge - x
    held = (before != _side(x, edges)) & (before == _side(back, edges))
    return held, 2 * func(edge, *args[1:], **named) - func(back, *args[1:], **named), int(held.sum())


def _followed(name: str, args: Any, named: dict[str, Any], before: Tensor, moved: Tensor) -> _Piece | None:
    """A maximum that keeps its winner though another entry is larger now; None for other functions."""
    x = args[0]
    if "max_pool" in name:
        d = int(name[name.index("pool") + 4])
        return moved, x.flatten(-d).gather(-1, before.flatten(-d)).reshape(before.shape), int(moved.sum())
    if name == "amax":
        dim = named.get("dim", args[1] if len(args) > 1 else ())
        keep = bool(named.get("keepdim", args[2] if len(args) > 2 else False))
        value = torch.where(before, x, 0.0).sum(dim, keep) / before.sum(dim, keep)
        return torch.ones_like(value, dtype=torch.bool), value, int(moved.sum())
    other = named.get("other", args[1] if len(args) > 1 else None)
    if name in ("maximum", "minimum", "fmax", "fmin", "max", "min") and isinstance(other, Tensor):
        held = moved & (before != 1)  # 1 is a tie: no winner
        return held, torch.where((before == 2) == ("ax" in name), x, other), int(held.sum())
    return None
