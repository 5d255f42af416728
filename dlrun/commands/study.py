"""`dlrun study NAME [key=value ...]`: ask what a hyperparameter does, as one of the essays does, and whether it agrees.

Runs a sweep over sensible values with several seeds, and ends in one page: losses by epoch, score and seconds by value,
what was seen, and whether each claim of the essay holds. Typed words replace those of the study. A study is a file
conf/study/NAME.yaml; `dlrun resume`, `dlrun compare` and `dlrun report` take the folder of its sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlrun.commands.arguments import described
from dlrun.errors import UserError

if TYPE_CHECKING:
    from dlrun.config.compose import Composer
    from dlrun.config.flags import Flags
    from dlrun.config.settings import Settings
    from dlrun.config.studies import Study
    from dlrun.search.space import Axis

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run a study; returns the exit code of a sweep. Raises UserError for an unknown or malformed study."""
    from dlrun.config import studies
    from dlrun.config.compose import run
    from dlrun.config.flags import split

    if {"-h", "--help"} & set(argv):
        print("\n".join([described(__doc__ or ""), "studies:", *map(_question, sorted(studies.listed())), ""]))
        return run("study", argv, _single)
    names = [word for word in split(argv)[1] if "=" not in word]
    if len(names) != 1:
        found = f"found {len(names)} names" if names else "found no name"
        raise UserError(f"dlrun study: expected one study, {found}; studies: {', '.join(sorted(studies.listed()))}")
    study = studies.load(names[0])
    rest = [word for word in argv if word != names[0] and word not in ("-m", "--multirun")]

    def sweep(composer: Composer, overrides: list[str], flags: Flags) -> int:
        from dlrun.search import starting

        words = _words(study, overrides)
        if study.combine and (one := next((w for w in overrides if w.startswith("seed=") and "," not in w), "")):
            raise UserError(
                f"dlrun study {study.name}: {one}: expected several seeds, of which the ensembles are made, such as "
                f"seed={','.join(str(n + 1) for n in range(study.seeds))}"
            )
        return starting.sweep(composer, words, dict(flags), asked=_asked(study))

    return run("study", ["-m", *rest], _single, sweep)


def _question(name: str) -> str:
    """The line of a study in the help; for one whose file is malformed what is wrong with it."""
    from dlrun.config import studies

    try:
        said = studies.load(name).question
    except UserError as error:
        said = f"not available: {error}"
    return f"  {name:<16}{said}"


def _words(study: Study, typed: Sequence[str]) -> list[str]:
    """The words of a study and those that were typed, which win."""
    keys = {word.lstrip("+").partition("=")[0] for word in typed}
    own = [*study.words, *study.values, f"seed={','.join(str(n + 1) for n in range(study.seeds))}", "search=grid"]
    return [word for word in own if word.lstrip("+").partition("=")[0] not in keys] + list(typed)


def _asked(study: Study) -> Any:
    """What makes a sweep a study: its varied keys first, seeds last, and its record."""

    def asked(
        composer: Composer, axes: Sequence[Axis], fixed: Sequence[str], plain: Mapping[str, Any]
    ) -> tuple[list[Axis], list[str], dict[str, Any]]:
        if ranges := [a for a in axes if not a.words]:
            raise UserError(f"{ranges[0].typed()}: a study compares values; expected a list")
        if study.combine and (others := [a for a in axes if a.name != "seed"]):
            raise UserError(f"dlrun study {study.name}: it varies seeds alone; omit {others[0].typed()}")
        if study.combine and (several := _several(plain)):
            raise UserError(f"dlrun study {study.name}: {several} asks for several targets; a vote needs one")
        ordered = sorted(axes, key=lambda axis: axis.name == "seed")
        return ordered, list(fixed), {"study": study.record()}

    return asked


def _several(plain: Mapping[str, Any]) -> str:
    """The word that asks for several targets, of which ensembles of a study cannot be made; empty if there is none."""
    dataset = plain["dataset"]
    if targets := dataset.get("targets"):
        return f"dataset.targets=[{','.join(map(str, targets))}]"
    return "dataset.multilabel=true" if dataset.get("multilabel") else ""


def _single(cfg: Settings, record: dict[str, Any]) -> int:
    raise AssertionError("a study is a sweep")
