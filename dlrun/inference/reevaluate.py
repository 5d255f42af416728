"""Members evaluated again from their checkpoints (`dlrun ensemble --fresh`, `--members checkpoints`; E3)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrun.analysis import compare
from dlrun.ensembles.members import Member, one_target
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.inference.predictor import rebuilt
from dlrun.training import checkpoint, loop
from dlrun.training.experiment import Experiment
from dlrun.training.multi_crop import viewed

__all__ = ["checkpoints", "evaluated"]


def evaluated(path: Path, trust: list[str]) -> Member:
    """Return a run as a member, with the weights that were tested evaluated again."""
    exp = rebuilt(path, trust)
    averaged = reading.stored(path).get("weights") == "ema"
    return _member(exp, path, reading.tested(path), averaged=averaged)


def _rates(path: Path) -> Iterator[tuple[int, float]]:
    """The learning rate of each epoch whose row has one."""
    for row in reading.metrics(path):
        with suppress(KeyError, ValueError):
            yield int(row["epoch"]), float(row["lr"])


def checkpoints(path: Path, trust: list[str]) -> tuple[list[Member], str]:
    """Return the epoch checkpoints of one run as members, in their order (E3), and a note or "".

    With scheduler=warm_restarts only those at the end of a cycle, if there are two or more: snapshots (Huang et
    al. 2017, Snapshot Ensembles); else all, with a note. Raises UserError if the run has fewer than two.
    """
    files = reading.epoch_checkpoints(path)
    if len(files) < 2:
        raise UserError(
            f"{path}: expected two or more epoch checkpoints, found {len(files)}; "
            "train with trainer.keep=all or trainer.keep=top3"
        )
    exp, note = rebuilt(path, trust), ""
    if (reading.config(path).get("choices") or {}).get("scheduler") == "warm_restarts":
        rates = dict(_rates(path))
        ends = {e for e, rate in rates.items() if rates.get(e + 1, float("inf")) > rate}
        snapshots = [file for file in files if int(file.name.split("_")[1]) in ends]
        if len(snapshots) > 1:
            files = snapshots
        else:
            scheduler = exp.cfg.scheduler
            enough = max(len(rates), math.ceil(scheduler["period"] * (1 + scheduler["mult"])))
            note = (
                f"{path} has fewer than two checkpoints at the end of a warm-restart cycle, so all {len(files)} vote; "
                f"for snapshots train with trainer.keep=all trainer.epochs={enough}, or a smaller scheduler.period"
            )
    return [_member(exp, path, file, name=file.name) for file in files], note


def _member(exp: Experiment, path: Path, file: Path, *, averaged: bool = False, name: str = "") -> Member:
    one_target(path, exp.data.record())
    checkpoint.load_weights(file, checkpoint.load(file), exp.model, averaged=averaged)
    arrays: dict[str, NDArray[Any]] = {}
    test, seconds = exp.data.test().split, 0.0
    splits = {"val": (exp.data.val, exp.val), "test": (test, exp.batches(test))}
    for split, (samples, batches) in splits.items():
        if not len(samples):
            continue  # no validation split
        started = time.perf_counter()
        found = loop.predict(exp, batches, viewed(exp.model, exp.cfg.trainer.multi_crop))
        seconds += time.perf_counter() - started
        arrays |= {f"{split}_logits": found.logits.numpy(), f"{split}_labels": found.labels.numpy()}
        arrays[f"{split}_ids"] = np.array(samples.ids)
    count = sum(p.numel() for p in exp.model.parameters())
    ms = 1e3 * seconds / (len(exp.data.val) + len(test))
    config = compare.read([str(path)])[0].config
    return Member(path, exp.data.record(), arrays, count, ms, name, config=config)
