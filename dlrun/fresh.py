"""Members evaluated again from their checkpoints, and the average of their weights (`dlrun ensemble --fresh`,
`--members checkpoints`, `--average weights`; E3, E4).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlrun import checkpoint, engine
from dlrun.ensembles import Member
from dlrun.errors import UserError
from dlrun.experiment import Experiment
from dlrun.folders import reading
from dlrun.multi_crop import viewed
from dlrun.trained import rebuilt

__all__ = ["checkpoints", "evaluated", "soup"]


def evaluated(path: Path, trust: list[str]) -> Member:
    """Return a run as a member, its weights that count evaluated again."""
    exp = rebuilt(path, trust)
    averaged = reading.stored(path).get("weights") == "ema"
    return _member(exp, path, reading.tested(path), averaged=averaged)


def checkpoints(path: Path, trust: list[str]) -> tuple[list[Member], str]:
    """Return the epoch checkpoints of one run as members, in their order (E3), and what to know about them.

    With scheduler=warm_restarts only those at the end of a cycle, where there are two or more: snapshots (Huang et
    al. 2017, Snapshot Ensembles); else all, and the words say so. Raises UserError when the run kept none.
    """
    files = reading.epoch_checkpoints(path)
    if len(files) < 2:
        raise UserError(f"{path} kept {len(files)} epoch checkpoints; train with trainer.keep=all or trainer.keep=top3")
    exp, said = rebuilt(path, trust), ""
    if (reading.config(path).get("choices") or {}).get("scheduler") == "warm_restarts":
        rates = {int(row["epoch"]): float(row["lr"]) for row in reading.metrics(path)}
        ends = {e for e, rate in rates.items() if rates.get(e + 1, float("inf")) > rate}
        snapshots = [file for file in files if int(file.name.split("_")[1]) in ends]
        if len(snapshots) > 1:
            files = snapshots
        else:
            scheduler = exp.cfg.scheduler
            enough = max(len(rates), math.ceil(scheduler.period * (1 + scheduler.mult)))
            said = (
                f"no two checkpoints of {path} end a cycle of its warm restarts, so all {len(files)} vote; for "
                f"snapshots train with trainer.keep=all trainer.epochs={enough}, or a smaller scheduler.period"
            )
    return [_member(exp, path, file, name=file.name) for file in files], said


def _member(exp: Experiment, path: Path, file: Path, *, averaged: bool = False, name: str = "") -> Member:
    checkpoint.load_weights(file, checkpoint.load(file), exp.model, averaged=averaged)
    arrays: dict[str, Any] = {}
    test, seconds = exp.data.test(), 0.0
    for split, (samples, batches) in {"val": (exp.data.val, exp.val), "test": (test, exp.batches(test))}.items():
        started = time.perf_counter()
        found = engine.predict(exp, batches, viewed(exp.model, exp.cfg.trainer.get("multi_crop", "none")))
        seconds += time.perf_counter() - started
        arrays |= {f"{split}_logits": found.logits.numpy(), f"{split}_labels": found.labels.numpy()}
        arrays[f"{split}_ids"] = np.array(samples.ids)
    count = sum(p.numel() for p in exp.model.parameters())
    ms = 1e3 * seconds / (len(exp.data.val) + len(test))
    return Member(path, exp.data.record(), arrays, count, ms, name)


def soup(members: Sequence[Member], trust: list[str]) -> Experiment:
    """Return the experiment of the first member with the mean of all weights, each as often as it counts.

    Wortsman et al. 2022, Model soups. The statistics of batch norms belong to none of the means and are measured
    again on one epoch of the training split. Raises UserError when the members are not of one architecture.
    """
    exp = rebuilt(members[0].path, trust)
    model = reading.config(members[0].path)["model"]
    total: dict[str, Tensor] = {}
    weight = sum(m.weight for m in members)
    for m in members:
        if reading.config(m.path)["model"] != model:
            raise UserError(
                f"{m.name} and {members[0].name} differ in their model; weights of one architecture average"
            )
        file = reading.tested(m.path) if not m.checkpoint else reading.tested(m.path).with_name(m.checkpoint)
        averaged = not m.checkpoint and reading.stored(m.path).get("weights") == "ema"
        checkpoint.load_weights(file, checkpoint.load(file), exp.model, averaged=averaged)
        for name, tensor in exp.model.state_dict().items():
            share = tensor.double() * (m.weight / weight)
            total[name] = total[name] + share if name in total else share
    own = exp.model.state_dict()
    exp.model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in total.items()})
    with exp.autocast():
        torch.optim.swa_utils.update_bn((x for x, _, _ in exp.train.epoch(1)), exp.model)
    exp.average = None
    return exp
