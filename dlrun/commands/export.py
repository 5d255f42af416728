"""`dlrun export RUN --to onnx|torch_export --out FILE`: one file, verified against the run, and an example."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlrun.commands.arguments import Parser, new_file, trusted
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["main"]

SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}


def main(argv: list[str]) -> int:
    """Export, verify, and print what the file expects of an image; returns 0."""
    argv, trust = trusted(argv)
    parser = Parser(
        prog="dlrun export", description=__doc__, epilog="trust=[PACKAGE] allows a run to use classes of that package"
    )
    parser.add_argument("run", help="a run, such as outputs/latest")
    parser.add_argument("--to", choices=list(SUFFIX), required=True, help="the format")
    parser.add_argument("--out", metavar="FILE", help="default: model.onnx or model.pt2")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    args = parser.parse_args(argv)
    from dlrun.analysis import scores, sweeps

    sweeps.expect_model(run := Path(args.run).expanduser())
    out = new_file(args.out or f"model{SUFFIX[args.to]}", args.force)
    if (beside := out.with_suffix(".example.py")).exists() and not args.force:
        raise UserError(f"{beside} already exists; add --force to overwrite it, or choose another --out")
    from dlrun.inference import export

    found = export.export(run, args.to, out, trust)
    print(scores.used(run))
    for line in found["changes"]:
        print(line)
    about = found["about"]
    print(f"{out}: maps raw {about['dtype']} images (batch, channels, height, width) to logits, for any batch size")
    for line in _recipe(about):
        print(f"  {line}")
    if found["example"]:
        print(f"example that reads a photo: python {shlex.quote(str(found['example']))} PHOTO")
    print(f"largest difference in logits from the run, on {found['images']} images: {found['difference']:.1e}")
    return Exit.FINE


def _recipe(about: Mapping[str, Any]) -> Iterator[str]:
    """The steps that prepare a photo, in order."""
    height, width = about["image_size"]
    how = about["decoding"]
    if about["mode"]:
        top = {"uint8": "255"}.get(how["held"]) or f"{how['whites'].get(how['held'], 0):g}"
        scaled = f", multiplied by {about['scale']:.6g}" if about["scale"] != 1 else ""
        ground = f"transparent pixels {how['background']}"
        words = f"as {about['mode']}" if how["decoder"] == 1 else f"upright as {about['mode']} in sRGB, {ground}"
        yield f"decode {words}, values 0 to {top}{scaled}"
    if about["resize"]:
        torch = ", by torch; the example's Pillow differs by at most 2 of 255" if how["decoder"] == 3 else ""
        size, by = f"{height}×{width}", f"({how['interpolation']}, antialiased{torch})"
        down, across = (int(side / how.get("crop", 1.0) + 1e-6) for side in (height, width))
        shorter = f"the shorter side to {down} pixels" if down == across else f"to cover {down}×{across} pixels"
        yield {
            "crop": f"resize {shorter} {by}; crop the centre {size}",
            "squash": f"resize both sides to {size} pixels {by}",
            "letterbox": f"resize to fit into {size} pixels {by}; fill the rest with {how['background']}",
        }[how["resize"]]
    else:
        yield f"use images of {height}×{width} pixels"
    yield "do not normalise: mean and std are inside the model"
    yield f"softmax of the logits: probabilities of {len(about['class_names'])} classes, their names in the metadata"
