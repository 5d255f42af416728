"""The script beside an export: it classifies photos with the exported file and without dlrun (`dlrun export`, E6).

It decodes as `dlrun predict` does because it contains the same modules, copied from their source.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

from dlrun.data import decoding, fitting, sixteen
from dlrun.folders.disk import write_atomic

__all__ = ["write"]

HEAD = '''"""Classify photos with the exported model beside this script: python THIS_SCRIPT PHOTO...

Prints the most probable classes of each photo. Needs {module}, numpy and pillow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import {module}

MODEL = Path(__file__).with_name({model!r})
'''
OPEN = {
    "onnx": '''
session = onnxruntime.InferenceSession(MODEL.read_bytes(), providers=["CPUExecutionProvider"])
about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}


def logits_of(images):
    """Images (B, C, H, W) -> logits (B, K)."""
    return session.run(None, {session.get_inputs()[0].name: images})[0]
''',
    "torch_export": '''
extra = dict.fromkeys(("class_names", "image_size", "mode", "decoding", "scale", "dtype"), "")
model = torch.export.load(MODEL, extra_files=extra).module()
about = {key: json.loads(text) for key, text in extra.items()}


@torch.inference_mode()
def logits_of(images):
    """Images (B, C, H, W) -> logits (B, K)."""
    return model(torch.from_numpy(images)).numpy()
''',
}
BODY = '''
def pixels(photo):
    """The photo as the model expects it: (1, C, H, W)."""
    height, width = about["image_size"]
    try:
        array = decoded(Path(photo), (height, width, len(about["mode"])), Decoding.of(about["decoding"]))
    except OtherSize as error:
        sys.exit(f"{photo}: expected {width} x {height} pixels, found {error.found[0]} x {error.found[1]}")
    array = array.transpose(2, 0, 1)[None]
    if about["scale"] != 1:
        array = array * np.float32(about["scale"])
    return np.ascontiguousarray(array, dtype=about["dtype"])


if len(sys.argv) < 2:
    sys.exit(__doc__)
for photo in sys.argv[1:]:
    logits = logits_of(pixels(photo))[0].astype("float64")
    share = np.exp(logits - logits.max())
    share /= share.sum()
    for k in np.argsort(-share)[:5]:
        print(f"{photo}\\t{about['class_names'][k]}\\t{share[k]:.6f}")
'''
MODULE = {"onnx": "onnxruntime", "torch_export": "torch"}


def write(kind: str, model: Path) -> Path:
    """Write the script that classifies photos with an exported file, beside it; return the script."""
    path = model.with_suffix(".example.py")
    head = HEAD.format(model=model.name, module=MODULE[kind])
    copied = "".join(map(_alone, (sixteen, fitting, decoding)))
    write_atomic(path, f"{head}{OPEN[kind]}\n\n# how photos are decoded\n{copied}\n{BODY}".encode())
    return path


def _alone(module: ModuleType) -> str:
    """The source of a module without what it imports from dlrun."""
    _, _, source = inspect.getsource(module).partition("from __future__ import annotations\n")
    return "".join(line for line in source.splitlines(keepends=True) if not line.startswith("from dlrun."))
