"""Export of a run to one file for other programs, verified against the run (`dlrun export`, E6).

Normalisation is inside the model; class names and the preprocessing of photos are metadata of the file.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.data.units import Unfit
from dlrun.errors import UserError, first_line
from dlrun.folders.disk import write_atomic
from dlrun.inference import example
from dlrun.inference.predictor import Predictor, load, rebuilt
from dlrun.vocabulary import Exit

__all__ = ["KINDS", "Exported", "export"]

ONNX = ("onnx", "onnxscript", "onnxruntime")
SAMPLES = 64  # validation images, in one batch and one by one
TOLERANCE = 1e-4  # of the largest logit: fused kernels round float32 differently, a wrong graph differs far more
Logits: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]  # images (B, C, H, W) -> logits (B, K)


class Exported(TypedDict):
    """How an export was verified: the largest difference of a logit, and the number of images; what it contains.

    `about` is the metadata of the file, `example` the script beside it, None if photos cannot be such images.
    """

    difference: float
    images: int
    changes: list[str]  # lines on own code that has changed since
    about: dict[str, Any]
    example: Path | None


def export(path: Path, kind: str, out: Path, trust: list[str]) -> Exported:
    """Write the model of a run to `out`; return how it was verified.

    The file maps raw images (B, C, H, W), uint8 or float32 as in the dataset, to logits (B, K), for any B. Raises
    UserError, and writes no file, if the outputs differ or there are no images to verify them with. A script that
    classifies photos with the file is written beside it.
    """
    if kind == "onnx" and (missing := [name for name in ONNX if importlib.util.find_spec(name) is None]):
        raise UserError(f"--to onnx needs {', '.join(missing)}: pip install 'dlrun[onnx]'")
    predictor = load(path, trust, "cpu")
    if len(predictor.models) > 1:
        raise UserError(
            f"{path}: expected one model, found {len(predictor.models)}; make one with "
            "`dlrun ensemble … --average weights` or objective=distill"
        )
    model = predictor.models[0]
    known = rebuilt(path, trust).data  # verifying needs the data of the run
    val = known.val if len(known.val) else known.train
    images = val.images.take(torch.arange(min(SAMPLES, len(val)))).permute(0, 3, 1, 2).contiguous()
    if len(images) < 2:
        raise UserError(f"{path}: verifying an export needs 2 validation images, found {len(images)}")
    with torch.inference_mode():
        expected = model(images).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about their own internals
        about = _about(predictor, images)
        data, call = KINDS[kind](model, images, {key: json.dumps(value) for key, value in about.items()})
        found = call(images.numpy())
        single = np.concatenate([call(images[k : k + 1].numpy()) for k in range(min(4, len(images)))])
    gap = max(float(np.abs(found - expected).max()), float(np.abs(single - expected[: len(single)]).max()))
    if not gap <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise UserError(f"{path}: not written: the exported logits differ by up to {gap:.2g}", Exit.FAILED)
    write_atomic(out, data)
    script = example.write(kind, out) if about["mode"] else None
    changes = predictor.changes(trust)
    return {"difference": gap, "images": len(images), "changes": changes, "about": about, "example": script}


def _about(predictor: Predictor, images: Tensor) -> dict[str, Any]:
    """What a program needs to feed the model a photo as `dlrun predict` does, and to read its answer."""
    height, width, channels = predictor.shape
    try:
        scale = predictor.scale_of_files()
    except Unfit:
        scale = None
    return {
        "class_names": predictor.classes,
        "image_size": [height, width],
        # of Pillow's Image.convert; none if no photo can be in the units of the training images
        "mode": "" if scale is None else {1: "L", 3: "RGB"}.get(channels, ""),
        "resize": predictor.decoding.resize != "none",
        "decoding": predictor.decoding.record(),  # its fields are explained in the example
        "scale": scale,  # of decoded pixels
        "dtype": str(images.dtype).removeprefix("torch."),
        "normalisation": {"mean": predictor.data["mean"], "std": predictor.data["std"], "inside_the_model": True},
    }


def _program(model: torch.nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # a user's model may raise anything in forward
        raise UserError(f"this model cannot be exported: {first_line(error)}", Exit.FAILED) from error


def _torch_export(model: torch.nn.Module, images: Tensor, about: Mapping[str, str]) -> tuple[bytes, Logits]:
    buffer = io.BytesIO()
    torch.export.save(_program(model, images), buffer, extra_files=dict(about))
    data = buffer.getvalue()
    loaded = torch.export.load(io.BytesIO(data)).module()

    @torch.inference_mode()
    def call(x: NDArray[Any]) -> NDArray[Any]:
        logits: Tensor = loaded(torch.from_numpy(x))
        return logits.numpy()

    return data, call


def _onnx(model: torch.nn.Module, images: Tensor, about: Mapping[str, str]) -> tuple[bytes, Logits]:
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    program = torch.onnx.export(
        _program(model, images),
        (images[:2],),
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    for key, value in about.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    data: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]


KINDS = {"onnx": _onnx, "torch_export": _torch_export}
