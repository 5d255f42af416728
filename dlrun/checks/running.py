"""M5: statistics and averages that a module of the user keeps for evaluation follow the data; `dlrun check`.

A tensor that evaluation reads and training only writes is a running statistic, or an average of weights. How much of a
change is left after a step tells how fast it follows. Detects: one that never changes, that keeps its start
through the planned training, that holds the last batch alone or adds up, and one that no checkpoint contains. Cannot
detect: what dlrun knows better, torch's own batch norms (`batch_norm`), or statistics outside of modules.
"""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor, nn

from dlrun.checks.check import SETUP, check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named, replica, training
from dlrun.checks.smaller import small_samples
from dlrun.models.outputs import logits_of
from dlrun.training import norms
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["running"]

COUNT, STEPS = 8, 2
START = 0.1  # of the start that is left at the end of the training, as in `batch_norm`
HASTY = 0.6  # of the way to a batch in one step
WHOLE = 1 - 1e-6  # of a change is left: nothing is forgotten
FIX = "new = 0.9 × old + 0.1 × that of the batch, under torch.no_grad()"


@check(order=67, needs_outputs=True, depends_on=(*SETUP, "trainer"), labels=False)
def running(exp: Experiment) -> Verdict:
    """Watch the tensors that only evaluation reads over a few training steps of a copy."""
    expected = "statistics that follow the data"
    model = replica(exp)
    held = _held(model)
    if not held:
        return Verdict(Outcome.PASS, "none", expected, "no module keeps statistics of its own")
    x, y = small_samples(exp, COUNT)
    with torch.no_grad():
        model(x.clone())  # the first batch may set them
    mine = {name: place for name, place in held.items() if _read(model, x, *place)}
    if not mine:
        return Verdict(Outcome.PASS, f"{len(held)} tensors", expected, "evaluation reads no statistics of its own")
    steps = norms.planned(exp.cfg.trainer, len(exp.data.train))
    kept = {name: _kept(model, x, *place) for name, place in mine.items()}
    still = _still(exp, model, (x, y), mine)
    for found in (_never(still), _unsaved(mine), _summed(kept, still), _hasty(kept), _slow(kept, still, steps)):
        if found is not None:
            return Verdict(found[0], f"{len(mine)} tensors", expected, found[1])
    return Verdict(Outcome.PASS, f"{len(mine)} tensors", expected, "they follow the data")


Place = tuple[nn.Module, str]
Found = tuple[Outcome, str] | None


def _held(model: nn.Module) -> dict[str, Place]:
    """The floating tensors of modules that are not torch's own, buffers or plain attributes."""
    found = {}
    for name, module in model.named_modules():
        if type(module).__module__.startswith(("torch.", "torchvision.", "timm.")):
            continue
        plain = {k: v for k, v in vars(module).items() if isinstance(v, Tensor)}
        for key, value in {**dict(module.named_buffers(recurse=False)), **plain}.items():
            if value.is_floating_point() and not value.requires_grad:
                found[f"{name}.{key}".lstrip(".")] = (module, key)
    return found


def _read(model: nn.Module, x: Tensor, module: nn.Module, key: str) -> bool:
    """Whether evaluation depends on a tensor and training does not."""
    value: Tensor = getattr(module, key)
    changed = []
    for mode in (True, False):
        outputs = []
        for factor in (1.0, 1.5):
            before = value.clone()
            with torch.no_grad():
                setattr(module, key, value * factor + (factor - 1) / 2)
                torch.manual_seed(0)
                outputs.append(logits_of(model.train(mode)(x.clone())).float())
            setattr(module, key, before)
        changed.append(not torch.allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-6))
    model.train()
    return changed == [False, True]


def _kept(model: nn.Module, x: Tensor, module: nn.Module, key: str) -> float:
    """The share of a change of a tensor that is left after a pass in training mode: 1 - m for a running mean."""
    value: Tensor = getattr(module, key).clone()
    change = 0.5 * value.abs() + 1.0
    after = []
    for start in (value, value + change):
        setattr(module, key, start.clone())
        with torch.no_grad():
            torch.manual_seed(0)
            model.train()(x.clone())
        after.append(getattr(module, key).detach().clone())
    setattr(module, key, value)
    return float((after[1] - after[0]).norm() / change.norm()) if after[0].shape == change.shape else 0.0


def _still(exp: Experiment, model: nn.Module, batch: tuple[Tensor, Tensor], mine: dict[str, Place]) -> list[str]:
    """The tensors that a few training steps leave as they are."""
    before = {name: getattr(*place).detach().clone() for name, place in mine.items()}
    for _ in training(exp, model, repeat(batch, STEPS), 1e-3):
        pass
    return [name for name, place in mine.items() if torch.equal(getattr(*place), before[name])]


def _never(still: list[str]) -> Found:
    if not still:
        return None
    return Outcome.FAIL, (
        f"evaluation uses {named(still)}, which never changes in training, so it stays as it was created: update it "
        f"in forward() while self.training is set, {FIX}"
    )


def _unsaved(mine: dict[str, Place]) -> Found:
    plain = [name for name, (module, key) in mine.items() if key not in module._buffers]
    if not plain:
        return None
    return Outcome.FAIL, (
        f"evaluation uses {named(plain)}, a plain tensor that no checkpoint contains and that stays on the processor: "
        "create it by self.register_buffer(name, tensor)"
    )


def _summed(kept: dict[str, float], still: list[str]) -> Found:
    found = [name for name, share in kept.items() if share > WHOLE and name not in still]
    if not found:
        return None
    return Outcome.WARN, (
        f"{named(found)} changes in every step and forgets nothing, so it adds up and grows for ever: take a running "
        f"mean, {FIX}"
    )


def _hasty(kept: dict[str, float]) -> Found:
    found = [name for name, share in kept.items() if share < 1 - HASTY]
    if not found:
        return None
    return Outcome.WARN, (
        f"{named(found)} follows the last batch alone: one step keeps {kept[found[0]]:.2g} of what was there; is the "
        f"momentum the wrong way round? {FIX}"
    )


def _slow(kept: dict[str, float], still: list[str], steps: int) -> Found:
    left = {name: share**steps for name, share in kept.items() if name not in still}
    found = [name for name, share in left.items() if share > START]
    if not found:
        return None
    return Outcome.WARN, (
        f"{named(found)} still holds {left[found[0]]:.0%} of its start after {steps:,} steps, the whole training, so "
        f"evaluation lags behind: a momentum or decay that fits it, {FIX}"
    )
