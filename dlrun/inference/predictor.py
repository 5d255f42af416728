"""A trained run or ensemble, loaded to predict (`dlrun predict`, `dlrun export`, `dlrun ensemble --fresh`, E6).

Folders are untrusted: only targets trusted on the command line are built, checkpoints are loaded as data, and
neither the dataset nor the optimizer of the run is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.analysis import sweeps
from dlrun.config.schema import check_rules
from dlrun.config.settings import Settings
from dlrun.config.targets import check_targets
from dlrun.data import crops, units
from dlrun.data.changes import Rows
from dlrun.data.decoding import VERSION, Decoding
from dlrun.data.identity import keys_of
from dlrun.data.jpegs import DEVICE, asked
from dlrun.data.tasks import Tasks
from dlrun.data.units import Units, Values, factor
from dlrun.ensembles.votes import VOTES, Vote, heated, softmax
from dlrun.errors import UserError
from dlrun.folders import ensemble as ensemble_folder
from dlrun.folders import own_code, reading
from dlrun.training import checkpoint
from dlrun.training.device import pick_device, pick_dtype
from dlrun.training.evaluating import logits
from dlrun.training.experiment import Experiment, build, build_model
from dlrun.training.multi_crop import viewed
from dlrun.training.normalised import Normalised, differs
from dlrun.training.same_data import continued
from dlrun.training.shared_data import read_data
from dlrun.vocabulary import Exit, reads_labels

__all__ = ["Predictor", "decoding_for", "load", "rebuilt", "scale_of_files"]

ELSEWHERE = f"trained with dataset.jpeg={DEVICE}; here the processor decodes files, whose pixels differ slightly"


@dataclass
class Predictor:
    """One model, or several that vote; call it with raw images (B, H, W, C)."""

    path: Path
    classes: list[str]
    shape: tuple[int, int, int]
    models: list[Normalised]
    weights: list[float]
    vote: str
    temperature: float
    device: torch.device
    data: dict[str, Any]  # the data record of the run's result.json
    decoding: Decoding = field(default_factory=Decoding)  # of image files
    units: Units | None = None  # of images; None for an older run that does not tell
    members: tuple[Path, ...] = ()  # of an ensemble
    dtypes: tuple[torch.dtype, ...] = ()  # of the forward passes of each model: that of its run
    batch_size: int = 256  # of the evaluations of the run
    tasks: Tasks | None = None  # of a run with several targets; then a vote has classes (B, T)
    thresholds: list[float] = field(default_factory=list)  # of the classes of a set, chosen on validation

    def changes(self, trust: list[str]) -> list[str]:
        """Return lines on what differs from training: own code that has changed, and the decoder of JPEGs."""
        paths = self.members or (self.path,)
        found = [line for path in paths if (line := own_code.changes(path, trust))][:1]
        if any(asked(reading.config(path).get("dataset") or {}) == DEVICE for path in paths):
            found.append(ELSEWHERE)
        return found

    def scale_of_files(self) -> float:
        """Return by what pixels decoded from files are multiplied to be in the units of the run. Raises Unfit."""
        return scale_of_files(self.data, self.decoding, self.units)

    @cached_property
    def seen(self) -> dict[bytes, str]:
        """The split, by digest, of the images that the run or a member was trained on (train) or chosen by (val)."""
        found: dict[bytes, str] = {}
        for path in self.members or (self.path,):
            rows = Rows.read(reading.arrays(path, "identity"))
            if rows is not None:
                for name in ("val", "train"):
                    found.update(dict.fromkeys(keys_of(rows.of(name).digests), name))
        return found

    def __call__(self, images: Tensor) -> Vote:
        """Return probabilities and classes of images (B, H, W, C), uint8 or float, in the units of the dataset."""
        return self.voted(self.logits(images))

    def voted(self, logits: NDArray[np.float32]) -> Vote:
        """Return probabilities and classes of the logits (M, B, K) of every model."""
        if self.tasks is not None and self.tasks.sets:
            p = softmax(np.stack([np.zeros_like(logits[0]), logits[0]], -1))[..., 1]
            return Vote(p, (p >= np.array(self.thresholds)).astype(np.int64))
        if self.tasks is not None:
            parts = [softmax(one) for one in np.split(logits[0], np.cumsum(self.tasks.sizes)[:-1], axis=1)]
            return Vote(np.concatenate(parts, 1), np.stack([one.argmax(1) for one in parts], 1))
        return heated(VOTES[self.vote](logits, softmax(logits), np.array(self.weights)), self.temperature)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> NDArray[np.float32]:
        """Return the logits (M, B, K) of every model, which do not depend on the batch: see training/evaluating.py."""
        x = images.to(self.device).permute(0, 3, 1, 2)
        found = []
        for model, dtype in zip(self.models, self.dtypes, strict=True):
            low = dtype != torch.float32
            with torch.autocast(self.device.type, dtype=dtype if low else torch.bfloat16, enabled=low):
                found.append(logits(model, x).cpu().numpy())
        return np.stack(found)


def scale_of_files(data: Mapping[str, Any], decoding: Decoding, known: Units | None) -> float:
    """Return by what pixels decoded from files are multiplied to be in the units of a run. Raises Unfit."""
    if "decoding" in data or decoding.held != "uint8":
        return 1.0  # the decoder gives these units
    return factor(Values(np.dtype(np.uint8), 0, 255, True), known)


def load(path: Path, trust: list[str], device: str = "auto", *, several: bool = False) -> Predictor:
    """Load a run, or an ensemble with its members; with `several` also a run with several targets (M11).

    Raises UserError that names what cannot be used, also a model that gives other logits than at the end of training.
    """
    sweeps.expect_model(path)
    if not ensemble_folder.is_ensemble(path):
        made = _run(path, trust, device)
        if made.tasks is not None and not several:
            raise UserError(f"{path}: has several targets, {', '.join(made.tasks.names)}; expected a run with one")
        return made
    stored = ensemble_folder.read(path)
    if str(stored.get("vote")) not in VOTES:
        raise UserError(f"{path}: vote={stored.get('vote')}: expected one of {', '.join(VOTES)}")
    try:
        weights = [float(m.get("weight", 1)) for m in stored["members"]]
        temperature = float(stored.get("temperature", 1.0))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: a weight or the temperature is not a number: {error}") from error
    if not all(0 < number < math.inf for number in (*weights, temperature)):
        raise UserError(f"{path}: weights and temperature must be finite and above 0")
    for m in stored["members"]:
        if not reading.is_run(path / str(m["run"])):
            raise UserError(
                f"{path}: its member {m['run']} is missing; an ensemble needs its runs: "
                "copy them to the same place relative to it"
            )
    parts = [_run(path / str(m["run"]), trust, device, str(m.get("checkpoint") or "")) for m in stored["members"]]
    first = parts[0]
    for other in parts[1:]:
        if (other.classes, other.shape) != (first.classes, first.shape):
            raise UserError(f"{other.path} and {first.path} differ in classes or shape; run `dlrun ensemble` again")
        if other.decoding != first.decoding:
            what = "decode files in other ways, such as by another dataset.interpolation"
            raise UserError(
                f"{other.path} and {first.path} {what}; train members alike, then run `dlrun ensemble` again"
            )
    models = [part.models[0] for part in parts]
    vote, where = stored["vote"], first.device
    return Predictor(
        path,
        first.classes,
        first.shape,
        models,
        weights,
        vote,
        temperature,
        where,
        first.data,
        first.decoding,
        first.units,
        tuple(part.path for part in parts),
        tuple(dtype for part in parts for dtype in part.dtypes),
        first.batch_size,
    )


def rebuilt(path: Path, trust: list[str]) -> Experiment:
    """Rebuild the experiment of a run, its data included. Raises UserError that names what is missing."""
    plain = reading.config(path)
    plain["trust"] = trust  # the trust list of a stored config does not count
    if isinstance(plain.get("objective"), dict):
        plain["objective"] = {"_target_": "dlrun.objectives.Supervised"}  # its teacher is not needed
    try:
        check_rules(plain)
        check_targets(plain, trust)
        plain["trainer"]["device"] = _here(str(plain["trainer"].get("device", "auto")))
        exp = build(Settings.of(plain), begun=True)
    except UserError as error:
        raise UserError(f"{path / 'config.yaml'}: {error}") from error
    # of a folder that has grown since, the images that the run recorded
    data, _ = continued(path, exp.data, partial(read_data, plain["dataset"], trust, fit_all=exp.cfg.trainer.fit_all))
    return exp if data is exp.data else build(exp.cfg, data=data, begun=True)


def _here(device: str) -> str:
    """The device of a run, or auto if this machine does not have it."""
    try:
        pick_device(device)
    except UserError:
        return "auto"
    return device


def _run(path: Path, trust: list[str], device: str, name: str = "") -> Predictor:
    data, where = _data(path), pick_device(device, "--device ")
    plain = reading.config(path)
    if not reads_labels(plain):
        what = "learned without labels and knows no classes; train with trainer.start_from=RUN first"
        raise UserError(f"{path}: {what.replace('RUN', str(path))}")
    trainer = plain["trainer"] if isinstance(plain.get("trainer"), dict) else {}
    kind = str(trainer.get("multi_crop", "none"))
    try:
        check_targets(plain, trust)
        node = plain.get("model")
        if not isinstance(node, dict):
            raise UserError("model is missing")
        if node.get("weights"):
            node = {**node, "weights": None}  # only the start of training; the checkpoint has all weights
        changes = plain.get("augment") or {}  # of which only the crops count
        shape, crop = crops.fed(changes, data["shape"]), crops.evaluated(changes, data["shape"])
        model = build_model(node, trust, shape, data["classes"])
    except UserError as error:
        raise UserError(f"{path / 'config.yaml'}: {error}") from error
    file = reading.tested(path)
    if name:
        file = next((f for f in reading.epoch_checkpoints(path) if f.name == name), file.with_name(Path(name).name))
    averaged = not name and reading.stored(path).get("weights") == "ema"
    checkpoint.load_weights(file, checkpoint.load(file), model, averaged=averaged)
    whole = Normalised(viewed(model, kind), data["mean"], data["std"], crop).eval()
    # as in training, so that the logits are the same to the last bit
    layout = torch.contiguous_format if _target(plain, "optimizer").endswith(".LBFGS") else torch.channels_last
    whole = whole.to(where, memory_format=layout)  # type: ignore[call-overload]
    probe = reading.arrays(path, "probe")
    if not name and (gap := differs(whole, probe, where)):
        why = own_code.mismatch(path, trust)
        raise UserError(f"{path}: its logits differ by {gap:.2g} from those at the end of training: {why}", Exit.FAILED)
    made = Predictor(path, data["classes"], data["shape"], [whole], [1.0], "mean_probability", 1.0, where, data)
    made.tasks = data["tasks"]
    if made.tasks is not None and made.tasks.sets:
        made.thresholds = _thresholds(path, made.tasks)
    try:
        made.units = units.recorded(data, probe.get("images"))
        made.decoding = decoding_for(plain.get("dataset"), data, made.units)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: result.json has no valid record of its images; train again") from error
    made.dtypes = (pick_dtype(str(trainer.get("precision", "fp32")), where, model, shape),)
    size = trainer.get("eval_batch_size")
    made.batch_size = size if isinstance(size, int) and size > 0 else made.batch_size
    return made


def _thresholds(path: Path, tasks: Tasks) -> list[float]:
    """Those of the classes of a set, which the end of training chose on validation."""
    found = reading.stored(path).get("thresholds")
    known = [found.get(name) for name in tasks.names] if isinstance(found, dict) else []
    if not known or not all(isinstance(one, float) and 0 <= one <= 1 for one in known):
        raise UserError(f"{path}: result.json has no thresholds of its classes; expected a completed run")
    return known  # type: ignore[return-value]


def _target(plain: dict[str, Any], part: str) -> str:
    node = plain.get(part)
    return str(node.get("_target_", "")) if isinstance(node, dict) else ""


def decoding_for(source: Any, data: Mapping[str, Any], known: Units | None) -> Decoding:
    """Return how image files become the input of a run; of one that was not trained on files, as for a new run."""
    height, width, _ = data["shape"]
    found = data.get("decoding")
    if isinstance(found, dict):
        made = Decoding.of(found)
    else:
        made = Decoding(resize="none", decoder=source.get("decoder", VERSION) if isinstance(source, dict) else VERSION)
        if known is not None and known.dtype == "uint16" and known.white:
            made = replace(made, held="uint16", whites={"uint8": 255.0, "uint16": known.white})
    # a square shape may come from resizing; otherwise files must have the size of the training images
    return replace(made, resize="crop") if made.resize == "none" and height == width else made


def _data(path: Path) -> dict[str, Any]:
    """The run's record of its data, with the keys used here validated."""
    found = reading.stored(path).get("data")
    try:
        if not isinstance(found, dict):
            raise TypeError
        shape, classes = tuple(int(n) for n in found["shape"]), [str(c) for c in found["classes"]]
        mean, std = ([float(v) for v in found[key]] for key in ("mean", "std"))
        fits = len(shape) == 3 and min(shape) > 0 and len(mean) == len(std) == shape[2] and min(std) > 0
        tasks = Tasks.of(found["tasks"], bool(found.get("multilabel"))) if found.get("tasks") else None
        if not fits or len(classes) < 2 or (tasks is not None and tasks.outputs != classes):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = "result.json has no valid record of its data"
        raise UserError(f"{path}: {what}; expected a finished run or ensemble of dlrun") from error
    return {**found, "shape": shape, "classes": classes, "mean": mean, "std": std, "tasks": tasks}
