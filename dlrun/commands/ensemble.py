"""`dlrun ensemble PATH…`: combine trained models by voting, and measure the gain (E1, E2, E5, E7)."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlrun.commands.arguments import Parser, trusted
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from dlrun.ensembles.members import Member

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Choose members by their validation scores, print and store the table; returns 0."""
    argv, trust = trusted(argv)
    args = _parser().parse_args(argv)
    if args.top is not None and args.top < 1:
        raise UserError(f"--top={args.top}: expected a whole number, 1 or more")
    from dlrun.ensembles.folds import across
    from dlrun.ensembles.members import agree, select, splits
    from dlrun.ensembles.table import as_text, judge, store
    from dlrun.ensembles.votes import FEWEST
    from dlrun.folders import ensemble as ensemble_folder

    if args.out is not None:
        ensemble_folder.free(args.out)
    found = _found(args, trust)
    if folded := across(found):
        found = _across_folds(args, found)
    agree(found)
    members = select(found, top=args.top or 0, by_greed=args.greedy)
    print(_headline(args, found, members))
    table = judge(members, args.temperature)
    images = {split: len(members[0].arrays[f"{split}_labels"]) for split in splits(members)}
    if args.temperature and not args.average:
        _expect_errors(args.vote, table.errors[args.vote], images.get("val", 0))
    if args.average:
        print(as_text(table.rows, images))
        return _average(args, members, trust, table.rows[1].get("val_acc"))
    path = ensemble_folder.claim(args.out, f"{len(members)}-members")
    store(path, args, members, table)
    if folded:
        print(f"out-of-fold predictions of {images['val']:,} images: {path / 'oof.csv'}")
    print(as_text(table.rows, images))
    if args.temperature:
        shown = ", ".join(_heat(v, t, table.errors[v]) for v, t in table.temperatures.items())
        print(f"temperatures, fitted on validation: {shown}")
        if table.unfitted:
            print(f"members with fewer than {FEWEST} errors on validation, left as they are: {table.unfitted}")
    name = shlex.quote(str(path))
    print(f"{args.vote} is stored in {path}; use it with `dlrun predict {name} IMAGES` or objective.teacher={name}")
    return Exit.FINE


def _across_folds(args: Namespace, found: list[Member]) -> list[Member]:
    """The members with out-of-fold predictions in the place of validation. Raises UserError for flags that need one."""
    from dlrun.ensembles.folds import joined, missing

    for flag in ("top", "greedy", "average"):
        if getattr(args, flag):
            why = "members on different folds have no validation images in common"
            raise UserError(f"--{flag}: {why}; omit it, or give the runs of one fold")
    if absent := missing(found):
        print(f"folds without a member: {', '.join(map(str, absent))}; their images have no out-of-fold prediction")
    return joined(found)


def _expect_errors(vote: str, errors: int, images: int) -> None:
    """Raise UserError if validation has too few errors to fit the temperature of the vote that is stored."""
    from dlrun.ensembles.votes import FEWEST

    if not images:
        raise UserError("--temperature: these runs have no validation split to fit it on; omit it")
    if errors < FEWEST:
        raise UserError(
            f"--temperature: {vote} has {errors} errors on {images:,} validation images, expected at least {FEWEST}: "
            "a temperature fitted to so few may make the test log loss worse; omit --temperature"
        )


def _heat(vote: str, temperature: float, errors: int) -> str:
    from dlrun.ensembles.votes import COLDEST, FEWEST, HOTTEST

    if errors < FEWEST:
        return f"{vote} none ({errors} errors)"
    edge = not 1.01 * COLDEST < temperature < 0.99 * HOTTEST
    return f"{vote} {temperature:.2f}" + " (at the edge of the range searched)" * edge


def _found(args: Namespace, trust: list[str]) -> list[Member]:
    """The members to choose from, with stored predictions; with --fresh or --members checkpoints with new ones."""
    from dlrun.ensembles.members import completed, read

    if args.members == "runs" and not args.fresh:
        found, skipped = read(args.paths)
        _print_skipped(skipped)
        return found
    paths, skipped = completed(args.paths)
    _print_skipped(skipped)
    if not paths:
        raise UserError(
            f"no completed runs in {' '.join(args.paths)}; train five with `dlrun train -m 'seed=range(0,5)'`"
        )
    from dlrun.folders import own_code
    from dlrun.inference import reevaluate

    if args.members == "checkpoints":
        if len(paths) > 1:
            raise UserError(f"--members checkpoints: expected one run, found {len(paths)}, such as {paths[0]}")
        found, note = reevaluate.checkpoints(paths[0], trust)
        if note:
            print(note)
        return found
    from dlrun.console import Screen

    with Screen() as screen:
        steps = screen.work(paths, len(paths), "evaluating again", lambda: "members")
        found = [reevaluate.evaluated(path, trust) for path in steps]
    changes = (own_code.changes(path, trust) for path in paths)
    for line in [line for line in changes if line][:1]:
        print(line)
    return found


def _print_skipped(lines: list[str]) -> None:
    for line in lines:
        print(f"skipped: {line}")


def _average(args: Namespace, members: Sequence[Member], trust: list[str], mean: float | None) -> int:
    from dlrun.analysis import scores
    from dlrun.folders import outputs
    from dlrun.folders.run import claim
    from dlrun.inference import weight_average
    from dlrun.run.execute import store as store_run

    exp = weight_average.soup(members, trust)
    run = claim(args.out, f"average-of-{len(members)}", outputs.OUTPUTS / "ensembles")
    try:
        names = [m.name for m in members]
        reason = f"the average of the weights of {', '.join(names)}"
        ending = store_run(exp, run, f"average-of-{len(members)}", reason, average_of=names)
    finally:
        run.release()
    columns = {"val_acc": "validation accuracy", "test_acc": "test accuracy"}
    found = [f"{name} {scores.counted(c, ending[c], ending)}" for c, name in columns.items() if c in ending]
    print(f"average of the weights: {', '.join(found)}; stored as a run: {run.path}")
    if mean is not None and ending["val_acc"] < mean:
        why = "averaging weights works only for models that share early training"
        print(f"worse than the average member: {why}; try --members checkpoints")
    return Exit.FINE


def _parser() -> Parser:
    from dlrun.ensembles.votes import VOTES

    parser = Parser(prog="dlrun ensemble", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="runs, sweeps or folders of them")
    pick = parser.add_mutually_exclusive_group()
    pick.add_argument("--top", type=int, metavar="K", help="use the K runs with the best validation accuracy")
    word = "add members one by one, with replacement, each the one that lowers the validation log loss most"
    pick.add_argument("--greedy", action="store_true", help=word)
    parser.add_argument("--vote", choices=list(VOTES), default="mean_probability", help="the vote to store")
    parser.add_argument(
        "--temperature", action="store_true", help="rescale probabilities by a temperature fitted on validation"
    )
    word = "runs (default), or the epoch checkpoints of one run (trainer.keep=all; after warm restarts, snapshots)"
    parser.add_argument("--members", choices=("runs", "checkpoints"), default="runs", help=word)
    word = "build one model with the mean weights instead of a vote; batch-norm statistics are recomputed"
    parser.add_argument("--average", choices=("weights",), help=word)
    parser.add_argument(
        "--fresh", action="store_true", help="evaluate the models again instead of using stored predictions"
    )
    parser.add_argument("--out", metavar="DIR", help="the folder to create (default: outputs/ensembles/<date>-…)")
    return parser


def _headline(args: Namespace, found: Sequence[Member], members: Sequence[Member]) -> str:
    from dlrun.analysis import scores
    from dlrun.ensembles.members import settings, splits

    count, groups = len(found), settings(found)
    how = f"{count} member{'s' * (count > 1)}"
    if args.top:
        how = f"the {len(members)} best of {count} on validation accuracy"
    if 1 < len(groups) < count and not args.greedy:
        how += ", best first by the mean of each setting over its seeds"
    if args.greedy:
        picks = ", ".join(f"{m.path.name} × {m.weight}" for m in members)
        how = f"{len(members)} of {count}, chosen greedily on validation log loss: {picks}"
    how += f"; {len(members[0].data['classes'])} classes"
    if "val" not in splits(members):
        return f"{how}, no validation split, so all vote alike"
    best = scores.used(members[0].path).removeprefix("with ")
    return f"{how}, {len(members[0].arrays['val_labels']):,} val images\nbest member: {best}"
