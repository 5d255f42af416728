"""What a forward pass calls, and from which line of the user's code (`dlrun check`).

For the checks that watch a forward pass: functions of torch with their arguments and results, and new parameters.
"""

from __future__ import annotations

import dis
import functools
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional as F
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

__all__ = ["Call", "Place", "Trace", "below", "created", "elsewhere", "tensors", "writes"]

HERE = Path(__file__).resolve()
STANDARD = sysconfig.get_paths()["stdlib"]
TORCH = str(Path(torch.__file__).parent) + os.sep
QUIET = {"__get__", "dim", "size", "_set_grad_enabled"}  # reads no value, or that of an attribute such as .data
DIRECT = ("torch/overrides.py", "torch/nn/functional.py")  # between a call in the user's code and its record


class Place(NamedTuple):
    """A line of the user's code, such as `net.py:23`.

    used: whether it uses what the call on it returns
    direct: whether that call is one of torch, and not of a module or of a function that makes it
    near: whether it is one of torch or of a module of torch, so that no other library computes below this line
    """

    line: str
    used: bool
    direct: bool
    near: bool


@dataclass(eq=False)
class Call:
    """A call of a function of torch: `result` is the first tensor that it returned."""

    name: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    place: Place | None  # None if no code of the user was on the way
    result: Tensor
    node: Node | None  # the backward node of the result
    readers: list[Call] = field(default_factory=list)  # the later calls that were given the result
    taken: bool = False  # whether one of them returned no tensor, such as item()

    def option(self, name: str, position: int, default: Any = None) -> Any:
        """Return an argument by its name or its position."""
        return self.kwargs.get(name, self.args[position] if len(self.args) > position else default)


class Trace(TorchFunctionMode):
    """Records the calls of functions of torch, in modules and outside of them, that return a tensor.

    `change` may replace the arguments of a call before it is made.
    """

    def __init__(self, change: Callable[[Any, Sequence[Any], dict[str, Any]], Any] | None = None) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._change = change
        self._made: dict[int, Call] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        made = func(*args, **kwargs) if self._change is None else self._change(func, args, kwargs)
        result = made[0] if isinstance(made, tuple) and made else made
        if name in QUIET and not isinstance(result, Tensor):
            return made
        given = [c for t in tensors((args, kwargs)) if (c := self._made.get(id(t))) is not None]
        if isinstance(result, Tensor):
            call = Call(name, args, kwargs, _place(), result, result.grad_fn)
            for source in given:
                source.readers.append(call)
            self.calls.append(call)
            self._made[id(result)] = call
        for source in given:
            source.taken = source.taken or not isinstance(result, Tensor)
        return made


def tensors(found: Any, depth: int = 4) -> Iterator[Tensor]:
    """Return the tensors in nested lists, tuples and dicts."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, (list, tuple, dict)) and depth:
        for item in found.values() if isinstance(found, dict) else found:
            yield from tensors(item, depth - 1)


def writes(name: str, args: Sequence[Any], kwargs: dict[str, Any], where: Place | None) -> bool:
    """Whether a call computes in place, on a tensor that is no view, and its result is used.

    A result that is not used, as in the statement x.relu_(), shows that the change is meant.
    """
    first = args[0] if args else None
    if not isinstance(first, Tensor) or not first.is_floating_point() or first._is_view():
        return False
    if where is not None and not where.used:
        return False
    if kwargs.get("inplace") is True:
        return True
    return where is not None and where.direct and _plain(name) is not None and not isinstance(first, nn.Parameter)


def elsewhere(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Make a call; one that computes in place, and `writes` so, into a new tensor instead."""
    name = getattr(func, "__name__", "")
    if not writes(name, args, kwargs, _place()):
        return func(*args, **kwargs)
    if kwargs.get("inplace") is True:
        return func(*args, **(kwargs | {"inplace": False}))
    plain = _plain(name)
    assert plain is not None
    return plain(*args, **kwargs)


def _plain(name: str) -> Callable[..., Any] | None:
    """The function that computes into a new tensor what this one computes in place."""
    if not name.endswith("_") or name.endswith("__") or name == "bernoulli_":
        return None
    return getattr(Tensor, name[:-1], None) or getattr(F, name[:-1], None)


@contextmanager
def created() -> Iterator[list[tuple[str, Place | None]]]:
    """Collect the parameters that are created in the block: the class of their module, and the line."""
    found: list[tuple[str, Place | None]] = []

    def note(module: nn.Module, _name: str, parameter: Any) -> None:
        if parameter is not None:
            found.append((type(module).__name__, _place()))

    handle = hooks.register_module_parameter_registration_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def _place() -> Place | None:
    """Return the innermost line of the user's code between here and the check; None if there is none."""
    frame: FrameType | None = sys._getframe(1)
    direct = near = True
    while frame is not None:
        file = frame.f_code.co_filename
        kind = _kind(file)
        if kind == "check":
            return None
        if kind == "user":
            return Place(f"{Path(file).name}:{frame.f_lineno}", _used(frame.f_code, frame.f_lasti), direct, near)
        direct = direct and (kind == "here" or file.endswith(DIRECT))
        near = near and (kind == "here" or file.startswith(TORCH))
        frame = frame.f_back
    return None


@functools.cache
def _kind(file: str) -> str:
    path = Path(file)
    if "site-packages" in path.parts or "dist-packages" in path.parts or file.startswith((STANDARD, "<")):
        return "library"
    path = path.resolve()
    if path.parent == HERE.parent:
        return "here" if path == HERE else "check"
    return "library" if HERE.parents[1] in path.parents or not path.is_file() else "user"


@functools.cache
def _used(code: CodeType, at: int) -> bool:
    """Whether the instruction after a call keeps its result, instead of dropping it as an expression statement does."""
    following = (i.opname for i in dis.get_instructions(code) if i.offset > at and i.opname != "CACHE")
    return next(following, "") != "POP_TOP"


def below(roots: Sequence[Tensor]) -> set[Node]:
    """Return the backward nodes that a backward pass from these tensors reaches."""
    todo = [t.grad_fn for t in roots if t.grad_fn is not None]
    seen = set(todo)
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                todo.append(node)
    return seen
