"""`dlrun resume RUN`: go on where a killed or interrupted run stopped, bit for bit."""

from __future__ import annotations

import argparse

from dlrun.config import UserError

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Take the run folder over and train to the end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="dlrun resume", description=__doc__)
    parser.add_argument("run", help="the run's folder, such as outputs/latest")
    parser.add_argument("trust", nargs="?", default="", metavar="trust=[PACKAGE]", help="packages of your own that the run's config names")
    args = parser.parse_args(argv)
    from omegaconf import OmegaConf

    from dlrun import rundir
    from dlrun.config import check_rules
    from dlrun.targets import check_targets

    run = rundir.reopen(args.run)
    status = rundir.stored(run.path).get("status")
    if status == "completed":
        print(f"{run.path} is complete; nothing to do")
        return 0
    plain = rundir.config(run.path)
    # what a stored config trusts is a stranger's word: only the command line counts
    plain["trust"] = _trust(args.trust)
    check_targets(plain, plain["trust"])
    check_rules(plain)
    from dlrun.running import execute

    return execute(OmegaConf.create(plain), run, resuming=True)


def _trust(word: str) -> list[str]:
    if not word:
        return []
    key, _, value = word.partition("=")
    if key != "trust" or not value:
        raise UserError(f"{word}: expected trust=[package]")
    return [name.strip() for name in value.strip("[]").split(",") if name.strip()]
