"""`dlrun prune RUN --sparsity 0.5,0.8,0.9`: accuracy by the share of weights set to 0, each stored as a run (R4).

A pruned run is one like others: `dlrun evaluate`, `export` and `predict` take it, `trainer.start_from=` trains it on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlrun.commands.arguments import Parser, trusted
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["main"]

TABLE = "pruned.csv"
COLUMNS = {"sparsity": "sparsity", "weights": "weights", "val_acc": "validation", "test_acc": "test", "run": "run"}


def main(argv: list[str]) -> int:
    """Prune to each sparsity, test and store each; print a table. Returns 0."""
    argv, trust = trusted(argv)
    word = "trust=[PACKAGE] allows a run to use classes of that package"
    parser = Parser(prog="dlrun prune", description=__doc__, epilog=word)
    parser.add_argument("run", help="a completed run, such as outputs/latest")
    word = "shares of the weights to set to 0, such as 0.5,0.8,0.9 (default)"
    parser.add_argument("--sparsity", default="0.5,0.8,0.9", metavar="LIST", help=word)
    parser.add_argument("--out", metavar="DIR", help="the folder to create (default: outputs/pruned/<date>-…)")
    args = parser.parse_args(argv)
    shares = _shares(args.sparsity)
    from dlrun.analysis import sweeps
    from dlrun.folders import ensemble as ensemble_folder
    from dlrun.folders import reading

    sweeps.expect_model(path := Path(args.run).expanduser())
    if ensemble_folder.is_ensemble(path):
        raise UserError(f"{path} is an ensemble; expected one of its runs")
    stored = reading.stored(path)
    from dlrun.folders.outputs import OUTPUTS, new_folder

    label = path.resolve().name
    top = ensemble_folder.claim(args.out, label) if args.out else new_folder(OUTPUTS / "pruned", label)
    rows: list[dict[str, Any]] = [{"sparsity": 0.0, "weights": stored.get("parameters"), "run": str(path)}]
    rows[0] |= {key: stored.get(key) for key in ("val_acc", "test_acc")}
    rows += [_prune(path, trust, share, top) for share in shares]
    _write(top, rows)
    return Exit.FINE


def _prune(path: Path, trust: list[str], share: float, top: Path) -> dict[str, Any]:
    from dlrun.folders.run import claim
    from dlrun.inference.pruned import pruned, weights
    from dlrun.run.execute import store

    exp = pruned(path, trust, share)
    run = claim(str(top / f"sparsity_{share:g}"), "")
    try:
        said = f"{path} with {share:.0%} of its weights set to 0"
        ending = store(exp, run, f"pruned-{share:g}", said, pruned_from=str(path))
    finally:
        run.release()
    zeros = sum(int((getattr(layer, name) == 0).sum()) for layer, name in weights(exp.model))
    left = sum(p.numel() for p in exp.model.parameters()) - zeros
    found = {"sparsity": share, "weights": left, "run": str(run.path)}
    found |= {key: ending.get(key) for key in ("val_acc", "test_acc")}
    return found | {"said": [one["sentence"] for one in ending["verdicts"]]}


def _shares(typed: str) -> list[float]:
    """The sparsities in rising order. Raises UserError for what is no list of numbers between 0 and 1."""
    try:
        found = sorted({float(word) for word in typed.split(",")})
    except ValueError:
        found = [-1.0]
    if not all(0 < share < 1 for share in found):
        raise UserError(f"--sparsity {typed}: expected numbers above 0 and below 1, such as 0.5,0.8,0.9")
    return found


def _write(top: Path, rows: list[dict[str, Any]]) -> None:
    from dlrun.folders.disk import write_atomic
    from dlrun.folders.formats import as_csv

    write_atomic(top / TABLE, as_csv([{key: row.get(key) for key in COLUMNS} for row in rows]).encode())
    print("  ".join(f"{name:>10}" for name in [*COLUMNS.values()][:-1]) + "  run")
    for row in rows:
        scores = (f"{row[key]:.4f}" if isinstance(row[key], float) else "" for key in ("val_acc", "test_acc"))
        cells = [f"{row['sparsity']:g}", f"{row['weights']:,}", *scores]
        print("  ".join(f"{cell:>10}" for cell in cells) + f"  {row['run']}")
    for sentence in (sentence for row in rows for sentence in row.get("said", ())):
        print(sentence)
    print(f"table: {top / TABLE}")
