"""Training that starts from the weights of an earlier run or of a file: `dlrun train trainer.start_from=RUN` (M3).

A run gives the weights that it was tested with, its classes, and the input that they expect. Whatever the model and the
weights have in common is compared before anything is loaded; rows of the classifier go to the classes of their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from dlrun.config.settings import Settings
from dlrun.data import Data
from dlrun.data.units import recorded
from dlrun.errors import UserError
from dlrun.folders import ensemble, reading, sweep
from dlrun.models.loading import heads, loaded, put
from dlrun.models.pretrained import Statistics
from dlrun.models.weights_file import read
from dlrun.vocabulary import reads_labels

__all__ = ["Source", "begin", "input_of", "source"]


class Source(NamedTuple):
    """A file of weights, the entry of it, and the run that made it, if one did."""

    file: Path
    part: str
    run: Path | None


def source(cfg: Settings) -> Source | None:
    """Return what trainer.start_from names; None if it names nothing. Raises UserError."""
    if not (asked := cfg.trainer.start_from):
        return None
    path, key = Path(asked).expanduser(), f"trainer.start_from={asked}"
    if cfg.model.get("weights"):
        raise UserError(f"{key} would overwrite model.weights={cfg.model['weights']}; omit one of them")
    if path.is_dir():
        if not any(is_one(path) for is_one in (reading.is_run, ensemble.is_ensemble, sweep.is_sweep)):
            raise UserError(f"{key}: no run in this folder; expected a run, or a file of weights")
        from dlrun.analysis import sweeps  # late, since it slows the start of every run

        sweeps.expect_model(path)
        if ensemble.is_ensemble(path):
            raise UserError(f"{key}: expected a run or a file, found an ensemble; name one of its members")
        file = reading.tested(path)
        if not file.is_file():
            raise UserError(f"{key}: this run has no checkpoint yet; expected one that has trained an epoch")
        return Source(file, "ema" if reading.stored(path).get("weights") == "ema" else "model", path)
    if not path.is_file():
        raise UserError(f"{key}: no such run or file; expected the folder of a run, or .pt, .pth or .safetensors")
    run = path.parent.parent if path.parent.name == "checkpoints" else None
    return Source(path, "", run if run is not None and reading.is_run(run) else None)


def begin(cfg: Settings, model: nn.Module, data: Data) -> None:
    """Load what trainer.start_from names into a model. Raises UserError that lists what does not fit."""
    if (found := source(cfg)) is None:
        return
    key = f"trainer.start_from={cfg.trainer.start_from}"
    weights = read(found.file, key, found.part)
    if found.run is not None and isinstance(record := reading.stored(found.run).get("data"), dict):
        weights.classes = tuple(map(str, record.get("classes") or ()))
    if found.run is not None and not reads_labels(reading.config(found.run)):
        # its last layer has learned nothing (M10)
        last = tuple(f"{name}." for name in heads(model, len(data.classes)))
        weights.tensors = {name: value for name, value in weights.tensors.items() if not name.startswith(last)}
    put(model, weights, key, heads(model, len(data.classes)), data.classes, extra=True)
    made = loaded(model)
    assert made is not None
    made.part = found.part


def input_of(run: Path) -> Statistics | None:
    """Return the input that the weights of a run expect; None if its images had no white level."""
    record: Any = reading.stored(run).get("data")
    try:
        units = recorded(record, reading.arrays(run, "probe").get("images"))
        if units is None or units.white is None:
            return None
        mean, std = (tuple(float(v) / units.white for v in record[key]) for key in ("mean", "std"))
        how = record.get("decoding") or {}
        size = tuple(int(n) for n in record["shape"][:2]) if how.get("resize", "none") != "none" else ()
        crop, between = float(how.get("crop", 1.0)), str(how.get("interpolation", "bilinear"))
        return Statistics(f"the run {run.name}", mean, std, size, between, crop)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # a run that stopped before its data were recorded
