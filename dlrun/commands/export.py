"""`dlrun export RUN --to onnx|torch_export --out FILE`: one file, normalisation included, verified against the run."""

from __future__ import annotations

from pathlib import Path

from dlrun.commands.arguments import Parser, trusted
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["main"]

SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}


def main(argv: list[str]) -> int:
    """Export, verify, and print the input that the file expects; returns 0."""
    argv, trust = trusted(argv)
    parser = Parser(
        prog="dlrun export", description=__doc__, epilog="trust=[PACKAGE] allows a run to use classes of that package"
    )
    parser.add_argument("run", help="a run, such as outputs/latest")
    parser.add_argument("--to", choices=list(SUFFIX), required=True, help="the format")
    parser.add_argument("--out", metavar="FILE", help="default: model.onnx or model.pt2")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    args = parser.parse_args(argv)
    from dlrun.analysis import sweeps

    sweeps.expect_model(run := Path(args.run).expanduser())
    out = Path(args.out or f"model{SUFFIX[args.to]}").expanduser()
    if out.exists() and not args.force:
        raise UserError(f"{out} already exists; add --force to overwrite it, or choose another --out")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out={out}: expected a file name in an existing folder")
    from dlrun.inference import export

    found = export.export(run, args.to, out, trust)
    print(f"{out}: maps raw {found['input']} images (batch, channels, height, width) to logits, for any batch size")
    print(f"largest difference in logits from the run, on {found['images']} images: {found['difference']:.1e}")
    return Exit.FINE
