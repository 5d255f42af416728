"""The predictions of a finished run on validation and test, and its worst errors (end of `dlrun train`, D11).

With `trainer.ema` raw and averaged weights are tested (O10). With `trainer.multi_crop` the selected weights are also
tested on each image as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from dlrun.data.splits import Split
from dlrun.run.gallery import worst
from dlrun.training import choosing, loop, unsupervised
from dlrun.training.experiment import Experiment
from dlrun.training.loop import Predictions
from dlrun.training.multi_crop import viewed

__all__ = ["predicted", "showcase", "unlabelled_losses"]


def predicted(exp: Experiment, tested: dict[str, Any], test: Split) -> tuple[dict[str, Any], dict[str, Predictions]]:
    """Predict validation and test; with trainer.ema, select raw or averaged weights by validation.

    The model has the selected weights afterwards. Returns additional scores (of both kinds of weights, and with
    trainer.multi_crop those of one view, `plain_`), and the predictions of the selected weights by split.
    """
    kind = exp.cfg.trainer.multi_crop

    def by(model: nn.Module, kind: str = kind) -> dict[str, Predictions]:
        asked = viewed(model, kind)
        splits = {"val": exp.val, "test": exp.batches(test)}
        return {name: loop.predict(exp, batches, asked) for name, batches in splits.items() if len(batches)}

    scores, found = _by_weights(exp, tested, by)
    if kind != "none":
        scores["multi_crop"] = kind
        for name, predictions in by(exp.model, "none").items():
            scores |= loop.scores(exp, predictions, f"plain_{name}")
    return scores, found


def unlabelled_losses(exp: Experiment, tested: dict[str, Any], test: Split) -> dict[str, Any]:
    """Return val_loss and test_loss of a run without labels (M10); with trainer.ema of the better kind of weights.

    The model has the selected weights afterwards, and the objective those of the same epoch.
    """
    exp.objective.load_state_dict(tested["objective"])  # type: ignore[attr-defined]
    if exp.average is not None:
        exp.average.load_state_dict(tested["ema"])
    scores: dict[str, Any] = {}
    for name, images in (("val", exp.data.val), ("test", test)):
        if len(images):
            scores |= unsupervised.losses(exp, images, name)
    if exp.average is None:
        return scores
    split = "val" if "val_loss" in scores else "test"
    chosen = "ema" if split == "test" or scores["ema_val_loss"] < scores["val_loss"] else "raw"
    raw = {f"raw_{name}_loss": scores[f"{name}_loss"] for name in ("val", "test") if f"{name}_loss" in scores}
    if chosen == "ema":
        exp.model.load_state_dict(tested["ema"])
        scores |= {f"{name}_loss": scores[f"ema_{name}_loss"] for name in ("val", "test") if f"{name}_loss" in scores}
    return {"weights": chosen, **scores, **raw}


def _by_weights(
    exp: Experiment, tested: dict[str, Any], by: Callable[[nn.Module], dict[str, Predictions]]
) -> tuple[dict[str, Any], dict[str, Predictions]]:
    raw = by(exp.model)
    if exp.average is None:
        return {}, raw
    exp.average.load_state_dict(tested["ema"])
    averaged = by(exp.average)
    scores: dict[str, Any] = {}
    for name in raw:
        own = loop.scores(exp, raw[name], name)
        scores |= {f"raw_{key}": value for key, value in own.items()} | loop.scores(exp, averaged[name], f"ema_{name}")
        scores |= own if name == "val" else {}
    if "val" not in raw:  # nothing to choose by: whoever sets trainer.ema wants the average
        exp.model.load_state_dict(tested["ema"])
        return {"weights": "ema", **scores}, averaged
    monitor = exp.cfg.trainer.monitor
    monitor = monitor if f"ema_{monitor}" in scores else "val_acc"
    weights = choosing.best_weights(scores, monitor).get("weights", "raw")
    if weights == "ema":
        exp.model.load_state_dict(tested["ema"])
    return {"weights": weights, **scores}, averaged if weights == "ema" else raw


def showcase(exp: Experiment, found: Predictions) -> dict[str, Any]:
    """Return the worst validation errors as 8-bit images, and the filters of the first layer (D11)."""
    shown = worst(exp.data.val, found.logits.float(), found.labels)
    first = next((p for p in exp.model.parameters() if p.ndim >= 2), None)
    if first is not None and first.ndim == 4:
        shown["filters"] = first.detach()[:64].float().cpu().numpy()
    return shown
