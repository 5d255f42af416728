"""`dlrun check [--json] [--explain CHECK]`: run the checks that precede training, and nothing else (C1-C10).

`--explain overfit` says what a check sees and what it cannot, and shows its numbers for this setup. Each check
is printed in full, so `-v` changes nothing here; it is accepted since `dlrun train -v` prints the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlrun.config.settings import Settings

__all__ = ["complete", "main"]

EXPLAIN = "--explain"


def main(argv: list[str]) -> int:
    """Run the checks; returns 0, or 3 if one failed. `--json` prints the results as JSON and nothing else.

    Raises UserError for `--explain` without the name of a check.
    """
    from dlrun.commands.arguments import verbose
    from dlrun.config.compose import run

    _, argv = verbose(argv)
    as_json = "--json" in argv
    asked, argv = _explain(argv)

    def task(cfg: Settings, _: dict[str, Any]) -> int:
        from dlrun.run.explaining import explain_check
        from dlrun.run.gate import check_only

        if asked is not None:
            return explain_check(cfg, asked)
        return check_only(cfg, as_json=as_json)

    return run("check", [a for a in argv if a != "--json"], task)


def complete(line: str) -> list[str] | None:
    """Return the checks that the last word of a command may mean after `--explain`; None if it is something else."""
    from dlrun.config.check_names import check_names

    before, _, word = line.rpartition("=" if line.rpartition(" ")[2].startswith(f"{EXPLAIN}=") else " ")
    return [name for name in check_names() if name.startswith(word)] if before.rstrip().endswith(EXPLAIN) else None


def _explain(argv: list[str]) -> tuple[str | None, list[str]]:
    """The check that `--explain` names, if any, and the other arguments."""
    from dlrun.config.check_names import check_names
    from dlrun.config.meant import likely_value
    from dlrun.errors import UserError

    at = next((i for i, word in enumerate(argv) if word.partition("=")[0] == EXPLAIN), None)
    if at is None:
        return None, argv
    joined = "=" in argv[at]
    name = argv[at].partition("=")[2] if joined else next(iter(argv[at + 1 : at + 2]), "")
    known = check_names()
    if name not in known:
        near = likely_value("check.only", name, known) if name and "=" not in name else None
        hint = f"did you mean {EXPLAIN} {near}?" if near else f"expected one of: {', '.join(known)}"
        raise UserError(f"{EXPLAIN} {name if '=' not in name else ''}".rstrip() + f": no such check; {hint}")
    return name, argv[:at] + argv[at + (1 if joined else 2) :]
