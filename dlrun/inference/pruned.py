"""A trained model without its smallest weights (`dlrun prune RUN --sparsity 0.5,0.9`, R4)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune

from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.inference.predictor import rebuilt
from dlrun.training import averaging, checkpoint, norms
from dlrun.training.experiment import Experiment

__all__ = ["pruned", "weights"]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def weights(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the layers whose weights can be pruned, each with the name of its tensor; biases and norms stay."""
    return [(layer, "weight") for layer in model.modules() if isinstance(layer, LAYERS) and "weight" in _own(layer)]


def _own(layer: nn.Module) -> set[str]:
    return {name for name, _ in layer.named_parameters(recurse=False)}


def pruned(path: Path, trust: list[str], sparsity: float) -> Experiment:
    """Return the experiment of a run with this share of all weights of convolutions and linear layers set to 0.

    Those of the smallest magnitude in the whole network go (Han et al. 2015, Learning both weights and connections).
    The statistics of batch norms are measured again on one epoch of the training split. Raises UserError for a model
    without such layers.
    """
    exp = rebuilt(path, trust)
    file = reading.tested(path)
    averaged = reading.stored(path).get("weights") == "ema"
    checkpoint.load_weights(file, checkpoint.load(file), exp.model, averaged=averaged)
    chosen = weights(exp.model)
    if not chosen:
        raise UserError(f"{path}: its model has no convolution or linear layer whose weights could be pruned")
    last = any(p.is_contiguous(memory_format=torch.channels_last) for p in exp.model.parameters() if p.ndim == 4)
    exp.model.to(memory_format=torch.contiguous_format)  # torch's pruning views weights as vectors
    prune.global_unstructured(chosen, prune.L1Unstructured, amount=sparsity)
    for layer, name in chosen:
        prune.remove(layer, name)  # type: ignore[no-untyped-call]
    exp.model.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    held = norms.held(exp.model)
    averaging.measure(exp.model, (x for x, _, _ in exp.train.epoch(1)), held, exp.autocast)
    return replace(exp, average=None)
