"""From a resolved config to everything a training needs, in the order that makes a seed mean the same each time.

Reached by every verb that trains or evaluates. The one place that picks the device and the precision.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.config.targets import check_targets, instantiate
from dlrun.data import Data
from dlrun.data.batches import Batches
from dlrun.data.images import InMemory
from dlrun.errors import UserError, first_line
from dlrun.models.init import head, initialise, output_bias
from dlrun.models.whitening import whiten
from dlrun.optim.groups import parameter_groups
from dlrun.optim.schedulers import Scheduler
from dlrun.regularizers import Penalty
from dlrun.training import averaging, memory
from dlrun.training.device import compiled, determinism, pick_device, pick_dtype
from dlrun.training.random_state import seed_everything
from dlrun.training.shared_data import read_data
from dlrun.vocabulary import lower_is_better

__all__ = ["Experiment", "build", "build_model"]

WHITENING = 2000  # images whose patches make the filters of a whitening layer
# one kernel for all weights: a trial of a small network took 0.94 s in place of 1.0 on a processor
FUSED = ("Adam", "AdamW", "SGD")


@dataclass
class Experiment:
    """What `dlrun train` trains: made by `build`, trained by `engine.fit`."""

    cfg: Any
    data: Data
    model: nn.Module
    loss: nn.Module
    penalty: Penalty
    objective: Any
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    device: torch.device
    dtype: torch.dtype
    train: Batches
    val: Batches
    average: nn.Module | None = None  # the running average of the weights, with trainer.ema
    compiled: Any = None  # the model as torch.compile made it, with trainer.compile

    @cached_property
    def stepping(self) -> tuple[int, float, float]:
        """trainer.accumulate, clip_norm and clip_value: OmegaConf takes longer to say them than a step has to lose."""
        trainer = self.cfg.trainer
        return int(trainer.accumulate), float(trainer.clip_norm), float(trainer.clip_value)

    @property
    def stepped(self) -> nn.Module:
        """What training steps call: the model or, of the one that was built here and no copy, its compiled form."""
        own = self.compiled is not None and self.compiled._orig_mod is self.model
        return self.compiled if own else self.model

    @property
    def num_classes(self) -> int:
        """Length of the logits of a sample."""
        return len(self.data.classes)

    def autocast(self) -> torch.autocast:
        """The context of forward passes: bfloat16 where the precision says so."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def batches(self, split: Any, **options: Any) -> Batches:
        """Batches of a split, normalised like the training data."""
        options.setdefault("batch_size", self.cfg.trainer.eval_batch_size)
        return Batches(split, mean=self.data.mean, std=self.data.std, device=self.device, **options)


def build(cfg: Any) -> Experiment:
    """Build data, model, loss, regularizer, optimizer and schedule from a resolved config.

    Raises UserError for what the config asks for and cannot be had.
    """
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    trust = list(plain["trust"])
    check_targets(plain, trust)
    device = pick_device(cfg.trainer.device)
    torch.set_num_threads(cfg.trainer.threads or os.cpu_count() or 1)
    memory.keep_freed()
    determinism(cfg.trainer.deterministic)
    data = read_data(plain["dataset"], trust)
    seed_everything(cfg.seed)
    # torch's L-BFGS flattens gradients as they lie, which channels-last ones do not allow
    flat = plain["optimizer"]["_target_"].endswith(".LBFGS")
    layout = torch.contiguous_format if flat else torch.channels_last
    model = build_model(plain["model"], trust, data.shape, data.classes)
    whiten(model, _measured(data))
    if plain["model"]["output_bias"] == "frequency":
        counts = torch.bincount(data.train.labels, minlength=len(data.classes)).double()
        output_bias(model, counts / counts.sum())
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
    regularizer = {k: v for k, v in plain["regularizer"].items() if k not in ("dropout", "label_smoothing")}
    dtype = pick_dtype(cfg.trainer.precision, device, model, data.shape)
    last = head(model, len(data.classes))
    apart = {"head": [] if last is None else list(last.parameters()), "bf16": dtype == torch.bfloat16}  # for Muon
    optimizer = _optimizer(plain["optimizer"], plain["trainer"], trust, model, **apart)
    made = Experiment(
        cfg=cfg,
        data=data,
        model=model,
        loss=instantiate(plain["loss"], trust, "loss").to(device),
        penalty=instantiate(regularizer, trust, "regularizer"),
        objective=instantiate(plain["objective"], trust, "objective", data=data, packages=trust, device=device),
        optimizer=optimizer,
        scheduler=_scheduler(plain["scheduler"], trust, optimizer, cfg.trainer.monitor),
        device=device,
        dtype=dtype,
        train=None,  # type: ignore[arg-type]
        val=None,  # type: ignore[arg-type]
    )
    if plain["trainer"].get("compile"):
        made.compiled = compiled(model, device)
    if plain["trainer"].get("ema"):
        made.average = averaging.started(model)
    made.train = made.batches(
        data.train,
        batch_size=cfg.trainer.batch_size,
        augment=_augment(plain["augment"], trust, data),
        shuffle=True,
        balance=data.balance,
        seed=cfg.seed,
    )
    made.val = made.batches(data.val)
    if sides := getattr(made.train.augment, "sides", ()):
        _smaller(made, sides)
    return made


def _smaller(exp: Experiment, sides: Sequence[int]) -> None:
    """Raise UserError where images cannot be made so small for the first epochs, or the model does not take them."""
    key, epochs = f"augment.progressive={exp.cfg.augment.get('progressive')}", exp.cfg.trainer.epochs
    if len(sides) >= epochs:
        raise UserError(f"{key}: leaves none of trainer.epochs={epochs} epochs for images of full size; train longer")
    height, width, channels = exp.data.shape
    if max(sides) >= min(height, width):
        raise UserError(f"{key}: expected less than the {min(height, width)} pixels of the images' shorter side")
    smallest = torch.zeros(2, channels, min(sides), min(sides), device=exp.device)
    try:
        with torch.inference_mode(), exp.autocast():
            copy.deepcopy(exp.model).eval()(smallest)
    except (RuntimeError, ValueError, IndexError) as error:
        what = f"the model does not take images of {min(sides)} pixels ({first_line(error)[:120]})"
        raise UserError(f"{key}: {what}; choose another size or model, such as model=resnet20") from error


def _measured(data: Data) -> Iterator[Tensor]:
    """Normalised training images, spread over the split since a folder's samples are sorted by class, in batches."""
    index = torch.linspace(0, len(data.train) - 1, min(WHITENING, len(data.train))).long()
    batches = Batches(data.train.subset(index), 256, mean=data.mean, std=data.std)
    return (x for x, _, _ in batches.epoch(0))


def _augment(node: dict[str, Any], trust: list[str], data: Data) -> Any:
    if not node.get("_target_"):
        return None
    span = {}
    if isinstance(data.train.images, InMemory) and data.train.images.pixels.is_floating_point():
        pixels = data.train.images.take(torch.arange(len(data.train.images)))
        span["span"] = (float(pixels.min()), float(pixels.max()))  # black and white of floats in any units
    return instantiate(node, trust, "augment", **span)


def build_model(node: dict[str, Any], trust: list[str], shape: tuple[int, int, int], classes: list[str]) -> nn.Module:
    """Build an initialised model for images of a shape (H, W, C). Raises UserError for what it refuses."""
    node = dict(node)
    init = node.pop("init", "default")
    node.pop("output_bias", None)  # a matter of the data's
    height, width, channels = shape
    model = instantiate(
        node,
        trust,
        "model",
        in_channels=channels,
        num_classes=len(classes),
        image_size=max(height, width),
    )
    if not isinstance(model, nn.Module):
        raise UserError(f"model._target_={node['_target_']}: expected a torch.nn.Module, found {type(model).__name__}")
    if node.get("weights") and init != "default":
        raise UserError(f"model.init={init} would overwrite model.weights={node['weights']}; leave one of them away")
    initialise(model, init)
    return model


def _optimizer(
    node: dict[str, Any], trainer: dict[str, Any], trust: list[str], model: nn.Module, **given: Any
) -> torch.optim.Optimizer:
    node = dict(node)
    there = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in model.parameters())
    known = node.keys() - {"_target_", "per_layer"}
    own = {"fused", "foreach", "differentiable"} & known  # one excludes the others
    if there and not own and node["_target_"].removeprefix("torch.optim.") in FUSED:
        node["fused"] = True
    per_layer = node.pop("per_layer", {})
    decay = 0.0 if trainer["weight_decay_biases"] else node.get("weight_decay", 0.0)
    groups = parameter_groups(model, decay, per_layer, known=known)
    optimizer: torch.optim.Optimizer = instantiate(node, trust, "optimizer", groups, **given)
    return optimizer


def _scheduler(node: dict[str, Any], trust: list[str], optimizer: torch.optim.Optimizer, monitor: str) -> Scheduler:
    own = set(inspect.signature(Scheduler).parameters) & set(node)
    given = {}
    if str(node["_target_"]).endswith(".ReduceLROnPlateau"):
        given["mode"] = "min" if lower_is_better(monitor) else "max"
    rule = instantiate({k: v for k, v in node.items() if k not in own}, trust, "scheduler", **given)
    return Scheduler(optimizer, rule, **{k: node[k] for k in own})
