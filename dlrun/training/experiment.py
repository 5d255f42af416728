"""From settings to everything that training needs, built in a fixed order so that a seed gives the same weights.

Reached by every verb that trains or evaluates. The one place that picks the device and the precision (B8).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from dlrun.config import ranks
from dlrun.config.settings import Settings, Trainer
from dlrun.config.targets import check_targets, instantiate
from dlrun.data import Data, Split, crops
from dlrun.data.batches import Augment, Batch, Batches
from dlrun.errors import UserError, first_line
from dlrun.models.checkpointing import recompute
from dlrun.models.depths import classifiers, depths
from dlrun.models.depthwise import widen
from dlrun.models.dropout import set_rates
from dlrun.models.init import head, initialise, output_bias
from dlrun.models.loading import Loaded, loaded
from dlrun.models.whitening import whiten
from dlrun.optim.groups import layer_rates, parameter_groups
from dlrun.optim.lookahead import Lookahead
from dlrun.optim.schedulers import Scheduler
from dlrun.regularizers import Penalty
from dlrun.training import averaging, freezing, jpeg, memory, multi_crop, norms, tasks
from dlrun.training.copies import copied
from dlrun.training.device import compiled, determinism, pick_device, pick_dtype
from dlrun.training.loss import loss_of, prior
from dlrun.training.loss_scale import LossScale
from dlrun.training.objective import objective_of, with_parameters
from dlrun.training.random_state import seed_everything
from dlrun.training.shared_data import SharedData, read_data
from dlrun.training.starting import begin
from dlrun.training.statistics import fitted_to_weights
from dlrun.training.unselected import by_own_loss, unselected
from dlrun.vocabulary import lower_is_better

if TYPE_CHECKING:
    from dlrun.training.group import Group

__all__ = ["Experiment", "Objective", "build", "build_model"]

T = TypeVar("T")
ROUND = ("lookahead", "lookahead_share", "sam")  # keys of optimizer for what surrounds its steps
WHITENING = 2000  # images whose patches make the filters of a whitening layer
NO_PENALTY = ("dropout", "dropout_per_layer", "label_smoothing")  # of the keys of regularizer
# one kernel for all weights: a trial of a small network took 0.94 s in place of 1.0 on a processor
FUSED = ("Adam", "AdamW", "SGD")


class Objective(Protocol):
    """What a training step minimises; see dlrun/objectives/, also for its attribute `train_acc_valid`."""

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean loss (scalar) and the logits (B, K)."""


@dataclass(frozen=True)
class Experiment:
    """What `dlrun train` trains: made whole by `build`, trained by `loop.fit`. Copies come from dataclasses.replace."""

    cfg: Settings
    data: Data
    model: nn.Module
    loss: nn.Module
    penalty: Penalty
    objective: Objective
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    device: torch.device
    dtype: torch.dtype
    train: Batches
    val: Batches
    average: nn.Module | None = None  # the running average of the weights, with trainer.ema or trainer.swa
    scale: LossScale | None = None  # of the loss, with trainer.precision=fp16
    frozen: freezing.Freezing | None = None  # what model.freeze asks for
    compiled: nn.Module | None = None  # the model as torch.compile made it, with trainer.compile
    start: Loaded | None = None  # what the model was loaded with before training
    notes: tuple[str, ...] = ()  # for the screen: one line on the input that pretrained weights expect
    whole: Experiment | None = None  # of one that trains the end of a network on features: that of the network
    group: Group | None = None  # the processes that train together, if there are several

    @property
    def kept(self) -> Experiment:
        """What a checkpoint stores and a run records: that of the whole network."""
        return self if self.whole is None else self.whole

    @property
    def stepped(self) -> nn.Module:
        """What training steps call: the compiled model if there is one and it is this model's, no copy's original."""
        if self.group is not None:
            return self.group.stepped
        made = self.compiled
        return made if made is not None and made._orig_mod is self.model else self.model

    def told(self, value: T) -> T:
        """Return what the first of several processes has; the value itself if there is one."""
        return value if self.group is None else self.group.told(value)

    @property
    def train_acc_valid(self) -> bool:
        """Whether train_acc means anything under the objective, which may mix images or change labels."""
        return bool(getattr(self.objective, "train_acc_valid", True))

    @property
    def num_classes(self) -> int:
        """Number of classes, which is the number of logits per sample."""
        return len(self.data.classes)

    def autocast(self) -> torch.autocast:
        """The context of forward passes: in bfloat16 or float16 if the precision is."""
        low = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype if low else torch.bfloat16, enabled=low)

    def batches(self, split: Split, **options: Any) -> Batches:
        """Batches of a split, normalised like the training data; `options` are those of Batches."""
        options.setdefault("batch_size", self.cfg.trainer.eval_batch_size)
        if self.whole is None:  # features are no images
            options.setdefault("crop", crops.evaluated(self.cfg.augment, self.data.shape))
        return _normalised(self.cfg, self.data, split, self.device, **options)


def build(
    cfg: Settings, shared: SharedData | None = None, data: Data | None = None, *, begun: bool = False
) -> Experiment:
    """Build data, model, loss, regularizer, optimizer and schedule from settings.

    Data comes from `shared`, if given, unless it is `data` that was read before. A run that has `begun` has a
    checkpoint and needs no pretrained weights. Raises UserError for what the config asks for and cannot be had.
    """
    check_targets(cfg.plain, list(cfg.trust))
    cfg, notes = (cfg, ()) if begun else fitted_to_weights(cfg)
    plain, trust, trainer = cfg.plain, list(cfg.trust), cfg.trainer
    device = pick_device(trainer.device)
    torch.set_num_threads(trainer.threads or ranks.threads())
    memory.keep_freed()
    determinism(trainer.deterministic)
    if data is None:
        read = read_data if shared is None else shared.read
        data = read(plain["dataset"], trust, fit_all=trainer.fit_all)
    cfg, said = _by_data(cfg, data, device, begun)
    plain, trainer = cfg.plain, cfg.trainer
    seed_everything(cfg.seed)
    shape = crops.fed(cfg.augment, data.shape)
    model = _started(cfg, data, device, shape, begun)
    dtype = pick_dtype(trainer.precision, device, model, shape)
    frozen = freezing.planned(plain["model"], model, len(data.classes))
    if frozen is not None:
        freezing.begin(model, frozen)
    late = () if trainer.hours else freezing.too_late(frozen, trainer.epochs)
    last = head(model, len(data.classes))
    apart = {"head": [] if last is None else list(last.parameters()), "bf16": dtype == torch.bfloat16}  # for Muon
    optimizer = _optimizer(plain["optimizer"], trainer, trust, model, frozen, len(data.classes), **apart)
    loss = loss_of(plain["loss"], trust, data).to(device)
    if not begun:
        _set_weights(cfg, model, data, loss)
    regularizer = {k: v for k, v in plain["regularizer"].items() if k not in NO_PENALTY}
    batches = _train_batches(cfg, data, device, _augment(plain["augment"], trust, data))
    objective = objective_of(cfg, data, device, loss, batches, model)
    optimizer = with_parameters(optimizer, objective)
    made = Experiment(
        cfg=cfg,
        data=data,
        model=model,
        loss=loss,
        penalty=instantiate(regularizer, trust, "regularizer"),
        objective=objective,
        optimizer=optimizer,
        scheduler=_scheduler(plain["scheduler"], trust, optimizer, trainer.monitor, len(batches)),
        device=device,
        dtype=dtype,
        frozen=frozen,
        compiled=compiled(model, device) if trainer.compile else None,
        average=averaging.started(model) if averaging.wanted(trainer) else None,
        scale=LossScale() if dtype == torch.float16 else None,
        start=loaded(model),
        notes=(*notes, *said, *late, *getattr(objective, "notes", ())),
        train=batches,
        val=_val_batches(cfg, data, device),
    )
    _must_take_others(made, shape)
    return made


def _by_data(cfg: Settings, data: Data, device: torch.device, begun: bool) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings with what the data decide, and lines for the screen."""
    cfg, said = jpeg.chosen(cfg, data, device, begun)
    found = crops.decided(cfg.augment, len(data.train))
    if found is not None:
        cfg = cfg.changed(augment={"crop": found[0]})
    cfg = by_own_loss(cfg, len(data.classes))
    return cfg if len(data.val) else unselected(cfg), said + (() if found is None else found[1:])


def _started(cfg: Settings, data: Data, device: torch.device, shape: tuple[int, int, int], begun: bool) -> nn.Module:
    """The initialised model for images of a shape on its device; without pretrained weights if a run has begun."""
    plain = cfg.plain
    tasks.must_suit(cfg, data)
    node = {**plain["model"], "weights": None} if begun and plain["model"].get("weights") else plain["model"]
    model: nn.Module = build_model(node, list(cfg.trust), shape, data.classes)
    set_rates(model, plain["regularizer"].get("dropout_per_layer") or {})
    whiten(model, _measured(data))
    # torch's L-BFGS flattens gradients as they lie in memory, which fails for channels-last ones
    flat = plain["optimizer"]["_target_"].endswith(".LBFGS")
    layout = torch.contiguous_format if flat else torch.channels_last
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    if str(node["_target_"]).startswith("dlrun."):  # the numbers in code of others are meant
        norms.fit_momentum(model, norms.planned(cfg.trainer, len(data.train)))
    return model


def _set_weights(cfg: Settings, model: nn.Module, data: Data, loss: nn.Module) -> None:
    """Set the output bias of a new run, and load the weights that it starts from."""
    if cfg.model.get("output_bias") == "frequency":
        output_bias(model, prior(data, loss))
    begin(cfg, model, data)


def _normalised(cfg: Settings, data: Data, split: Split, device: torch.device, **options: Any) -> Batches:
    return Batches(split, mean=data.mean, std=data.std, device=device, jpegs=jpeg.on_device(cfg), **options)


def _train_batches(cfg: Settings, data: Data, device: torch.device, augment: Augment | None) -> Batches:
    options = {"batch_size": cfg.trainer.batch_size, "balance": data.balance, "seed": cfg.seed}
    return _normalised(cfg, data, data.train, device, augment=augment, shuffle=True, **options)


def _smaller(exp: Experiment, sides: Sequence[int]) -> None:
    """Raise UserError if images cannot be made so small for the first epochs, or if the model refuses them."""
    key, epochs = f"augment.progressive={exp.cfg.augment.get('progressive')}", exp.cfg.trainer.epochs
    if len(sides) >= epochs:
        raise UserError(f"{key}: leaves none of trainer.epochs={epochs} epochs for images of full size; train longer")
    height, width, _ = crops.fed(exp.cfg.augment, exp.data.shape)
    if max(sides) >= min(height, width):
        raise UserError(f"{key}: expected less than the {min(height, width)} pixels of the images' shorter side")
    _must_take(exp, (min(sides), min(sides)), key)


def _must_take_others(exp: Experiment, shape: tuple[int, int, int]) -> None:
    """Raise UserError if the model refuses other sizes than that of training images, in evaluation or first epochs."""
    if sides := getattr(exp.train.augment, "sides", ()):
        _smaller(exp, sides)
    size = exp.val.crop or exp.data.shape[:2]
    if size != shape[:2] and shape != exp.data.shape:
        _must_take(exp, size, f"augment.eval_crop={exp.cfg.augment.get('eval_crop')}")
    if (view := multi_crop.largest(size, exp.cfg.trainer.multi_crop)) != tuple(size):
        _must_take(exp, view, f"trainer.multi_crop={exp.cfg.trainer.multi_crop}")


def _val_batches(cfg: Settings, data: Data, device: torch.device) -> Batches:
    options = {"batch_size": cfg.trainer.eval_batch_size, "crop": crops.evaluated(cfg.augment, data.shape)}
    return _normalised(cfg, data, data.val, device, **options)


def _must_take(exp: Experiment, size: tuple[int, int], key: str) -> None:
    try:
        with torch.inference_mode(), exp.autocast():
            copied(exp.model).eval()(torch.zeros(2, exp.data.shape[2], *size, device=exp.device))
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        what = f"the model does not take images of {size[0]} pixels ({first_line(error)[:120]})"
        raise UserError(f"{key}: {what}; choose another value, or a model such as model=resnet20") from error


def _measured(data: Data) -> Iterator[Tensor]:
    """Normalised training images, spread over the split since a folder's samples are sorted by class, in batches."""
    index = torch.linspace(0, len(data.train) - 1, min(WHITENING, len(data.train))).long()
    batches = Batches(data.train.subset(index), 256, mean=data.mean, std=data.std)
    return (x for x, _, _ in batches.epoch(0))


def _augment(node: dict[str, Any], trust: list[str], data: Data) -> Any:
    if not node.get("_target_"):
        return None
    span: dict[str, Any] = {"mean_colour": data.mean}
    if data.units.dtype != "uint8":
        # black and white of floats in any units
        span["span"] = (data.units.low, data.units.high)
    return instantiate(node, trust, "augment", **span)


def build_model(node: dict[str, Any], trust: list[str], shape: tuple[int, int, int], classes: list[str]) -> nn.Module:
    """Build an initialised model for images of a shape (H, W, C). Raises UserError for what it refuses."""
    node = dict(node)
    init, again = node.pop("init", "default"), node.pop("checkpointing", False)
    for later in ("output_bias", "freeze", "unfreeze_at", "hold_norms"):  # `build` applies them
        node.pop(later, None)
    height, width, channels = shape
    given = {"in_channels": channels, "num_classes": len(classes), "image_size": max(height, width)}
    model = instantiate(node, trust, "model", **given, image_shape=(height, width))
    if not isinstance(model, nn.Module):
        raise UserError(f"model._target_={node['_target_']}: expected a torch.nn.Module, found {type(model).__name__}")
    if node.get("weights") and init != "default":
        raise UserError(f"model.init={init} would overwrite model.weights={node['weights']}; omit one of them")
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):  # lazy layers
        with torch.no_grad():
            model.eval()(torch.zeros(2, channels, height, width))
        model.train()
    initialise(model, init)
    widen(model)
    if again:
        recompute(model)
    return model


def _optimizer(
    node: dict[str, Any],
    trainer: Trainer,
    trust: list[str],
    model: nn.Module,
    frozen: freezing.Freezing | None,
    classes: int,
    **given: Any,
) -> torch.optim.Optimizer:
    steps, share = node.get("lookahead", 0), node.get("lookahead_share", 0.5)
    last, deep = classifiers(model, classes), depths(model, classes)
    rates = layer_rates(node, deep, [name for name in deep if any(name.startswith(f"{place}.") for place in last)])
    node = {key: value for key, value in node.items() if key not in ("layer_decay", "head_lr", *ROUND)}
    there = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in model.parameters())
    known = node.keys() - {"_target_", "per_layer"}
    own = {"fused", "foreach", "differentiable"} & known  # one excludes the others
    if there and not own and node["_target_"].removeprefix("torch.optim.") in FUSED:
        node["fused"] = True
    per_layer = node.pop("per_layer", {})
    decay = 0.0 if trainer.weight_decay_biases else node.get("weight_decay", 0.0)
    groups = parameter_groups(model, decay, per_layer, known, rates, frozen.starts if frozen else None)
    if rates:  # the rate shown is that of the first group: optimizer.lr, or the nearest to it
        groups.sort(key=lambda group: abs(math.log(max(group["lr"], 1e-30) / max(node["lr"], 1e-30))))
    optimizer: torch.optim.Optimizer = instantiate(node, trust, "optimizer", groups, **given)
    return Lookahead(optimizer, steps, share) if steps else optimizer


def _scheduler(
    node: dict[str, Any], trust: list[str], optimizer: torch.optim.Optimizer, monitor: str, steps: int
) -> Scheduler:
    own = set(inspect.signature(Scheduler).parameters) & set(node) - {"steps"}
    given: dict[str, Any] = {}
    if str(node["_target_"]).endswith(".ReduceLROnPlateau"):
        given["mode"] = "min" if lower_is_better(monitor) else "max"
    rule = instantiate({k: v for k, v in node.items() if k not in own}, trust, "scheduler", **given)
    return Scheduler(optimizer, rule, steps, **{k: node[k] for k in own})
