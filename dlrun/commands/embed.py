"""`dlrun embed RUN PATH… --out features.npz`: what the last layer of a run gets for each image (E6).

The file has `features` (N, D), `names`, `classes` and `probabilities`: for a search of similar images, a clustering, or
a classifier of other classes.
"""

from __future__ import annotations

from pathlib import Path

from dlrun.commands.arguments import Parser, expect_device, expect_paths, new_file, trusted
from dlrun.vocabulary import Exit

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Write the features of all images; returns 0. Raises UserError if no image can be read."""
    argv, trust = trusted(argv)
    word = "trust=[PACKAGE] allows a run to use classes of that package"
    parser = Parser(prog="dlrun embed", description=__doc__, epilog=word)
    parser.add_argument("model", help="a run or an ensemble, such as outputs/latest")
    word = "image files, folders (searched recursively), .npy, or .npz with x"
    parser.add_argument("paths", nargs="+", metavar="PATH", help=word)
    parser.add_argument("--out", default="features.npz", metavar="FILE", help="default: features.npz")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    word = "auto (default), cpu, cuda, mps, or cuda:1 for the second GPU"
    parser.add_argument("--device", default="auto", metavar="DEVICE", help=word)
    args = parser.parse_args(argv)
    expect_device(args.device)
    from dlrun.analysis import scores, sweeps

    sweeps.expect_model(model := Path(args.model).expanduser())
    expect_paths(args.paths)
    out = new_file(args.out, args.force)
    from dlrun.console import Screen
    from dlrun.folders.formats import write_arrays
    from dlrun.inference.classify import Outcome, Sources
    from dlrun.inference.features import features
    from dlrun.inference.predictor import load

    sources, done = Sources(args.paths), Outcome()
    predictor = load(model, trust, args.device)
    print(scores.used(model))
    for line in predictor.changes(trust):
        print(line)
    with Screen() as screen:
        found = features(predictor, sources, screen, done)
    for name, why in done.unreadable.items():
        print(f"skipped: {name}: {why}")
    write_arrays(out, found)
    left = f", {len(done.unreadable)} skipped" if done.unreadable else ""
    count, width = found["features"].shape
    print(f"{count:,} images, {width:,} features each{left}: {out}")
    return Exit.FINE
