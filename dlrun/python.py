"""dlrun from Python, in a script or a notebook: `dlrun.train`, `dlrun.load`, `dlrun.runs`.

run = dlrun.train(["dataset=digits", "model=cnn", "trainer.epochs=5"])
model = dlrun.load(run.path)
classes, probabilities = model.predict(["photo.jpg"])
dlrun.runs("outputs").plot.scatter("optimizer.lr", "val_acc")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from dlrun.inference.loaded import Model

__all__ = ["Trained", "load", "runs", "train"]


@dataclass(frozen=True)
class Trained:
    """What `dlrun.train` left: its folder, the exit code that the shell would get, and result.json.

    `result` has the status and the scores by the names of the columns (`val_acc`, `test_acc`, …); of a sweep it is that
    of the best trial, and `best` its folder.
    """

    path: Path
    code: int
    best: Path
    result: Mapping[str, Any]

    @property
    def status(self) -> str:
        """The status: completed, check_failed, diverged, interrupted, …"""
        return str(self.result.get("status", ""))

    def __repr__(self) -> str:
        """What a notebook shows: status, folder and main scores; the whole of result.json would fill a page."""
        scores = {key: self.result.get(key) for key in ("val_acc", "test_acc")}
        shown = "".join(f", {key} {score:.4f}" for key, score in scores.items() if isinstance(score, float))
        return f"<{self.status or 'no result'}{shown}; {self.path}>"

    def load(self, device: str = "auto") -> Model:
        """Return the trained model; see `dlrun.load`. Raises UserError if there is none."""
        return load(self.best, device=device)


def train(words: Sequence[str]) -> Trained:
    """Train as `dlrun train` with these words does, `-m` for a sweep included; the same folders and lines.

    A run that fails a check, diverges or is interrupted is returned, with its code. Raises UserError for an error in
    the words or the data.
    """
    from dlrun.commands.train import main
    from dlrun.folders import reading, sweep

    if isinstance(words, str):
        raise UserError(f"dlrun.train({words!r}): expected a list of words; type dlrun.train({words.split()})")
    begun: list[Path] = []
    code = main([str(word) for word in words], begun.append)
    if not begun:  # --help, --cfg: printed
        raise UserError(f"dlrun.train({list(words)}): expected settings, found a flag that trains nothing")
    path = best = begun[0]
    if sweep.is_sweep(path):
        from dlrun.analysis import sweeps

        found = sweeps.read(path)
        best = found.entries[found.best[0]].path if found.best else path
    return Trained(path, code, best, reading.stored(best) if reading.is_run(best) else {})


def load(path: str | Path, *, trust: Sequence[str] = (), device: str = "auto") -> Model:
    """Return a run, a sweep's best run or an ensemble as a torch module in evaluation mode; see `Model`.

    `trust` names packages whose classes the run may use, as `trust=[…]` in the shell. Raises UserError that names what
    cannot be used.
    """
    from dlrun.analysis import sweeps
    from dlrun.config.trust import kept
    from dlrun.folders import sweep
    from dlrun.inference.loaded import Model
    from dlrun.inference.predictor import load as loaded

    folder = Path(path).expanduser()
    if sweep.is_sweep(folder):
        found = sweeps.read(folder)
        if not found.best:
            raise UserError(f"{folder}: expected a completed trial, found none; continue it: dlrun resume {folder}")
        folder = found.entries[found.best[0]].path
    return Model(loaded(folder, [*trust, *kept(Path.cwd())], device))


def runs(*paths: str | Path) -> pd.DataFrame:
    """Return one row per run at or below the paths (default: outputs), best first, with the columns of compare.csv.

    Raises UserError for a path that is not there.
    """
    import io

    import pandas as pd

    from dlrun.analysis import compare, sweeps
    from dlrun.folders import outputs
    from dlrun.reports import tables

    where = [str(Path(path).expanduser()) for path in paths]
    if not where and outputs.OUTPUTS.is_dir():
        where = [str(outputs.OUTPUTS)]
    entries, metric, lower = sweeps.searched([Path(path) for path in where], compare.read(where))
    rows = compare.table(entries, metric, lower=lower)
    if not rows:
        return pd.DataFrame(columns=["run", "status"])
    # through the text of the CSV, which is the same table, so that numbers become numbers and empty cells NaN
    text = tables.as_csv(rows)
    return pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""], low_memory=False)
