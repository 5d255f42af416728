"""Weights, gradients and moments divided among the processes of a training (`trainer.sharding=fsdp2`, O10).

torch's fully_shard (FSDP2; Zhao et al. 2023, "PyTorch FSDP: experiences on scaling fully sharded data parallel"):
a process keeps a part of each tensor along its first dimension, collects a layer when it is computed, and gets the
gradient of its part alone. The model that was built stays beside it: it is whole between epochs, for evaluation and
checkpoints, which so are those of any run, and takes no memory while steps are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dlrun.config import ranks
from dlrun.errors import UserError, first_line
from dlrun.training.copies import copied

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from dlrun.training.experiment import Experiment

__all__ = ["Shards", "Whole", "beside", "local", "of", "whole"]

UNITS = 16  # a layer that is collected by itself has this part of the weights or more: few and large messages


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that processes divide, which all of them ask for; any other tensor itself."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process keeps, in the same memory; any other tensor itself."""
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def of(exp: Experiment) -> Whole | Shards:
    """Return what this process trains of an experiment."""
    shards = None if exp.group is None else exp.group.shards
    return Whole(exp) if shards is None else shards


@contextmanager
def beside(exp: Experiment) -> Iterator[None]:
    """Let the optimizer load a state to the processor in the `with` block, if processes will divide it.

    On a device there may be no room for all of it.
    """
    if exp.cfg.trainer.sharding == "none" or ranks.own() is None:
        yield
        return
    optimizer = exp.optimizer
    weights: dict[Tensor, Tensor] = {nn.Parameter(torch.empty_like(p, device="cpu")): p for p in Whole(exp).parameters}
    twins = {p: twin for twin, p in weights.items()}
    for group in optimizer.param_groups:
        group["params"] = [twins[p] for p in group["params"]]
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            group["params"] = [weights[twin] for twin in group["params"]]
        state = {weights.get(p, p): entries for p, entries in optimizer.state.items()}
        optimizer.state.clear()
        optimizer.state.update(state)


class Whole:
    """All weights of an experiment, as the optimizer changes them; with the members of Shards."""

    def __init__(self, exp: Experiment) -> None:
        self.model, self.average, self._optimizer = exp.model, exp.average, exp.optimizer

    @property
    def parameters(self) -> list[Tensor]:
        """The weights that train, in the optimizer's order."""
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @property
    def optimizer_state(self) -> dict[str, Any]:
        """The state of the optimizer, for a checkpoint."""
        return self._optimizer.state_dict()

    def clear(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def hand_over(self) -> None:
        """The optimizer has the gradients."""


class Shards:
    """The parts of a model, of its average and of the optimizer's state that this process trains.

    Made of an experiment whose weights are whole. Its optimizer, which must treat each number by itself, then changes
    the parts, as plain tensors in the same memory.
    """

    def __init__(self, exp: Experiment, rank: int, world: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self._mesh, self._rank, self._world = init_device_mesh(exp.device.type, (world,)), rank, world
        self._optimizer, self._device = exp.optimizer, exp.device
        self.model = _divided(exp.model, self._mesh)
        self.average = None if exp.average is None else _divided(exp.average, self._mesh)
        self._pairs = [(exp.model, self.model)]
        if exp.average is not None and self.average is not None:
            self._pairs.append((exp.average, self.average))
        self._strides = list[tuple[int, ...]]()  # of the whole weights that the optimizer changes
        self.parameters, self._own = self._handed(exp.model)
        self._layouts = [(p, p.shape, p.stride()) for plain, _ in self._pairs for p in plain.parameters()]
        self._whole, self.optimizer_state = True, dict[str, Any]()

    def _handed(self, model: nn.Module) -> tuple[list[Tensor], list[nn.Parameter]]:
        """Give the optimizer the parts in place of the whole weights; both as they were, and what it has."""
        twins = dict(zip(model.parameters(), self.model.parameters(), strict=True))
        parts, own, state = list[Tensor](), list[nn.Parameter](), dict(self._optimizer.state)
        self._optimizer.state.clear()
        for group in self._optimizer.param_groups:
            before, group["params"] = group["params"], []
            for p in before:
                part = nn.Parameter(local(twins[p].detach()), requires_grad=p.requires_grad)
                group["params"].append(part)
                parts.append(twins[p])
                self._strides.append(p.stride())
                own.append(part)
                if p in state:
                    self._optimizer.state[part] = {key: self._mine(v, group) for key, v in state[p].items()}
        if slow := getattr(self._optimizer, "slow", None):  # of Lookahead
            slow[:] = map(self._mine, slow)
        return parts, own

    def scatter(self) -> None:
        """Take the parts of the whole weights, and free these."""
        with torch.no_grad():
            for plain, parts in self._pairs:
                for p, part in zip(plain.parameters(), parts.parameters(), strict=True):
                    local(part).copy_(self._mine(p))
                _copy_buffers(plain, parts)
        for p, _, _ in self._layouts:
            p.data = p.new_empty(0)
        self._whole, self.optimizer_state = False, {}

    def gather(self) -> None:
        """Make the weights whole again in every process, and the optimizer's state in the first; once per `scatter`."""
        if self._whole:
            return
        for p, shape, stride in self._layouts:
            p.data = torch.empty_strided(shape, stride, dtype=p.dtype, device=p.device)
        with torch.no_grad():
            for plain, parts in self._pairs:
                for p, part in zip(plain.parameters(), parts.parameters(), strict=True):
                    p.copy_(whole(part))
                    p.requires_grad_(part.requires_grad)
                _copy_buffers(parts, plain)
        of = {id(entry): k for k, p in enumerate(self._own) for entry in self._optimizer.state.get(p, {}).values()}
        of |= {id(entry): k for k, entry in enumerate(getattr(self._optimizer, "slow", ()))}
        self.optimizer_state = self._gathered(self._optimizer.state_dict(), of)
        self._whole = True

    def clear(self) -> None:
        """Forget the gradients, and follow the schedule, which lets the optimizer's weights train or not."""
        for part, own in zip(self.parameters, self._own, strict=True):
            part.grad = own.grad = None
            part.requires_grad_(own.requires_grad)

    def hand_over(self) -> None:
        """Give the optimizer the gradients."""
        for part, own in zip(self.parameters, self._own, strict=True):
            own.grad = None if part.grad is None else local(part.grad)

    def _mine(self, entry: Any, group: Mapping[str, Any] | None = None) -> Any:
        """A copy of the rows of this process, of which there may be none; a number, which its group wants somewhere."""
        if not isinstance(entry, Tensor):
            return entry
        if not entry.ndim:
            there = group is not None and (group.get("fused") or group.get("capturable"))
            return entry.to(self._device) if there else entry
        rows = torch.chunk(entry.detach(), self._world)
        mine = rows[self._rank] if self._rank < len(rows) else entry.detach()[:0]
        return mine.to(self._device, copy=True, memory_format=torch.contiguous_format)

    def _gathered(self, node: Any, of: Mapping[int, int]) -> Any:
        """A state with whole tensors, on the processor; `of` has the weights of those that are divided, by identity.

        They lie in memory as the weights do, in whose order the kernels of optimizers read them.
        """
        from torch.distributed.tensor import DTensor, Shard

        if isinstance(node, dict):
            return {key: self._gathered(value, of) for key, value in node.items()}
        if isinstance(node, list):
            return [self._gathered(value, of) for value in node]
        if not isinstance(node, Tensor) or not node.ndim or id(node) not in of:
            return node
        like = self.parameters[of[id(node)]]
        options: dict[str, Any] = {"run_check": False, "shape": like.shape, "stride": like.stride()}
        found = whole(DTensor.from_local(node, self._mesh, [Shard(0)], **options))
        if self._rank:
            return None
        return torch.empty_strided(found.shape, self._strides[of[id(node)]], dtype=found.dtype).copy_(found)


def _divided(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """A copy of a model whose weights are divided."""
    from torch.distributed.fsdp import fully_shard

    parts = copied(model).to(memory_format=torch.contiguous_format)
    try:
        for unit in [*_units(parts), parts]:
            divided = fully_shard(unit, mesh=mesh)
            # every version of gloo has sums, and NCCL has means as well
            divided.set_force_sum_reduction_for_comms(mesh.device_type == "cpu")
    except (ValueError, AssertionError, NotImplementedError) as error:  # such as weights without a dimension
        what = f"{type(model).__name__} cannot be divided: {first_line(error)[:200]}"
        raise UserError(f"trainer.sharding=fsdp2: {what}; type trainer.sharding=none") from error
    return parts


def _units(model: nn.Module) -> list[nn.Module]:
    """The layers that are collected by themselves, inner ones first: parts of sequences and lists, which are called.

    A layer that is not called, such as one whose weights another one reads, has to stay with those around it.
    """
    if len(list(model.parameters())) < len(list(model.named_parameters(remove_duplicate=False))):
        return []  # a weight of two layers has to be there for both
    least = sum(p.numel() for p in model.parameters()) / UNITS
    found: list[nn.Module] = []

    def left(module: nn.Module, called: bool) -> int:
        """How many weights of a module are in no unit."""
        inside = isinstance(module, (nn.Sequential, nn.ModuleList))
        count = sum(p.numel() for p in module.parameters(recurse=False))
        count += sum(left(child, inside) for child in module.children())
        if called and count >= least and not isinstance(module, nn.ModuleList):
            found.append(module)
            return 0
        return count

    left(model, called=False)
    return found


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    for one, other in zip(source.buffers(), target.buffers(), strict=True):
        other.copy_(one)
