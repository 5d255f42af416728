"""`dlrun ensemble PATH…`: what trained models predict together, and what it is worth (E1, E2, E5, E7)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from dlrun.commands.arguments import Parser, trusted
from dlrun.ensembles.table import store
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Pick members on validation, print and store the table; returns 0."""
    argv, trust = trusted(argv)
    args = _parser().parse_args(argv)
    if args.top is not None and args.top < 1:
        raise UserError(f"--top={args.top}: expected a whole number, 1 or more")
    from dlrun.ensembles.members import agree, select
    from dlrun.ensembles.table import as_text, judge
    from dlrun.folders import ensemble as ensemble_folder

    if args.out is not None:
        ensemble_folder.free(args.out)
    found = _found(args, trust)
    agree(found)
    members = select(found, top=args.top or 0, by_greed=args.greedy)
    print(_headline(args, len(found), members))
    table = judge(members, args.temperature)
    if args.average:
        print(as_text(table.rows))
        return _average(args, members, trust, table.rows[1]["val_acc"])
    path = ensemble_folder.claim(args.out, f"{len(members)}-members")
    store(path, args, members, table)
    print(as_text(table.rows))
    if args.temperature:
        print("temperatures, fitted on validation:", ", ".join(_heat(v, t) for v, t in table.temperatures.items()))
    print(
        f"{args.vote} is stored for `dlrun predict {shlex.quote(str(path))}` and as a teacher; everything is in {path}"
    )
    return Exit.FINE


def _heat(vote: str, temperature: float) -> str:
    from dlrun.ensembles.votes import COLDEST, HOTTEST

    edge = not 1.01 * COLDEST < temperature < 0.99 * HOTTEST
    return f"{vote} {temperature:.2f}" + " (the end of what is looked at: too few errors on validation?)" * edge


def _found(args: Any, trust: list[str]) -> list[Any]:
    """The members to choose from: stored predictions, or with --fresh and --members checkpoints new ones."""
    from dlrun.ensembles.members import completed, read

    if args.members == "runs" and not args.fresh:
        found, left_out = read(args.paths)
        for line in left_out:
            print(f"left out: {line}")
        return found
    paths, left_out = completed(args.paths)
    for line in left_out:
        print(f"left out: {line}")
    if not paths:
        raise UserError(f"no completed runs in {' '.join(args.paths)}; `dlrun train -m 'seed=range(0,5)'` makes five")
    from dlrun.inference import reevaluate

    if args.members == "checkpoints":
        if len(paths) > 1:
            raise UserError(f"--members checkpoints takes one run, found {len(paths)}, such as {paths[0]}")
        found, said = reevaluate.checkpoints(paths[0], trust)
        if said:
            print(said)
        return found
    from dlrun.console import Screen

    with Screen() as screen:
        steps = screen.work(paths, len(paths), "evaluating again", lambda: "members")
        return [reevaluate.evaluated(path, trust) for path in steps]


def _average(args: Any, members: Sequence[Any], trust: list[str], mean: float) -> int:
    from dlrun.folders import outputs
    from dlrun.folders.run import claim
    from dlrun.inference import weight_average
    from dlrun.run.execute import store as store_run

    exp = weight_average.soup(members, trust)
    run = claim(args.out, f"average-of-{len(members)}", outputs.OUTPUTS / "ensembles")
    try:
        ending = store_run(exp, run, [m.name for m in members])
    finally:
        run.release()
    said = f"validation accuracy {ending['val_acc']:.4f}, test accuracy {ending['test_acc']:.4f}"
    print(f"average of the weights: {said}; it is a run like others: {run.path}")
    if ending["val_acc"] < mean:
        print("below its mean member: weights average where training shared its start (--members checkpoints)")
    return Exit.FINE


def _parser() -> Parser:
    from dlrun.ensembles.votes import VOTES

    parser = Parser(prog="dlrun ensemble", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="runs, sweeps or folders of them")
    pick = parser.add_mutually_exclusive_group()
    pick.add_argument("--top", type=int, metavar="K", help="the K members with the best validation accuracy")
    word = "pick with replacement what lowers the validation log loss most"
    pick.add_argument("--greedy", action="store_true", help=word)
    parser.add_argument("--vote", choices=list(VOTES), default="mean_probability", help="the one that is stored")
    parser.add_argument("--temperature", action="store_true", help="rescale probabilities, fitted on validation")
    word = "runs (default), or the epoch checkpoints of one run (trainer.keep=all), snapshots after warm restarts"
    parser.add_argument("--members", choices=("runs", "checkpoints"), default="runs", help=word)
    word = "one model instead of a vote: the mean of the weights, batch statistics measured again"
    parser.add_argument("--average", choices=("weights",), help=word)
    parser.add_argument("--fresh", action="store_true", help="evaluate again, instead of stored predictions")
    parser.add_argument("--out", metavar="DIR", help="a new folder (default: outputs/ensembles/<date>-…)")
    return parser


def _headline(args: Any, found: int, members: Sequence[Any]) -> str:
    how = (
        f"the {len(members)} best of {found} on validation accuracy"
        if args.top
        else f"{found} member{'s' * (found > 1)}"
    )
    if args.greedy:
        picks = ", ".join(f"{m.path.name} × {m.weight}" for m in members)
        how = f"{len(members)} of {found}, picked greedily on validation log loss: {picks}"
    return f"{how}; {len(members[0].data['classes'])} classes, {len(members[0].arrays['val_labels']):,} val images"
