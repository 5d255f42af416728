"""All scores of a finished run, those of each class, and the interval of its test scores (end of `dlrun train`, S9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlrun.analysis.classification import bootstrap, by_class, measures
from dlrun.folders.run import Run
from dlrun.training.experiment import Experiment
from dlrun.training.loop import Predictions
from dlrun.vocabulary import PER_EPOCH

__all__ = ["further"]


def further(exp: Experiment, run: Run, found: Mapping[str, Predictions]) -> dict[str, Any]:
    """Write per_class.csv of predictions on `val` and `test`, and return all scores but loss and accuracy.

    The interval is of the test accuracy and of the test score that trainer.monitor names, if the images drawn again
    give it: not of a loss.
    """
    scores: dict[str, Any] = {}
    answers = {s: (labels.numpy(), logits.argmax(1).numpy()) for s, (logits, labels) in found.items()}
    for split, (logits, _) in found.items():
        p = logits.double().softmax(1).numpy()
        scores |= {f"{split}_{name}": value for name, value in measures(logits.numpy(), p, *answers[split]).items()}
    run.write_per_class(by_class(answers, exp.data.classes))
    monitored = exp.cfg.trainer.monitor.removeprefix("val_")
    names = ("acc", *(name for name in PER_EPOCH if name == monitored))
    return scores | {"bootstrap": bootstrap(*answers["test"], len(exp.data.classes), names)}
