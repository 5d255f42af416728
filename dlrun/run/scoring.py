"""All scores of a finished run, those of each class, and the interval of its test scores (end of `dlrun train`, S9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlrun.analysis.classification import count, interval, measures, per_class
from dlrun.folders.run import Run
from dlrun.training.experiment import Experiment
from dlrun.training.loop import Predictions
from dlrun.vocabulary import PER_EPOCH

__all__ = ["further"]

RESAMPLES, SEED = 1000, 0  # the same for every run, so that a repeated run has the same interval
CLASS = ("n", "precision", "recall", "f1")


def further(exp: Experiment, run: Run, found: Mapping[str, Predictions]) -> dict[str, Any]:
    """Write per_class.csv of predictions on `val` and `test`, and return all scores but loss and accuracy.

    The interval is of the test accuracy and of the test score that trainer.monitor names, if the images drawn again
    give it: not of a loss.
    """
    scores: dict[str, Any] = {}
    rows: list[dict[str, Any]] = [{"class": name} for name in exp.data.classes]
    for split, (logits, labels) in found.items():
        y, chosen = labels.numpy(), logits.argmax(1).numpy()
        p = logits.double().softmax(1).numpy()
        scores |= {f"{split}_{name}": value for name, value in measures(logits.numpy(), p, y, chosen).items()}
        each = per_class(count(y, chosen, len(rows)), exp.data.classes)
        for row, one in zip(rows, each, strict=True):
            row |= {f"{split}_{name}": one[name] for name in CLASS}
    test, monitored = found["test"], exp.cfg.trainer.monitor.removeprefix("val_")
    names = ("acc", *(name for name in PER_EPOCH if name == monitored))
    ends = interval(
        test.labels.numpy(), test.logits.argmax(1).numpy(), len(rows), names, resamples=RESAMPLES, seed=SEED
    )
    about = {"level": 0.95, "method": "percentile", "resamples": RESAMPLES, "seed": SEED}
    scores["bootstrap"] = about | {f"test_{name}": list(pair) for name, pair in ends.items()}
    run.write_per_class(rows)
    return scores
