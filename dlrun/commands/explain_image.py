"""`dlrun explain-image RUN PHOTO… [--class NAME]`: draw which parts of an image the class depends on (E6).

Grad-CAM at the last convolution: each image beside its map, red where it speaks most for the class. It shows what the
network looks at, such as a background that all images of a class share; not why.
"""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dlrun.commands.arguments import Parser, expect_device, expect_paths, new_file, trusted
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from torch import Tensor

    from dlrun.inference.predictor import Predictor

__all__ = ["main"]

MOST = 12  # images of one picture


def main(argv: list[str]) -> int:
    """Draw the picture; returns 0. Raises UserError if an image cannot be read."""
    argv, trust = trusted(argv)
    word = "trust=[PACKAGE] allows a run to use classes of that package"
    parser = Parser(prog="dlrun explain-image", description=__doc__, epilog=word)
    parser.add_argument("model", help="a run or an ensemble, such as outputs/latest")
    parser.add_argument("paths", nargs="+", metavar="PHOTO", help=f"image files, or a folder: its first {MOST}")
    parser.add_argument("--class", dest="label", metavar="NAME", help="default: the predicted class of each image")
    parser.add_argument("--out", default="explained.png", metavar="FILE", help="default: explained.png")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto (default), cpu, cuda, mps")
    args = parser.parse_args(argv)
    expect_device(args.device)
    if find_spec("pytorch_grad_cam") is None:
        raise UserError("dlrun explain-image: the package grad-cam is not installed; type pip install 'dlrun[explain]'")
    from dlrun.analysis import scores, sweeps

    sweeps.expect_model(model := Path(args.model).expanduser())
    expect_paths(args.paths)
    out = new_file(args.out, args.force)
    from dlrun.folders.disk import write_atomic
    from dlrun.inference.activation import activations
    from dlrun.inference.predictor import load
    from dlrun.reports import activation_plot

    predictor = load(model, trust, args.device)
    label = None if args.label is None else _label(args.label, predictor.classes)
    print(scores.used(model))
    for line in predictor.changes(trust):
        print(line)
    names, images = _images(predictor, args.paths)
    found = activations(predictor, images, label)
    write_atomic(out, activation_plot.draw(names, images.numpy(), found, predictor.classes))
    for name, one in zip(names, found, strict=True):
        print(f"{name}: {predictor.classes[one.predicted]} {one.probabilities[one.predicted]:.3f}")
    print(f"picture: {out}")
    return Exit.FINE


def _label(name: str, classes: list[str]) -> int:
    if name not in classes:
        near = difflib.get_close_matches(name, classes, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(classes[:20])}"
        raise UserError(f"--class {name}: no such class; {hint}")
    return classes.index(name)


def _images(predictor: Predictor, paths: list[str]) -> tuple[list[str], Tensor]:
    """The first images, as the model gets them (B, H, W, C). Raises UserError for one that cannot be read."""
    import torch

    from dlrun.inference.classify import Outcome, Sources, batches

    sources, done = Sources(paths), Outcome()
    sources.files = sources.files[:MOST]
    names: list[str] = []
    images: list[Tensor] = []
    for some, part in batches(predictor, sources, MOST, done):
        names += some
        images.append(part)
        if len(names) >= MOST:
            break
    for name, why in done.unreadable.items():
        raise UserError(f"{name}: {why}")
    return names[:MOST], torch.cat(images)[:MOST]
