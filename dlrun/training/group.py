"""The processes that train one run together (`dlrun train trainer.devices=2`, torchrun, Slurm; O10).

torch's DistributedDataParallel averages the gradients, gloo on processors and NCCL on GPUs. All take the same batches:
of each one a process makes its part of the images, whose draws depend on their numbers alone, and what is a mean over
the batch stays one. So the number of processes changes a result by rounding only, and by batch norm, of which each
part normalises itself unless trainer.sync_batchnorm synchronises it.

Words between processes are JSON, weights a checkpoint: nothing is unpickled.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import socket
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dlrun.config.ranks import Rank
from dlrun.data.batches import Batch, Batches, Mix
from dlrun.training import checkpoint, norms, synced
from dlrun.training.meeting import Meeting
from dlrun.training.random_state import seed_everything
from dlrun.training.sharded import Shards

if TYPE_CHECKING:
    from dlrun.training.checkpoint import State
    from dlrun.training.experiment import Experiment

__all__ = ["Group"]

T = TypeVar("T")
PIECE = 1 << 26  # bytes of a message that lie on a device at once
LEAST = 2  # samples of a part, which batch norm needs; a smaller batch is computed whole by every process
SILENCE = timedelta(hours=1)  # between two processes, until they give up: one of them may be writing to a slow disk


class Group(Meeting):
    """This process among those that train together, from `join` to `part`."""

    def __init__(self, place: Rank, within: timedelta | None = None) -> None:
        super().__init__(place, within)
        self._device = torch.device("cpu")
        self._lead = False
        self._wrapped: nn.Module = nn.Identity()
        self.shards: Shards | None = None  # with trainer.sharding

    def join(self, exp: Experiment, state: State | None) -> tuple[Experiment, State]:
        """Connect with the others, and return the experiment that this process trains and where it is.

        The first process has the state, and gives all others its weights. Raises UserError on other data.
        """
        if state is not None:
            self.begin(exp.cfg.plain)
        self._device = exp.device
        kind = "nccl" if exp.device.type == "cuda" else "gloo"
        dist.init_process_group(kind, store=self.store, rank=self.rank, world_size=self.world, timeout=SILENCE)
        if self.told(_fingerprint(exp)) != _fingerprint(exp):
            from dlrun.errors import UserError

            what = f"the data on {socket.gethostname()} are not those of process 0"
            raise UserError(f"{what}; give every machine the same files, such as on a shared disk")
        buffer = io.BytesIO()
        if state is not None:
            torch.save(checkpoint.snapshot(exp, state), buffer)
        content = self._shared(buffer.getvalue())
        if state is None:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            exp.model.load_state_dict(found["model"])
            state = checkpoint.continued(found, exp)
        trainer = exp.cfg.trainer
        if synced.wanted(trainer.sync_batchnorm, exp.model, trainer.batch_size // self.world):
            for model in (exp.model, exp.average):
                if model is not None:
                    synced.convert(model, exp.device)
        if trainer.sharding != "none":
            self.shards = Shards(exp, self.rank, self.world)
        mixing = getattr(exp.objective, "mixing", None)
        self._lead = mixing is not None and bool(getattr(mixing, "active", True))
        train = copy.copy(exp.train)
        train.own = self.own
        return replace(exp, group=self, train=train), state

    def part(self) -> None:
        """Disconnect from the others, after training."""
        self._wrapped, self.shards = nn.Identity(), None
        if dist.is_initialized():
            dist.destroy_process_group()

    def leave(self) -> None:
        """Disconnect, and end."""
        self.part()
        super().leave()

    # batches

    def own(self, samples: Tensor) -> Tensor:
        """Return the samples of a batch (N,) that this process makes.

        If images are mixed, each with the one before it, the one before its part comes first.
        """
        start, end = self._part(len(samples))
        mine = samples[start:end]
        return (
            torch.cat([samples[start - 1 : start or None], mine]) if self._lead and len(mine) < len(samples) else mine
        )

    def placed(self, batch: Batch) -> Batch:
        """Return a batch whose `sample` has all samples with that number, and its own alone."""
        assert batch.sample is not None
        return replace(batch, total=len(batch.sample), sample=self.own(batch.sample))

    def trimmed(self, batch: Batch) -> Batch:
        """Return a batch without the image that was there to be mixed."""
        start, end = self._part(batch.total)
        if len(batch) == end - start:
            return batch
        index, weight, mix = batch.index, batch.weight, batch.mix
        if mix is not None:
            mix = Mix(mix.y[1:], None if mix.index is None else mix.index[1:], mix.share[1:], mix.classes)
        index, weight = (None if part is None else part[1:] for part in (index, weight))
        return replace(batch, x=batch.x[1:], y=batch.y[1:], index=index, weight=weight, mix=mix, sample=None)

    def divisor(self, batch: Batch) -> int:
        """Return the samples of all parts: those of the batch, or more if every process computes all of it."""
        return batch.total if self._divided(batch.total) else batch.total * self.world

    def parts(self, batch: Batch, accumulate: int) -> int:
        """Return in how many parts each process computes its part, the same number in all."""
        return norms.parts(batch.total // self.world if self._divided(batch.total) else batch.total, accumulate)

    def numbered(self, parts: list[Batch]) -> list[Batch]:
        """Return parts of this process's part with their numbers among those of all, which their draws depend on."""
        first = self.rank * len(parts) if self._divided(parts[0].total) else 0
        return [replace(part, part=first + k) for k, part in enumerate(parts)]

    def _divided(self, total: int) -> bool:
        return total >= LEAST * self.world

    def _part(self, total: int) -> tuple[int, int]:
        if not self._divided(total):
            return 0, total
        return total * self.rank // self.world, total * (self.rank + 1) // self.world

    # steps

    def begin_epoch(self, exp: Experiment, epoch: int) -> None:
        """Wrap the model for the weights that train in this epoch, and seed what the model draws.

        Wrapped anew, since torch divides gradients otherwise after the first step: a resumed run then has the same
        sums, bit for bit. The first process keeps its random state, which a checkpoint has.
        """
        if self.rank:
            digest = hashlib.sha256(f"{exp.cfg.seed} process {self.rank} {epoch}".encode()).digest()
            seed_everything(int.from_bytes(digest[:7], "big"))
        if self.shards is not None:
            self.shards.scatter()
            self._wrapped = self.shards.model
            return
        model = exp.model if exp.compiled is None else exp.compiled
        unused = self._unused(exp)
        with warnings.catch_warnings():  # torch 2.14 renamed broadcast_buffers, in part
            warnings.simplefilter("ignore", FutureWarning)
            self._wrapped = DistributedDataParallel(
                model, init_sync=False, broadcast_buffers=False, find_unused_parameters=unused
            )

    @property
    def stepped(self) -> nn.Module:
        """What training steps call."""
        return self._wrapped

    def syncing(self, last: bool) -> AbstractContextManager[Any]:
        """The context of a backward pass: gradients are averaged after the `last` part of a batch alone."""
        if self.shards is not None:
            self._wrapped.set_requires_gradient_sync(last)  # type: ignore[operator]
            return nullcontext()
        return nullcontext() if last else self._wrapped.no_sync()  # type: ignore[operator]

    def summed(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the sums of scalars over all processes."""
        both = torch.stack([value.detach().float() for value in values])
        dist.all_reduce(both)
        return tuple(both.unbind())

    def mean(self, weights: Tensor, batch: Batch) -> Tensor:
        """Return the mean of weights of samples (B,) over the whole batch."""
        return self.summed(weights.sum())[0] / self.divisor(batch)

    def end_steps(self, exp: Experiment) -> None:
        """Make weights whole and the buffers of all processes the same.

        Running statistics are averaged, other buffers become those of the first process.
        """
        if self.shards is not None:
            self.shards.gather()
        for model in (exp.model, exp.average):
            if model is None:
                continue
            averaged = _statistics(model)
            for tensor in averaged:
                dist.all_reduce(tensor)
                tensor /= self.world
            known = {id(tensor) for tensor in averaged}
            for tensor in model.buffers():
                if id(tensor) not in known:
                    dist.broadcast(tensor, 0)

    def _unused(self, exp: Experiment) -> bool:
        """Whether a weight that trains has no part in the loss, such as that of a head that nobody looks at."""
        from dlrun.training.copies import copied

        index = torch.arange(min(LEAST, len(exp.data.train)))
        x, y, index = next(exp.batches(exp.data.train.subset(index), augment=None).epoch(0))
        with torch.random.fork_rng():
            model = copied(exp.model).train()
            for norm in norms.running(model).values():
                norm.eval()
            with torch.enable_grad(), exp.autocast():
                loss, _ = exp.objective(model, exp.loss, Batch(x, y, seed=exp.cfg.seed))
            torch.autograd.backward(loss)
        return any(p.requires_grad and p.grad is None for p in model.parameters())

    # evaluation, and words

    def block(self, batches: Batches) -> Batches:
        """Return the batches of this process's share of the samples, which are in their order."""
        mine = copy.copy(batches)
        mine.span = slice(*self._share(len(batches.images)))
        return mine

    def gathered(self, found: Tensor, count: int) -> Tensor:
        """Return what all processes found (N, K) for their shares of `count` samples, in their order."""
        shares = [self._share(count, rank) for rank in range(self.world)]
        most = max(end - start for start, end in shares)
        sent = found.new_zeros(most, *found.shape[1:])
        sent[: len(found)] = found
        all_of_them = [torch.empty_like(sent) for _ in shares]
        dist.all_gather(all_of_them, sent)
        return torch.cat([part[: end - start] for part, (start, end) in zip(all_of_them, shares, strict=True)])

    def _share(self, count: int, rank: int | None = None) -> tuple[int, int]:
        rank = self.rank if rank is None else rank
        return count * rank // self.world, count * (rank + 1) // self.world

    def told(self, value: T) -> T:
        """Return what the first process has, as JSON gives it back."""
        content = b"" if self.rank else json.dumps(value).encode()
        found: T = json.loads(self._shared(content))
        return found

    def _shared(self, content: bytes) -> bytes:
        """The bytes of the first process."""
        size = torch.tensor([len(content)], device=self._device)
        dist.broadcast(size, 0)
        data = torch.empty(int(size), dtype=torch.uint8)
        if not self.rank:
            data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        for piece in torch.split(data, PIECE):
            there = piece.to(self._device)
            dist.broadcast(there, 0)
            piece.copy_(there)
        return data.numpy().tobytes()


def _statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of batch norms, which differ unless these synchronise."""
    found = [tensor for norm in synced.apart(model) for tensor in (norm.running_mean, norm.running_var)]
    return [tensor for tensor in found if tensor is not None]


def _fingerprint(exp: Experiment) -> str:
    """A hash of the images, and of their order."""
    names = "\n".join([*exp.data.train.ids, *exp.data.val.ids])
    return hashlib.sha256(f"{exp.data.identity('train', 'val')} {names}".encode()).hexdigest()
