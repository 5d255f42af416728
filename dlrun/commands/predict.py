"""`dlrun predict RUN|ENSEMBLE PATH… --out predictions.csv`: classify images, preprocessed as in training."""

from __future__ import annotations

from pathlib import Path

from dlrun.commands.arguments import Parser, expect_device, expect_paths, new_file, trusted
from dlrun.vocabulary import Exit

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Predict and write the CSV; returns 0. Raises UserError if no image can be read."""
    argv, trust = trusted(argv)
    args = _parser().parse_args(argv)
    expect_device(args.device)
    from dlrun.analysis import scores, sweeps

    sweeps.expect_model(model := Path(args.model).expanduser())
    expect_paths([*args.paths, *filter(None, [args.like, args.images])])
    out = new_file(args.out, args.force)
    from dlrun.console import Screen
    from dlrun.data.sheet import is_table
    from dlrun.inference import classify, submission
    from dlrun.inference.predictor import load

    tables = any(is_table(Path(name)) for name in args.paths)
    sources = classify.Sources(args.paths, _images(model, args.images) if tables else None)
    predictor = load(model, trust, args.device, several=not args.like)
    print(scores.used(model))
    for line in predictor.changes(trust):
        print(line)
    if sources.files and predictor.decoding.decoder == 1:
        print("files are decoded as in training, by dataset.decoder=1: not turned upright by EXIF, as a new run does")
    with Screen() as screen:
        if args.like:
            done, form = submission.write(predictor, sources, Path(args.like).expanduser(), out, screen)
            print(f"as in {args.like}: {form}")
        else:
            done = classify.predict(predictor, sources, out, screen)
    for name, how in done.scaled.items():
        print(f"{name}: {how}")
    for name, why in done.unreadable.items():
        print(f"skipped: {name}: {why}")
    if found := done.seen:
        what = "the run was trained on" if found["train"] else "the run was selected by (validation)"
        number = found["train"] or found["val"]
        print(f"{number:,} of these images are among those that {what}: they do not show how it does on new ones")
    if sources.account:
        print(f"left out: {sources.account.left_out()}")
    left = f", {len(done.unreadable)} skipped" if done.unreadable else ""
    print(f"{done.predicted:,} images predicted{left}: {out}")
    return Exit.FINE


def _parser() -> Parser:
    parser = Parser(
        prog="dlrun predict", description=__doc__, epilog="trust=[PACKAGE] allows a run to use classes of that package"
    )
    parser.add_argument("model", help="a run or an ensemble, such as outputs/latest")
    word = "image files, folders (searched recursively), tables of ids (.csv, .tsv, .parquet), .npy, or .npz with x; "
    word += "pixels scaled as in the training data"
    parser.add_argument("paths", nargs="+", metavar="PATH", help=word)
    parser.add_argument("--out", default="predictions.csv", metavar="FILE", help="default: predictions.csv")
    word = "write the ids of this table, in its order and columns: the class, or one probability per class"
    parser.add_argument("--like", metavar="FILE", help=word)
    word = "where the images of a table of ids are; default: the folder of the run's images"
    parser.add_argument("--images", metavar="FOLDER", help=word)
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    word = "auto (default), cpu, cuda, mps, or cuda:1 for the second GPU"
    parser.add_argument("--device", default="auto", metavar="DEVICE", help=word)
    return parser


def _images(model: Path, typed: str | None) -> Path | None:
    """The folder of the images that a table of ids names: as typed, or that of the run, or of an ensemble's first."""
    from dlrun.folders import ensemble, reading

    if typed:
        return Path(typed).expanduser()
    if ensemble.is_ensemble(model):
        model = model / str(ensemble.read(model)["members"][0]["run"])
    source = reading.config(model).get("dataset")
    source = source if isinstance(source, dict) else {}
    folder = source.get("images") or (Path(str(source["csv"])).parent if source.get("csv") else source.get("root"))
    found = None if folder is None else Path(str(folder)).expanduser()
    return found if found is not None and found.is_dir() else None
