"""C1: before training the loss is the loss of guessing.

Sees: logits of a wrong scale, a loss with a wrong reduction or argument order, probabilities passed for logits,
labels out of step with the number of classes. Cannot see: anything that leaves the logits near zero, such as a
trunk that never receives a gradient.
"""

from __future__ import annotations

import torch

from dlrun.checks.sandbox import data_loss, replica, samples
from dlrun.checks.verdict import Verdict
from dlrun.experiment import Experiment

__all__ = ["expected_loss", "initial_loss"]

NEAR, FAR = 0.25, 1.0  # relative: healthy initialisations stay within the first; twice the loss of guessing is wrong


def initial_loss(exp: Experiment) -> Verdict:
    """Compare the data loss of untrained weights with its exact value at chance: ln C, C-1, or the label entropy."""
    x, y = samples(exp, 256)
    with torch.no_grad():
        value = float(data_loss(exp)(replica(exp)(x).float(), y))
    expected, name = expected_loss(exp, y)
    off = (value - expected) / expected
    shown = f"{value:.3f}", f"{expected:.3f} ({name})"
    if off != off or abs(off) > FAR or off < -NEAR:
        message = "the untrained network is far from guessing: "
        message += "too small: does it see the labels?" if off < 0 else "scale of inputs, initialisation (model.init) or loss"
        return Verdict("fail", *shown, message)
    if abs(off) > NEAR:
        return Verdict("warn", *shown, "confident before it learned anything: try a smaller initialisation, model.init=default")
    return Verdict("pass", *shown, "the untrained network guesses")


def expected_loss(exp: Experiment, y: torch.Tensor) -> tuple[float, str]:
    """Return the loss at chance and its name."""
    loss, classes = data_loss(exp), exp.num_classes
    if exp.cfg.model.output_bias == "frequency" and type(loss).__name__ == "CrossEntropy":
        frequency = torch.bincount(exp.data.train.labels, minlength=classes).double()
        prior = (frequency / frequency.sum()).log().float().to(y.device)
        return float(loss(prior.expand(len(y), -1), y)), "entropy of the labels"
    if hasattr(loss, "chance"):
        return float(loss.chance(classes)), {"CrossEntropy": f"ln {classes}", "Hinge": f"{classes} - 1"}.get(type(loss).__name__, "chance")  # type: ignore[operator]
    return float(loss(torch.zeros(len(y), classes, device=y.device), y)), "uniform logits"
