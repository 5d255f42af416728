"""`dlrun evaluate RUN|ENSEMBLE [DATA]`: all scores on labelled images, by class, errors, calibration and a page.

`--adversarial 1,2,4,8` adds the accuracy on images that are changed by so many 255ths to fool the model (D9).
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.commands.arguments import Parser, expect_device, trusted
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from dlrun.inference.evaluate import Evaluation
    from dlrun.inference.labelled import Labelled
    from dlrun.inference.predictor import Predictor

__all__ = ["main"]

LEVEL = "dataset.class_level="
WORST = 3  # classes named


def main(argv: list[str]) -> int:
    """Evaluate, write the folder and its page, print the scores; returns 0."""
    argv, trust = trusted(argv)
    typed = [word for word in argv if word.startswith(LEVEL)]
    argv = [word for word in argv if word not in typed]
    args = _parser().parse_args(argv)
    expect_device(args.device)
    epsilons = _epsilons(args.adversarial)
    from dlrun.analysis import sweeps
    from dlrun.folders import ensemble as ensemble_folder

    sweeps.expect_model(model := Path(args.model).expanduser())
    data = Path(args.data).expanduser() if args.data else None
    if data is not None and not data.exists():
        raise UserError(f"{args.data}: no such file or folder; expected class folders, a table, or arrays with labels")
    if data is None and (args.split or args.images):
        raise UserError("--split and --images belong to DATA; name it, or omit them for the run's own test split")
    if args.out is not None:
        ensemble_folder.free(args.out)
    import torch

    from dlrun.analysis import errors
    from dlrun.console import Screen
    from dlrun.folders import evaluation
    from dlrun.inference import labelled
    from dlrun.inference.attacked import attack
    from dlrun.inference.evaluate import evaluate
    from dlrun.inference.predictor import load
    from dlrun.reports import evaluation_report
    from dlrun.run.gallery import worst

    predictor = load(model, trust, args.device, several=True)
    if predictor.tasks is not None and epsilons:
        raise UserError(f"--adversarial: {model} has several targets; expected a run with one, omit it")
    level = typed[-1].removeprefix(LEVEL) if typed else None
    if data is None:
        found = labelled.own(predictor, trust)
    else:
        found = labelled.read(predictor, data, args.split, args.images, level)
    with Screen(quiet=args.json) as screen:
        made = evaluate(predictor, found, screen)
        hit = attack(predictor, made, epsilons, screen) if epsilons else None
    result = _about(args, found, made) | made.result(predictor.classes)
    tables, fooled = made.tables(predictor.classes), None
    if hit is not None:
        result, tables = result | {"adversarial": hit.rows}, tables | {"adversarial": hit.rows}
        fooled = hit.arrays | _origin(model, data, args.split)
    name = "test" if data is None else data.resolve().stem
    path = evaluation.claim(args.out, f"{model.resolve().name}-on-{name}")
    pair = torch.from_numpy(made.logits), torch.from_numpy(made.labels)
    shown = worst(made.split, *pair) if made.tasks is None else {}
    evaluation.write(path, result, made.arrays(), shown, tables, fooled)
    errors.write(path)
    page = evaluation_report.write(path)
    if args.json:
        print(json.dumps(result | {"folder": str(path)}, indent=1))
    else:
        _print(predictor, result, made, trust)
        print(f"files: {path}\npage: {page}")
    return Exit.FINE


def _origin(model: Path, data: Path | None, split: str | None) -> dict[str, Any]:
    """The run, the data and the split that changed images were made of, for training on them."""
    import numpy as np

    from dlrun.data import origin

    words = [model.resolve().name, str(data or ""), "test" if data is None else split or ""]
    return {origin.ARRAY: np.array(words, dtype=np.str_)}


def _parser() -> Parser:
    parser = Parser(
        prog="dlrun evaluate",
        description=__doc__,
        epilog="trust=[PACKAGE] allows a run to use classes of that package; dataset.class_level=1 or leaf says which "
        "folders are classes (default: as in the training)",
    )
    parser.add_argument("model", help="a run or an ensemble, such as outputs/latest")
    word = "class folders, perhaps below train/ and test/; a table of labels; an .npz with x and y (default: the run's "
    parser.add_argument("data", nargs="?", metavar="DATA", help=word + "own test split, read and predicted again)")
    parser.add_argument("--split", default="", metavar="SPLIT", help="train, val or test of DATA (default: test)")
    parser.add_argument("--images", metavar="FOLDER", help="the images of a table (default: the folder of the table)")
    word = "the folder to create (default: outputs/evaluations/<date>-…)"
    parser.add_argument("--out", metavar="DIR", help=word)
    word = "accuracy on images changed by up to so many 255ths to fool the model, such as 1,2,4,8"
    parser.add_argument("--adversarial", metavar="LIST", help=word)
    parser.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    word = "auto (default), cpu, cuda, mps, or cuda:1 for the second GPU"
    parser.add_argument("--device", default="auto", metavar="DEVICE", help=word)
    return parser


def _epsilons(typed: str | None) -> list[float]:
    """The sizes of the attacks. Raises UserError for what is no list of numbers above 0 and at most 255."""
    try:
        found = sorted({float(word) for word in typed.split(",")}) if typed is not None else []
    except ValueError:
        found = [-1.0]
    if not all(0 < epsilon <= 255 for epsilon in found):
        raise UserError(f"--adversarial {typed}: expected numbers above 0 and at most 255, such as 1,2,4,8")
    return found


def _about(args: Namespace, found: Labelled, made: Evaluation) -> dict[str, Any]:
    """What was evaluated on what, and what a reader of its scores must know."""
    about = {"model": args.model, "on": args.data or "its own test split", "split": found.split}
    about |= {"notes": found.notes, "omitted": made.done.unreadable, "scaled": made.done.scaled}
    about |= {"seen": dict(made.done.seen)}
    return about | ({} if made.gap is None else {"largest_difference_from_stored_logits": made.gap})


def _print(predictor: Predictor, result: dict[str, Any], made: Evaluation, trust: list[str]) -> None:
    from dlrun.analysis import scores
    from dlrun.reports.evaluation_report import remarks
    from dlrun.reports.score_tables import as_lines

    print(scores.used(predictor.path))
    for line in [*predictor.changes(trust), *(words for words, _ in remarks(result))]:
        print(line)
    what = f"{result['on']}, {result['split']}" if result["split"] else result["on"]
    right = scores.counted("test_acc", result["test_acc"], result)
    print(f"accuracy {right} on {result['test_samples']:,} images of {what}")
    for name, one in (result.get("tasks") or {}).items():
        print(
            f"  {name}: accuracy {one['test_acc']:.4f}, F1 {one['test_macro_f1']:.4f}, log loss {one['test_loss']:.4f}"
        )
    if "test_map" in result:
        print(f"  mAP {result['test_map']:.4f}, F1 at the thresholds of validation {result['test_tuned_f1']:.4f}")
    print(as_lines(result))
    if attacks := result.get("adversarial"):
        curve = ", ".join(f"{row['accuracy']:.4f} at {row['epsilon']:g}" for row in attacks[1:])
        print(f"accuracy under attack, by 255ths of a change: {curve}")
    rows = [row for row in made.tables(predictor.classes)["per_class"] if row["n"]]
    worst = sorted(rows, key=lambda row: row["f1"])[:WORST]
    shown = (f"{row['class']} {row['f1']:.2f} ({row['n']:,} images)" for row in worst)
    print(f"classes with the lowest F1: {', '.join(shown)}")
