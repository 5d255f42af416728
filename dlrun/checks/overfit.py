"""C3: the network can learn twenty examples by heart.

Sees: anything that keeps a gradient from doing its work: a detached or frozen trunk, a wrong sign, dead units, a loss
on the wrong output. Cannot see: garbage inputs, which can be learned by heart as well (C7 does).
"""

from __future__ import annotations

import torch

from dlrun.checks.sandbox import data_loss, replica, samples
from dlrun.checks.verdict import Verdict
from dlrun.experiment import Experiment

__all__ = ["overfit"]

EXAMPLES, STEPS = 20, 150
# its own optimizer, so that a rate which a sweep draws badly does not make a sound network fail
RATES = (1e-3, 1e-2, 1e-4)


def overfit(exp: Experiment) -> Verdict:
    """Train a copy on 20 examples until all are right and the loss is under a twentieth of chance."""
    x, y = samples(exp, EXAMPLES)
    loss = data_loss(exp)
    goal = float(loss(torch.zeros(len(y), exp.num_classes, device=y.device), y)) / 20
    expected = f"accuracy 1.00, loss < {goal:.2g}"
    reached: list[tuple[float, float]] = []
    for rate in RATES:
        model = replica(exp)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=rate)
        for step in range(1, STEPS + 1):
            optimizer.zero_grad()
            with exp.autocast():
                value, logits = exp.objective(model, loss, x, y)
            accuracy, now = float((logits.argmax(1) == y).float().mean()), float(value.detach())
            if accuracy == 1.0 and now < goal:
                return Verdict("pass", f"accuracy 1.00, loss {now:.2g}", expected, f"learned by heart in {step} steps")
            value.backward()
            optimizer.step()
        reached.append((accuracy, now))
    accuracy, now = max(reached, key=lambda r: (r[0], -r[1]))
    status = "warn" if accuracy == 1.0 else "fail"
    message = f"{len(y)} examples are not learned by heart in {STEPS} steps: a frozen or detached layer, or a wrong gradient"
    return Verdict(status, f"accuracy {accuracy:.2f}, loss {now:.2g}", expected, message)
