"""`dlrun train -m …` and `dlrun resume SWEEP`: draws trials, keeps workers busy, survives failures of both.

The parent process decides everything. A trial is a run in SWEEP/0007, and both communicate through files there, so
that trials may run on any machine. A sweep that is started again runs the missing trials, and none twice.
"""

from __future__ import annotations

import math
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.analysis import importance, sweeps
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders import sweep as sweep_folder
from dlrun.folders.disk import owned, sign, token
from dlrun.folders.outputs import point_latest
from dlrun.folders.run import ask_to_stop, settle
from dlrun.run.stopping import politely
from dlrun.search import policy, summary
from dlrun.search.budget import Budget
from dlrun.search.launchers import choose
from dlrun.search.launchers.job import Job
from dlrun.search.launchers.protocol import Ended
from dlrun.search.patience import Patience
from dlrun.search.plan import Plan, Round
from dlrun.search.rebuilding import opened
from dlrun.search.results import Results
from dlrun.search.sampling import draw, unseen
from dlrun.search.study import Trial
from dlrun.search.table import Table
from dlrun.vocabulary import DONE, FAILED, Exit, Status, minimised

if TYPE_CHECKING:
    from dlrun.config.compose import Composer

__all__ = ["Sweep"]

LOOK = 0.5  # seconds between two reads of the files of running trials
PATIENCE = 20  # seconds for interrupted trials to record their status


class Sweep:
    """A sweep whose lock this process holds."""

    def __init__(
        self,
        composer: Composer,
        plan: Plan,
        folder: Path,
        base: dict[str, Any],
        launcher: dict[str, Any],
        url: str = "",
    ) -> None:
        from dlrun.console import Screen

        self.composer, self.plan, self.folder, self.base = composer, plan, folder, base
        self.metric = str(base["search"]["metric"])
        self.minimise = minimised(self.metric, base["search"]["direction"])
        self.epochs, self.screen = int(base["trainer"]["epochs"]), Screen(sweep_folder.log(folder))
        # a resumed sweep may have nothing left to do
        soon = 0 if sweep_folder.journal(folder).exists() else len(plan.stage)
        self.pool = choose.launcher(
            launcher, folder, soon, plan.values("trainer.device", str(base["trainer"]["device"]))
        )
        sweep_folder.write_plan(folder, plan.record())
        self.study, trials, said = opened(folder, plan, self.metric, self.minimise, self.epochs, url)
        if said:
            self.screen.say(said, style="yellow")
        self.results = Results(folder, self.metric, self.minimise, trials)
        self.patience, self.folds = Patience(), sweep_folder.old_folds(folder)
        self.budget = Budget(plan, self.epochs)
        self.trials, self.running = self.results.trials, self.results.running
        self.table = Table(folder, self.results, plan)

    def run(self) -> int:
        """Run all rounds; returns the exit code."""
        try:
            with self.screen, politely():
                self._rounds()
        except KeyboardInterrupt:
            self._interrupted()
            return Exit.INTERRUPTED
        finally:
            self.pool.close()
        table = sweep_folder.write_table(self.folder, summary.rows(self.results, self.plan))
        found = sweeps.read(self.folder)
        shares = importance.measure(found)
        for line in summary.ending(self.results, self.plan, found, importance.sentence(shares), table):
            self.screen.say(line)
        if found.best:
            point_latest(found.entries[found.best[0]].path, completed=True)
        if "trainer.report=false" not in self.plan.fixed:
            summary.page(self.screen, self.folder, found, shares)
        failed = [n for n in self.trials if self.results.status(n) in FAILED or n in self.patience.outside]
        return Exit.SOME_FAILED if failed else Exit.FINE

    def _rounds(self) -> None:
        while True:
            now = self.plan.rounds[-1]
            axes = (
                " ".join(a.typed() for a in now.axes if len(a.words) != 1 or self.plan.purpose) or now.axes[-1].typed()
            )
            until = f", up to epoch {now.epochs}" if now.epochs else ""
            numbers = self.plan.stage
            todo = [n for n in numbers if not self._over(n, now)]
            done = f" ({len(numbers) - len(todo)} done)" if len(todo) < len(numbers) else ""
            count = f"{len(numbers)} trials" if len(numbers) != 1 else "1 trial"
            self.screen.say(f"{policy.heading(self.plan)}{count}{done} in {self.folder}{until}: {axes}")
            self._run_round(now, todo)
            following, said = policy.following(self.composer, self.plan, self.results)
            for words in said:
                self.screen.say(words, style="yellow")
            if following is not None:
                self._settle(now, following)
                self.plan.rounds.append(following)
            sweep_folder.write_plan(self.folder, self.plan.record())
            if following is None:
                break
        for number in self.plan.stage:
            if number in self.trials:
                self._close(self.trials[number])
        self.table.write()

    def _settle(self, now: Round, following: Round) -> None:
        """Record which trials of a stage do not continue in the next."""
        if following.stage == now.stage:
            return
        for number in sorted(self.trials):
            if number not in following.kept and self.results.status(number) == Status.PAUSED:
                self._prune(number, f"not among the best of stage {now.stage}")

    def _prune(self, number: int, why: str) -> None:
        """Record that a paused trial does not continue."""
        settle(self.results.path(number), status=Status.PRUNED, reason=why)
        self.results.forget(number)
        self._close(self.trials[number])

    def _run_round(self, now: Round, todo: list[int]) -> None:
        waiting = todo[::-1]
        looked = 0.0
        while waiting or self.running:
            if waiting and self.budget.closed(now, first=len(waiting) == len(todo)):
                self._cut(now, waiting)
            while len(self.running) < self.pool.slots and (number := self._next(waiting, now)) is not None:
                self._start(number, now)
            for ended in self.pool.wait(LOOK):
                waiting += self._ended(ended, now)
            if time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                waiting += self._look(now)
        self.screen.close()

    def _cut(self, now: Round, waiting: list[int]) -> None:
        """Start no further trial of a round: its time is up."""
        self.screen.say(f"search.hours={self.plan.search['hours']:g}: trials left out: {len(waiting)}", style="yellow")
        for number in [n for n in waiting if n in self.trials and self.results.status(n) == Status.PAUSED]:
            self._prune(number, f"no time after epoch {self.results.result(number).get('epochs')} (search.hours)")
        waiting.clear()
        now.new = sum(number >= now.first for number in self.trials)

    def _next(self, waiting: list[int], now: Round) -> int | None:
        """Take the next trial to start; skip those that still run for a process that is gone."""
        for number in waiting[::-1]:
            if owned(self.results.path(number)):
                continue
            waiting.remove(number)
            self.results.forget(number)
            if not self._over(number, now):
                return number
            self._ended(Ended(number, Exit.FINE), now)  # it has ended elsewhere
        return None

    def _start(self, number: int, now: Round) -> None:
        """Draw a trial that is new and give it to a worker."""
        trial = self.trials.get(number) or self._draw(number, now)
        if trial.closed:  # its result is in the study, but it must run again
            trial = self.study.add(number, trial.values, now.axes, trial.failures)
        self.trials[number] = trial
        words = [a.word(trial.values[a.key]) for a in self.plan.axes if a.key in trial.values]
        try:
            composed = self.composer.compose(self.composer.parse([*self.plan.fixed, *self.folds, *words]))
        except UserError as error:
            self.study.failed(trial, str(error), self.plan.search["retries"] + 1)
            self._close(trial)
            return
        config = composed.config
        config.pop("search")
        config["trainer"]["ema"] = config["trainer"]["ema"] or self.plan.search.get("average", 0.0)
        config["trainer"]["threads"] = config["trainer"]["threads"] or max(
            1, self.pool.threads // config["trainer"]["devices"]
        )
        if not any(w.startswith("trainer.report=") for w in self.plan.fixed):
            config["trainer"]["report"] = False
        record = composed.record()  # before what changes from stage to stage
        config["trainer"]["stop_after"] = now.epochs if now.epochs < self.epochs else 0
        self.results.forget(number)
        folder = self.results.path(number)
        self.running[number] = token(folder)
        self.budget.started(number, now)
        self.pool.submit(Job(number, config, str(folder), record, beside=self.pool.slots > 1))

    def _draw(self, number: int, now: Round) -> Trial:
        search, place = self.plan.search, number - now.first
        if now.grown > sum(r.grown for r in self.plan.rounds[-2:-1]) and all(a.words for a in now.axes):
            return self.study.add(number, unseen(now.axes, self.plan.rounds[-2].axes)[place], now.axes)
        seeds = next((a for a in now.axes if a.name == "seed" and a.words), None)
        sampler = search["sampler"]
        if sampler == "tpe" and [a.words for a in now.axes] != [a.words for a in self.plan.axes]:
            sampler = "random"  # a list grew, and Optuna's categories cannot
        if sampler == "tpe":
            count = len(seeds.words) if seeds else 1
            if seeds and (turn := place % count):  # the same point with the next seed
                first = self.trials[number - turn].values
                turned = seeds.choices[(seeds.choices.index(first[seeds.key]) + turn) % count]
                return self.study.add(number, {**first, seeds.key: turned}, now.axes)
            return self.study.ask(number, now.axes)
        round_seed = search["seed"] + 1_000_003 * (len(self.plan.rounds) - 1)
        return self.study.add(number, draw(sampler, now.axes, round_seed, place, now.new), now.axes)

    def _ended(self, ended: Ended, now: Round) -> list[int]:
        """Record the end of a trial; returns its number if it must be retried."""
        number, trial = ended.number, self.trials[ended.number]
        self.running.pop(number, None)
        self.budget.ended(number)
        self._report(trial)
        folder = self.results.path(number)
        if ended.lost:
            with suppress(UserError):  # a node that only seems to be gone may still hold its lock
                settle(folder, status=Status.FAILED, reason=ended.why)
        result = reading.result(folder)
        status = str(result.get("status", ""))
        again = []
        if status not in (*DONE, Status.PAUSED):
            why = ended.why if ended.lost or not result.get("reason") else str(result["reason"])
            # a failed check would fail again: it counts as the last attempt
            failures = self.plan.search["retries"] + 1 if status == Status.CHECK_FAILED else trial.failures + 1
            left = False
            if ended.outside and status != Status.CHECK_FAILED:
                failures, left = self.patience.surrounded(ended, trial, self.plan.search["retries"])
            self.study.failed(trial, why or f"ended with code {ended.code}", failures)
            if failures <= self.plan.search["retries"] and not left:
                again = [number]
        else:
            self.patience.outside.pop(number, None)
        self.results.keep(number, result)
        if not again and (status != Status.PAUSED):
            self._close(trial)
        self.screen.say(summary.line(self.results, self.plan, number, again=bool(again)))
        self.table.changed()
        if self.budget.keep():
            sweep_folder.write_plan(self.folder, self.plan.record())
        return again

    def _close(self, trial: Trial) -> None:
        """Report the end of a trial to Optuna."""
        if trial.closed:
            return
        self.study.close(trial, self.results.status(trial.number), self.results.score(trial.number))

    def _look(self, now: Round) -> list[int]:
        """Follow running trials: report epochs, stop bad or hanging ones; returns those that must be retried."""
        again: list[int] = []
        for number, before in list(self.running.items()):
            folder = self.results.path(number)
            bad = self._report(self.trials[number])
            if (over := self.budget.over()) and token(folder) == before:  # it waits for room on a cluster
                self.pool.kill(number)
                del self.running[number]
                self._cut(now, [number])
                continue
            if bad or over:
                why = "search.prune" if bad else "search.hours"
                ask_to_stop(folder, f"pruned after epoch {self.trials[number].seen} ({why})")
            limit = self.plan.search["timeout"]
            if self.patience.late(number, token(folder), before, limit):
                self.pool.kill(number)
                why = f"no end after {limit:g} seconds (search.timeout)"
                again += self._ended(Ended(number, Exit.FAILED, why, lost=True, late=True), now)
            elif self.patience.silent(number, sign(folder), before, self.pool.heartbeat):
                self.pool.kill(number)
                why = f"no sign of its process for {self.pool.heartbeat:g} seconds (hydra.launcher.heartbeat)"
                again += self._ended(Ended(number, Exit.FAILED, why, lost=True), now)
        if said := self.pool.waiting():
            self.screen.say(said, style="yellow")
        self.table.look()
        summary.bar(self.screen, self.results, self.plan, self.epochs)
        return again

    def _report(self, trial: Trial) -> bool:
        """Report new epochs of a trial to Optuna; returns whether it should be pruned."""
        prune = False
        if trial.closed:
            return False
        for row in self.results.rows(trial.number):
            with suppress(ValueError):  # a cell that is no number
                epoch, value = int(row.get("epoch") or 0), float(row.get(self.metric) or "nan")
                if epoch > trial.seen and math.isfinite(value):
                    prune = self.study.report(trial, epoch, value) or prune
        return prune

    def _over(self, number: int, now: Round) -> bool:
        """Whether a trial has nothing left to do in a round."""
        if number not in self.trials:
            return False
        status = self.results.status(number)
        if status in (Status.FAILED, Status.CHECK_FAILED):
            return self.trials[number].failures > int(self.plan.search["retries"])
        if status == Status.PAUSED:
            reached = int(self.results.result(number).get("epochs", 0))
            return bool(now.epochs) and reached >= min(now.epochs, self.epochs)
        return status in DONE

    def _interrupted(self) -> None:
        self.screen.close()
        self.pool.interrupt()
        limit = time.monotonic() + PATIENCE
        try:
            while self.running and time.monotonic() < limit:
                for ended in self.pool.wait(LOOK):
                    self.running.pop(ended.number, None)
        except KeyboardInterrupt:
            pass
        self.running.clear()
        self.results.forget()
        self.table.write()
        done = sum(self.results.status(n) in DONE for n in self.trials)
        missing = f"`dlrun resume {shlex.quote(str(self.folder))}` runs the missing ones"
        self.screen.say(f"\ninterrupted after {done} trials; {missing}")
