"""The conclusion of a comparison: the best, whether its lead exceeds the noise, the next command (S9, S10).

The last line of `dlrun compare`. Nothing here imports torch.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from statistics import stdev

from dlrun.analysis import compare, scores
from dlrun.analysis.compare import Entry
from dlrun.analysis.ranking import Setting
from dlrun.analysis.seed_groups import LEVEL, difference
from dlrun.vocabulary import Status, is_accuracy

__all__ = ["decision"]


def decision(
    entries: Sequence[Entry],
    column: str,
    *,
    lower: bool,
    names: Mapping[str, str] | None = None,
    among: Sequence[str] | None = None,
    title: str = "best",
) -> list[str]:
    """Return the lines that decide: the best by `column`, by how much it leads, and the next command.

    Of settings with several seeds the means are compared, by the test of `dlrun compare --group-seeds`; of single runs
    the accuracies, with the noise of so few images. `names` are short ones by path; settings differ only `among`
    these keys, if they are given. `title` says what the best is the best of.
    """

    def name(entry: Entry) -> str:
        return (names or {}).get(str(entry.path)) or scores.short(entry.path)

    done = [e for e in entries if compare.scored(e.result, column)]
    ranked = compare.settings(done, column, compare.varying([e.config for e in done], among=among), lower=lower)
    if not ranked:
        data = [e.result.get("data") for e in entries if e.result.get("status") == Status.COMPLETED]
        if data and all(isinstance(one, dict) and one.get("val") == 0 for one in data):
            return [f"no {column}: these runs trained without a validation split, so none is best"]
        return ["no run has completed with a score; `dlrun list` shows the status of each"]
    first, best = ranked[0], done[ranked[0].runs[0]]
    count = len(first.by_seed)
    line = f"{title}: {name(best)}, {column} {scores.counted(column, best.result.get(column), best.result)}"
    if count > 1:
        spread = stdev(first.by_seed.values())
        others = "folds" if compare.folded(best) else "seeds"
        line = f"{title}: {name(best)} and its {others}, mean {column} of {count} "
        line += f"{first.mean:.4f} ± {spread:.4f}"
    if len(ranked) == 1:
        words = "the only setting" if len(entries) > 1 else "the only run"
        return [f"{line}; {words}", *_next(best, certain=count > 2)]
    if any(len(setting.runs) > 1 for setting in ranked):
        line += f", the best mean over seeds of {len(ranked)} settings"
    second = done[ranked[1].runs[0]]
    lead = round(abs(first.mean - ranked[1].mean), 12)
    said, certain = _noise(ranked[:2], (best, second), column, lead)
    how = f"leads {name(second)} by {lead:.4f}" if lead else f"equal to {name(second)} and first by val_loss"
    return [f"{line}; {how}: {said}", *_next(best, certain=certain)]


def _noise(settings: Sequence[Setting], best: Sequence[Entry], column: str, lead: float) -> tuple[str, bool]:
    """Whether a lead of the first of two settings is more than noise, in words and as a flag."""
    first, second = settings
    if min(len(first.by_seed), len(second.by_seed)) > 1:
        p, name = difference(first.by_seed, second.by_seed)
        if math.isnan(p):
            return "the seeds do not vary, so the noise is unknown", False
        return f"{'more than' if p < LEVEL else 'within'} noise over seeds ({name} t-test, p {p:.2g})", p < LEVEL
    count, other = (scores.images(entry.result, "val") for entry in best)
    if not is_accuracy(column) or not count or count != other:
        return "one seed each, so the noise is unknown", False
    chance = scores.noise(first.mean, second.mean, count)
    if lead > chance:
        return f"more than the noise of {count} validation images, {chance:.4f} (95 %)", True
    return f"within the noise of {count} validation images, {chance:.4f} (95 %)", False


def _next(best: Entry, *, certain: bool) -> list[str]:
    """The command to type next: use the best if its lead is certain, otherwise repeat it with seeds."""
    path = best.path
    if certain:
        return [f"next: {shlex.join(['dlrun', 'predict', str(path)])} IMAGES"]
    words = best.result.get("typed")
    if not isinstance(words, list):
        return ["next: repeat the best settings with 'seed=range(1,6)', then dlrun compare --group-seeds"]
    dropped = ("seed", "run.", "sweep.", "search", "hydra", "trust")
    kept = [str(w) for w in words if not str(w).lstrip("+").startswith(dropped)]
    return [f"next: {shlex.join(['dlrun', 'train', '-m', *kept, 'seed=range(1,6)'])}, then dlrun compare --group-seeds"]
