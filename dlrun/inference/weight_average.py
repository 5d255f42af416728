"""The average of the weights of several models as one model (`dlrun ensemble --average weights`; E4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from dlrun.ensembles.members import Member
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.inference.predictor import rebuilt
from dlrun.training import averaging, checkpoint, norms
from dlrun.training.experiment import Experiment

__all__ = ["soup"]


def soup(members: Sequence[Member], trust: list[str]) -> Experiment:
    """Return the experiment of the first member with the weighted mean of the members' weights.

    Wortsman et al. 2022, Model soups. The statistics of batch norms cannot be averaged; they are measured again on
    one epoch of the training split. Raises UserError if the members' architectures differ.
    """
    exp = rebuilt(members[0].path, trust)
    model = reading.config(members[0].path)["model"]
    total: dict[str, Tensor] = {}
    weight = sum(m.weight for m in members)
    for m in members:
        if reading.config(m.path)["model"] != model:
            raise UserError(
                f"{m.name} and {members[0].name} differ in their model; expected one architecture to average weights"
            )
        file = reading.tested(m.path) if not m.checkpoint else reading.tested(m.path).with_name(m.checkpoint)
        averaged = not m.checkpoint and reading.stored(m.path).get("weights") == "ema"
        checkpoint.load_weights(file, checkpoint.load(file), exp.model, averaged=averaged)
        for name, tensor in exp.model.state_dict().items():
            share = tensor.cpu().double() * (m.weight / weight)  # MPS has no float64
            total[name] = total[name] + share if name in total else share
    own = exp.model.state_dict()
    exp.model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in total.items()})
    held = norms.held(exp.model)
    averaging.measure(exp.model, (x for x, _, _ in exp.train.epoch(1)), held, exp.autocast)
    return replace(exp, average=None)
