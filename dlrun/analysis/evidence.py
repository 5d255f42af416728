"""The numbers of a run as dlrun/analysis/verdicts.py needs them: columns as lists, the config by dotted key (B1–B4).

Reads rows of metrics.csv and layers.csv as they come, text or numbers. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import accumulate, pairwise
from statistics import fmean, median
from typing import Any

from dlrun.vocabulary import LABELLED, Status

__all__ = ["ABOVE_CHANCE", "LEFT", "STEADY", "TINY", "WANTED_RATIO", "Evidence", "digit", "end", "span"]

ANNEALED = 0.1  # of the highest rate: below this the schedule makes steps small on purpose
WANTED_RATIO = 1e-3  # update : weight (B3)
TINY = 1e-9  # in place of a loss of zero, which a confident network has in float32
LEFT = 0.3  # of the first train loss: below this there is little left to learn (B1, B3)
ROOM = 0.03  # error that is worth a verdict: a better fit can gain no more, and two seeds may differ by a point or two
JITTER = 0.08  # sum of all rises of the train loss over its whole descent: noisy (B1)
OFTEN = 0.15  # of the epochs in which a noisy loss rises
COARSE = 10  # steps per epoch: with fewer, more steps come from smaller batches at no cost
STEADY = 300  # optimizer steps: the first ones are long in every run (B3)
ABOVE_CHANCE = 1.2  # times the loss of uniform logits: only steps that were too long lead there


class Evidence:
    """The numbers of a run; `status`, `data` and `train_acc_valid` are those of result.json.

    If train_acc is not valid, `acc` is empty, and `monitored` too if the run monitors it.
    """

    def __init__(
        self,
        metrics: Iterable[Mapping[str, Any]],
        layers: Iterable[Mapping[str, Any]],
        config: Mapping[str, Any],
        data: Mapping[str, Any],
        status: str,
        train_acc_valid: bool = True,
    ) -> None:
        rows = [row for row in metrics if math.isfinite(_number(row.get("epoch")))]  # a person may have edited it
        self.config, self.data, self.status = config, data, status
        self.epochs = [int(float(row["epoch"])) for row in rows]
        self.lr, self.loss, self.acc, self.val_loss, self.val_acc, self.monitored = (
            [_number(row.get(c)) for row in rows]
            for c in ("lr", "train_loss", "train_acc", "val_loss", "val_acc", self.monitor)
        )
        self.train_eval, self.grad_norm, self._val_balanced, self.step_sizes, self.nonlinear, self.accepted = (
            [_number(row.get(c)) for row in rows]
            for c in ("train_eval_acc", "grad_norm", "val_balanced_acc", "update_ratio", "nonlinear", LABELLED[0])
        )
        if not train_acc_valid:
            self.acc, self.monitored = [], [] if self.monitor == "train_acc" else self.monitored
        self.peak = max([*self.lr, float(self.key("optimizer.lr", 0.0))])
        of = [row for row in layers if row.get("layer") and math.isfinite(_number(row.get("epoch")))]
        self.layers = [(int(float(row["epoch"])), str(row["layer"]), row) for row in of]
        self.ratios = self._ratios()

    @property
    def learned(self) -> list[float]:
        """Accuracy on training images: as trained if that is valid, else in evaluation mode without augmentation."""
        known = self.train_eval and all(map(math.isfinite, self.train_eval))
        return self.acc or (self.train_eval if known else [])

    @property
    def monitor(self) -> str:
        """The column that decides which epoch is best."""
        return str(self.key("trainer.monitor", "val_acc"))

    def key(self, name: str, default: Any = None) -> Any:
        """Return the value of a dotted key; the default if the config lacks it or sets it to null."""
        node: Any = self.config
        for part in name.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return default
            node = node[part]
        return default if node is None else node

    def now(self, column: str) -> dict[str, float]:
        """Return a column of layers.csv at the last epoch, for the layers that train and have a value."""
        return self._at(max((epoch for epoch, _, _ in self.layers), default=0), column)

    def first(self, column: str) -> dict[str, float]:
        """Return a column of layers.csv at the first epoch; empty while only the last epoch is at hand."""
        return self._at(1, column)

    def _at(self, epoch: int, column: str) -> dict[str, float]:
        rows = {layer: row for number, layer, row in self.layers if number == epoch}
        # a frozen layer has no gradient; without diagnostics of a single step none has
        training = {layer for layer, row in rows.items() if not math.isnan(_number(row.get("grad_norm")))} or rows
        found = {layer: _number(row.get(column)) for layer, row in rows.items() if layer in training}
        return {layer: value for layer, value in found.items() if not math.isnan(value)}

    def _ratios(self) -> dict[str, float]:
        """Update : weight ratio of each layer, its median until the rate was annealed (B3)."""
        live = {e for e, lr in zip(self.epochs, self.lr, strict=True) if lr >= ANNEALED * max(self.lr)}
        found: dict[str, list[float]] = {}
        for epoch, layer, row in self.layers:
            if epoch in live and math.isfinite(value := _number(row.get("update_ratio"))):
                found.setdefault(layer, []).append(value)
        return {layer: median(values) for layer, values in found.items()}

    @property
    def ratio(self) -> float:
        """Median of the ratios of all layers; nan if nothing was measured."""
        return median(self.ratios.values()) if self.ratios else math.nan

    @property
    def longest(self) -> float:
        """The largest ratio of an epoch, as a median over its layers; nan if nothing was measured.

        While a run trains, the layers of earlier epochs are not at hand, but metrics.csv has their medians.
        """
        found: dict[int, list[float]] = {}
        for epoch, _, row in self.layers:
            if math.isfinite(value := _number(row.get("update_ratio"))):
                found.setdefault(epoch, []).append(value)
        known = [ratio for ratio in self.step_sizes if math.isfinite(ratio)]
        return max([*known, *map(median, found.values())], default=math.nan)

    @property
    def annealed(self) -> bool:
        """Whether the schedule has reached its end."""
        return bool(self.lr) and self.lr[-1] < ANNEALED * self.peak

    @property
    def complete(self) -> bool:
        """Whether the run trained all epochs that it planned, so that its schedule has run its course."""
        if self.key("trainer.hours"):  # how many epochs fit is known when it is over
            return bool(self.epochs) and self.status == Status.COMPLETED
        return bool(self.epochs) and self.epochs[-1] == self.key("trainer.epochs")

    @property
    def gap_closed(self) -> tuple[float, float, float]:
        """val_loss - train_loss in the second third of the epochs, in the last third, and by how much it shrank.

        The latter is a share of the first train loss and at most the drop of val_loss: a rising train loss closes the
        gap as well. Zeros for fewer than six epochs.
        """
        third = len(self.loss) // 3
        if third < 2:
            return 0.0, 0.0, 0.0
        gaps = [val - train for val, train in zip(self.val_loss, self.loss, strict=True)]
        (before, now), (val_before, val_now) = (
            (fmean(values[-2 * third : -third]), fmean(values[-third:])) for values in (gaps, self.val_loss)
        )
        return before, now, min(before - now, val_before - val_now) / self.loss[0]

    @property
    def epoch_steps(self) -> float:
        """Optimizer steps of one epoch; infinite if unknown."""
        batch, samples = self.key("trainer.batch_size"), self.data.get("train")
        return math.ceil(samples / batch) if batch and samples else math.inf

    @property
    def steps(self) -> float:
        """Optimizer steps done; infinite if unknown."""
        return len(self.epochs) * self.epoch_steps if self.epochs else 0.0

    @property
    def coarse(self) -> bool:
        """Whether the run has few steps because an epoch has hardly any."""
        return self.epoch_steps < COARSE and self.steps < STEADY

    @property
    def train_error(self) -> float:
        """Share of training images classified wrongly at the end; nan if it is not known."""
        return 1 - end(self.learned) if self.learned else math.nan

    @property
    def visible(self) -> float:
        """The smallest change of the validation accuracy that is worth a verdict and beyond noise."""
        return max(ROOM, 3 * self.val_error)

    @property
    def misses(self) -> bool:
        """Whether more validation images are wrong than noise explains, in the best epoch."""
        return bool(self.val_acc) and 1 - max(self.val_acc) > self.visible

    @property
    def underfits(self) -> bool:
        """Whether fitting the training images better could gain more than noise.

        What a better fit can gain is about the train error, and at most the validation error: train_acc is measured
        with dropout and augmentation on. Without train_acc the train loss decides.
        """
        if not self.misses or not self.loss:
            return False
        return self.train_error > self.visible if self.learned else self.loss[-1] > LEFT * self.loss[0]

    @property
    def late(self) -> int:
        """The epoch, as an index, at which the last third of the way begins; the way is the sum of the rates.

        Counted in epochs every loss is level at the end of a schedule, with steps of nearly nothing.
        """
        spent = list(accumulate(self.lr))
        return max((k for k, s in enumerate(spent[:-1]) if s <= spent[-1] * 2 / 3), default=0)

    def fell(self, losses: list[float]) -> float:
        """Return the share of its value that a loss fell by in the last third of the way; nan for a single epoch."""
        return 1 - losses[-1] / max(losses[self.late], TINY) if len(losses) > 1 else math.nan

    @property
    def _jumps(self) -> list[float]:
        """The rises of the train loss from epoch to epoch that are no chance.

        The mean loss of n images, each about as large as the mean, has a standard error of loss/√n. A rise by less
        than twice the error of a difference does not count: with augmentation a long run would seem noisy.
        """
        chance = 2 * math.sqrt(2 / int(self.data.get("train") or 1000))
        return [later - loss for loss, later in pairwise(self.loss) if later - loss > chance * loss]

    @property
    def rises(self) -> float:
        """All rises of the train loss together, as a share of its whole descent; those of chance do not count."""
        return sum(self._jumps) / max(self.loss[0] - min(self.loss), TINY) if self.loss else 0.0

    @property
    def jumps(self) -> bool:
        """Whether the train loss goes up and down: by much of its descent, and nearly as often up as down."""
        return len(self.loss) >= 5 and self.rises > JITTER and len(self._jumps) >= OFTEN * len(self.loss)

    @property
    def counts(self) -> list[int]:
        """Training images of each class."""
        return [int(n) for n in self.data.get("train_counts", [])]

    @property
    def chance(self) -> float:
        """Loss of uniform logits for the losses of dlrun, else infinite (C1)."""
        target, classes = str(self.key("loss._target_")), len(self.counts)
        if target == "dlrun.losses.CrossEntropy" and classes:
            return math.log(classes)
        if target == "dlrun.losses.Hinge" and classes:
            return (classes - 1) * float(self.key("loss.margin", 1))
        if target == "dlrun.losses.Focal" and classes > 1:
            return float((1 - 1 / classes) ** float(self.key("loss.gamma", 2)) * math.log(classes))
        return math.inf

    @property
    def balanced(self) -> list[str]:
        """What makes up for classes of unequal size, as overrides (D6): balanced batches, and weights of the loss."""
        found = ["dataset.balance=true"] if self.data.get("balance") else []
        weight = self.key("loss.weight", "none")
        ours = str(self.key("loss._target_")).startswith("dlrun.losses.") and weight != "none"
        return [*found, f"loss.weight={weight if isinstance(weight, str) else 'a list'}"] if ours else found

    @property
    def shares(self) -> list[float]:
        """Share of each class in the batches that train_acc is measured on."""
        counts = [1 for _ in self.counts] if self.data.get("balance") else self.counts
        return [n / sum(counts) for n in counts]

    @property
    def val_error(self) -> float:
        """Standard error of the validation accuracy: on a small fold a difference may be chance."""
        return _error(end(self.val_acc), int(self.data.get("val") or 1000))

    @property
    def gap(self) -> tuple[float, float]:
        """Train accuracy minus validation accuracy, and the standard error of that; nan without train_acc.

        Of balanced batches the train accuracy is compared with the balanced accuracy of validation (D6).
        """
        if not self.acc:
            return math.nan, math.nan
        train, val, error = end(self.acc), end(self.comparable), self.val_error
        if self.comparable is not self.val_acc:
            # the variance of a mean over classes of n_k images each: that of K² / Σ 1/n_k images
            total, images = sum(self.counts), int(self.data.get("val") or 1000)
            error = _error(val, max(1, round(len(self.counts) ** 2 / sum(total / (images * n) for n in self.counts))))
        return train - val, math.hypot(error, _error(train, int(self.data.get("train") or 1000)))

    @property
    def comparable(self) -> list[float]:
        """The validation accuracy of the same mixture of classes as the train accuracy."""
        known = self.data.get("balance") and min(self.counts, default=0) > 0
        known = known and all(map(math.isfinite, self._val_balanced))
        return self._val_balanced if known else self.val_acc

    @property
    def augmented(self) -> bool:
        """Whether any augmentation is on: a class of the user, or a key of ours that is not off."""
        keys = self.key("augment", {})
        if not str(keys.get("_target_") or "dlrun.").startswith("dlrun."):
            return True
        details = {"_target_", "padding", "magnitude", "magnitude_std", "crop_scale", "crop_ratio", "eval_crop"}
        details |= {"erase_scale", "erase_ratio", "repeats"}
        return any(value and value != "none" for key, value in keys.items() if key not in details)

    @property
    def regularised(self) -> bool:
        """Whether any regularizer of dlrun is on."""
        keys = ("l1", "l2", "max_norm", "dropout", "label_smoothing")
        return any(self.key(f"regularizer.{key}") for key in keys)

    def rate(self, factor: float, layers: Collection[str] = ()) -> str:
        """Return the override that multiplies the learning rate: of Muon's two both, or those that train `layers`.

        Muon's sgd_lr trains the last layer, biases and norms.
        """
        rates = {"optimizer.lr": float(self.key("optimizer.lr", self.peak))}
        if sgd := self.key("optimizer.sgd_lr"):
            last = {next(reversed(self.ratios), "")}
            rates = rates if not layers or set(layers) - last else {}
            rates |= {"optimizer.sgd_lr": float(sgd)} if not layers or last & set(layers) else {}
        return " ".join(f"{key}={digit(lr * factor)}" for key, lr in rates.items())

    def towards_ratio(self) -> float:
        """Return the factor on the learning rate, 0.1 to 100, that would bring the update ratio to 1e-3."""
        if self.ratio > 0:
            return min(max(WANTED_RATIO / self.ratio, 0.1), 100.0)
        # nothing was measured: a first epoch worse than chance suggests too high a rate
        return 0.1 if self.loss and self.loss[0] > ABOVE_CHANCE * self.chance else 10.0


def _number(value: Any) -> float:
    with suppress(ValueError):
        return float(math.nan if value in (None, "") else value)
    return math.nan


def _error(accuracy: float, count: int) -> float:
    """Standard error of a share of `count` images; one more right and one more wrong keep it above 0 (Laplace)."""
    share = (accuracy * count + 1) / (count + 2)
    return math.sqrt(share * (1 - share) / count)


def digit(value: float) -> str:
    """Return a number with one significant digit."""
    return f"{float(f'{value:.0e}'):g}"


def end(values: list[float], count: int = 3) -> float:
    """Return the mean of the last few epochs, at most a third of all: a single one may be an outlier."""
    return fmean(values[-min(count, max(1, len(values) // 3)) :])


def span(names: Iterable[str], total: int) -> str:
    """Return the names of a few layers, or the first and the last of many."""
    found = list(names)
    if len(found) <= 2:
        return " and ".join(found)
    return f"{found[0]}..{found[-1]} ({len(found)} of {total} layers)"
