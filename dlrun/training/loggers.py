"""Copies of a run's numbers in other tools: `dlrun train logger=tensorboard`, `logger=mlflow` (B1, B2).

The columns of metrics.csv, once per epoch; at the end the test scores and verdicts. They are copied from the run's
files, so that a resumed run has every epoch exactly once. If a server fails, the copy is incomplete, not the run.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dlrun.analysis.finding import summary
from dlrun.config.settings import Settings
from dlrun.errors import first_line
from dlrun.folders import reading
from dlrun.folders.run import Run
from dlrun.vocabulary import Status

__all__ = ["Follower"]

Row = Mapping[str, Any]
# the status of a run in MLflow; any other status is a failure
ENDINGS: dict[str, str] = {Status.COMPLETED: "FINISHED", Status.INTERRUPTED: "KILLED", Status.PRUNED: "KILLED"}
PARAMS, LONGEST = 100, 500  # parameters per call and characters per value that every version of MLflow accepts


class Follower:
    """Copies the rows of a run to the chosen logger; does nothing with logger=none."""

    def __init__(self, cfg: Settings, run: Run, say: Callable[[str], None]) -> None:
        self._cfg, self._run, self._say = cfg, run, say
        self._kind = str(cfg.logger.get("kind", "none"))
        self._target: _TensorBoard | _MLflow | None = None

    @property
    def listens(self) -> bool:
        """Whether there is a logger that has not failed."""
        return self._kind != "none"

    def follow(self, rows: Sequence[Row]) -> None:
        """Write the rows of metrics.csv that the logger does not have yet."""
        self._harmless(lambda target: _copy(rows, target))

    def close(self) -> None:
        """Write the missing rows and the result of the run, and close the logger."""
        self.follow(reading.metrics(self._run.path))
        self._harmless(lambda target: target.finish(reading.stored(self._run.path)))

    def _harmless(self, action: Callable[[_TensorBoard | _MLflow], None]) -> None:
        """Do it if there is a logger; one that fails is reported and disabled."""
        if self._kind == "none":
            return
        try:
            if self._target is None:
                opened = _TensorBoard if self._kind == "tensorboard" else _MLflow
                self._target = opened(self._cfg, self._run)
            action(self._target)
        except Exception as error:  # servers fail with many exceptions, none of which may stop the run
            self._say(f"logger={self._kind} failed and has been disabled; metrics.csv is complete: {first_line(error)}")
            self._kind = "none"


class _TensorBoard:
    """Event files in the run's folder; each process writes all epochs, since a killed one may have lost the last."""

    def __init__(self, cfg: Settings, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.epoch = 0
        self._writer: Any = SummaryWriter(str(run.fresh_events()))
        self._writer.add_text("config", f"```yaml\n{_yaml(cfg)}```")

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def finish(self, result: Mapping[str, Any]) -> None:
        for name, value in _scores(result).items():
            self._writer.add_scalar(name, value, self.epoch)
        self._writer.add_text("verdicts", "\n\n".join(_sentences(result)) or "none", self.epoch)
        self._writer.close()


class _MLflow:
    """A run of MLflow; result.json stores its id, so that a resumed run continues it."""

    def __init__(self, cfg: Settings, run: Run) -> None:
        # otherwise a server that does not answer is retried for a quarter of an hour
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        self._client: Any = MlflowClient(cfg.logger.get("uri"))
        known = reading.stored(run.path).get("mlflow_run")
        self._id, self.epoch = self._go_on(str(known)) if known else ("", 0)
        if not self._id:
            self._id = self._begin(cfg, run)
            run.update_result(mlflow_run=self._id)

    def _go_on(self, known: str) -> tuple[str, int]:
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(known, status="RUNNING")
            return known, max((m.step for m in self._client.get_metric_history(known, "train_loss")), default=0)
        except MlflowException:
            return "", 0  # another server, or somebody removed it

    def _begin(self, cfg: Settings, run: Run) -> str:
        from mlflow.entities import Param

        name = str(cfg.logger.get("experiment") or "dlrun")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        begun = str(self._client.create_run(experiment, run_name=run.path.resolve().name).info.run_id)
        self._client.set_tag(begun, "dlrun.folder", str(run.path.resolve()))
        params = [Param(key, value[:LONGEST]) for key, value in _flat(cfg.plain)]
        for start in range(0, len(params), PARAMS):
            self._client.log_batch(begun, params=params[start : start + PARAMS])
        return begun

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, epoch) for name, value in numbers.items()])

    def finish(self, result: Mapping[str, Any]) -> None:
        if scores := _scores(result):
            self.write(self.epoch, scores)
        if "verdicts" in result:
            self._client.set_tag(self._id, "verdicts", summary(result["verdicts"]))
            self._client.set_tag(self._id, "mlflow.note.content", "\n\n".join(_sentences(result)))
        self._client.set_terminated(self._id, ENDINGS.get(str(result.get("status")), "FAILED"))


def _copy(rows: Iterable[Row], target: _TensorBoard | _MLflow) -> None:
    for row in rows:
        if (epoch := int(row["epoch"])) > target.epoch:
            numbers = {name: float(v) for name, v in row.items() if name != "epoch" and v not in ("", None)}
            target.write(epoch, {name: v for name, v in numbers.items() if math.isfinite(v)})
            target.epoch = epoch


def _yaml(cfg: Settings) -> str:
    import yaml

    return str(yaml.safe_dump(cfg.plain, sort_keys=False, allow_unicode=True))


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _scores(result: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(result[name]) for name in ("test_loss", "test_acc") if name in result}


def _sentences(result: Mapping[str, Any]) -> list[str]:
    found = result.get("verdicts") or []
    return [f"{one['sentence']}: try `{one['try']}`" if one.get("try") else str(one["sentence"]) for one in found]
