"""Training with several labels per image: what it cannot be combined with, and a score per task (M11).

`dlrun train dataset=table 'dataset.targets=[species,age_group]'`: `val_species_acc` and `val_species_loss` are columns
of metrics.csv and keys of result.json; `val_acc` and the other scores are the means over the tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from numpy.typing import NDArray

from dlrun.analysis.classification import agreement, bootstrap, by_class, count, interval_of_mean, measures
from dlrun.config.settings import Settings
from dlrun.data import Data
from dlrun.data.tasks import Tasks
from dlrun.errors import UserError
from dlrun.training import sets
from dlrun.vocabulary import PER_EPOCH

__all__ = ["columns", "further", "must_suit", "scores", "shares"]

SUPERVISED = "dlrun.objectives.Supervised"


def must_suit(cfg: Settings, data: Data) -> None:
    """Raise UserError for what one label per image is needed for, and for weights of tasks that do not fit."""
    weights, plain = cfg.loss.get("weights") or [], cfg.plain
    if data.tasks is None:
        if weights and str(cfg.loss.get("_target_")).startswith("dlrun."):
            raise UserError(f"loss.weights={weights}: there is one target; expected it with dataset.targets, omit it")
        return
    names = ",".join(data.tasks.names)
    _require_bce(cfg, data.tasks)
    shares(weights, data.tasks)
    objective = plain["objective"]
    mixing = [f"objective.{key}={objective[key]:g}" for key in ("mixup", "cutmix") if objective.get(key)]
    refused = {
        f"objective={cfg.choices.get('objective')}": objective.get("_target_") != SUPERVISED,
        mixing[0] if mixing else "": bool(mixing),
        f"loss.weight={cfg.loss.get('weight')}": cfg.loss.get("weight", "none") != "none",
        "dataset.balance=true": data.balance,
        f"model.output_bias={cfg.model.get('output_bias')}": cfg.model.get("output_bias", "default") != "default",
    }
    if wrong := next((key for key, found in refused.items() if found), ""):
        key = "dataset.multilabel=true" if data.tasks.sets else f"dataset.targets=[{names}]"
        raise UserError(f"{wrong}: needs one label per image, found {key}; omit one of them")


def shares(weights: Sequence[float] | Mapping[str, float], tasks: Tasks) -> list[float]:
    """Return how much each task counts, from a list in their order or numbers by name; without any all the same.

    Raises UserError for weights that do not fit the tasks.
    """
    if not weights:
        return [1.0] * len(tasks.names)
    names = ",".join(tasks.names)
    if isinstance(weights, Mapping):
        typed, several = {str(name): value for name, value in weights.items()}, [*tasks.names]
        wrong = next((name for name in typed if name not in several), "")
        lacking = next((name for name in several if name not in typed), "")
        if wrong or lacking:
            what = f"no target is called {wrong}" if wrong else f"{lacking} has no weight"
            shown = ", ".join(f"{name}: {value:g}" for name, value in typed.items())
            raise UserError(f"loss.weights={{{shown}}}: {what}; expected one per target: dataset.targets=[{names}]")
        weights = [typed[name] for name in several]
    if len(weights) != len(tasks.names):
        what = f"expected {len(tasks.names)}, one per target, found {len(weights)}"
        raise UserError(f"loss.weights={weights}: {what}: dataset.targets=[{names}]")
    if not all(weight > 0 for weight in weights):
        raise UserError(f"loss.weights={weights}: must be above 0; omit a target from dataset.targets to leave it out")
    return [float(weight) for weight in weights]


def _require_bce(cfg: Settings, tasks: Tasks) -> None:
    if tasks.sets and cfg.loss.get("_target_") != "dlrun.losses.BinaryCrossEntropy":
        found = cfg.choices.get("loss") or cfg.loss.get("_target_")
        raise UserError(f"loss={found}: dataset.multilabel=true needs one probability per class; type loss=bce")


def columns(tasks: Tasks | None) -> tuple[str, ...]:
    """Return the columns of metrics.csv that several tasks add; sets add the mean average precision."""
    if tasks is not None and tasks.sets:
        return ("val_map",)
    return tuple(f"val_{name}_{what}" for name in (tasks.names if tasks else ()) for what in ("loss", "acc"))


def scores(tasks: Tasks, losses: Sequence[float], logits: Any, labels: Any, split: str) -> dict[str, Any]:
    """Return loss and accuracy of each task of a split, and the means of their scores; None: undefined.

    `losses`: of each task. Logits (N, K) and codes (N,), see `Tasks`. The loss of all is left to the caller.
    """
    found: list[dict[str, float | None]] = []
    for part, column in zip(tasks.split(logits), tasks.columns(labels).unbind(1), strict=True):
        found.append(agreement(count(column.numpy(), part.argmax(1).numpy(), part.shape[1])))
    row: dict[str, Any] = {f"{split}_{name}": _mean([one[name] for one in found]) for name in ("acc", *PER_EPOCH)}
    if tasks.sets:
        return row | sets.scores(tasks, logits, labels, split)
    for name, loss, one in zip(tasks.names, losses, found, strict=True):
        row |= {f"{split}_{name}_loss": loss, f"{split}_{name}_acc": one["acc"]}
    return row


def further(
    tasks: Tasks, found: Mapping[str, tuple[Any, Any]], thresholds: Sequence[float] | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return all scores of predictions by split, and the rows of per_class.csv.

    `tasks` has those of each task by name; the others are their means. The interval is that of the mean accuracy. Of
    sets the thresholds are chosen on validation unless they are given.
    """
    each: dict[str, dict[str, Any]] = {name: {} for name in tasks.names}
    rows: list[dict[str, Any]] = []
    keys: dict[str, None] = {}
    splits = {split: _parts(tasks, *pair) for split, pair in found.items()}
    for number, (name, classes) in enumerate(zip(tasks.names, tasks.classes, strict=True)):
        answers = {}
        for split, parts in splits.items():
            logits, p, labels = parts[number]
            answers[split] = labels, logits.argmax(1)
            made = measures(logits, p, *answers[split])
            keys |= {f"{split}_{key}": None for key in made}
            made["acc"] = float((answers[split][1] == labels).mean())
            each[name] |= {f"{split}_{key}": value for key, value in made.items()}
        made_rows = by_class(answers, [name] * 2 if tasks.sets else [f"{name}={one}" for one in classes])
        rows += made_rows[1:] if tasks.sets else made_rows
    means = {key: _mean([one[key] for one in each.values()]) for key in keys}
    share = tasks.right(*found["test"]).double().numpy()
    about = bootstrap(*answers["test"], len(classes), ())
    if tasks.sets:
        means |= sets.further(tasks, found, each, thresholds)
    return {**means, "tasks": each, "bootstrap": about | {"test_acc": [*interval_of_mean(share)]}}, rows


def _parts(tasks: Tasks, logits: Any, labels: Any) -> list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Logits, probabilities and class numbers of each task."""
    pairs = zip(tasks.split(logits), tasks.columns(labels).unbind(1), strict=True)
    return [(part.numpy(), part.double().softmax(1).numpy(), column.numpy()) for part, column in pairs]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
