"""False alarms of the default checks on healthy setups (issue: 0 failures, warnings under 5 %).

    python tests/benchmarks/bench_false_alarms.py --log alarms.jsonl --minutes 30
    python tests/benchmarks/bench_false_alarms.py --log alarms.jsonl --part 1/2 &     and 2/2: two processes
    python tests/benchmarks/bench_false_alarms.py --log alarms.jsonl --minutes 0      only the table

Every model × activation × norm × loss that conf/ can compose on digits, and eight torchvision architectures on
images of 32 or 64 pixels, five seeds each; without receipts. Suites run in an order drawn once, setups with the
fewest suites in the log first, so that a log is a fair sample at any time; a suite in the log is not repeated.
Processes may share the log.

On digits the last maps of a resnet have one or four pixels, for which convolutions are slow: the campaign computes
them as the equivalent matrix products. A step of resnet34 or resnet50 on one thread takes half the time; gradients
differ by rounding, as between two builds of torch.

Healthy means that the setup learns. A setup that raised an alarm is trained as `dlrun train` would with conf's
defaults; if no epoch classifies half of the validation images correctly, which are digits or ten plain patterns, the
alarm was true and the setup does not count; its other seeds are not run. Of the 39 setups that do not count in
false_alarms.jsonl, 19 were trained for only five epochs: residual networks of sigmoid without batch norm, whose outputs
do not depend on their inputs. The lint for sigmoid and tanh does not count either if they were requested by name (M4):
it states a fact.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZES = {
    "resnet18": 32,
    "vgg11_bn": 32,
    "shufflenet_v2_x0_5": 32,
    "densenet121": 32,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "efficientnet_b0": 64,
}
RIGHT = 0.5
THREADS = ("trainer.threads=1",)


def setups() -> Iterator[tuple[str, ...]]:
    """The overrides of every setup of the campaign."""
    from dlrun.config.compose import builtin_conf
    from dlrun.models.layers import ACTIVATIONS, NORMS

    def options(group: str) -> list[str]:
        return sorted(file.stem for file in (builtin_conf() / group).glob("*.yaml"))

    # those two are other people's networks, without an activation or a norm to choose
    models = [m for m in options("model") if m not in ("custom", "torchvision")]
    for model, activation, norm, loss in itertools.product(models, ACTIVATIONS, NORMS, options("loss")):
        yield (f"model={model}", f"model.activation={activation}", f"model.norm={norm}", f"loss={loss}")
    for name, size in SIZES.items():
        images = ("dataset=arrays", f"dataset.path=images{size}.npz", "dataset.limit=1000")
        yield ("model=torchvision", f"model.name={name}", *images)


def paint(folder: Path) -> None:
    """Write images of ten patterns under noise, in the sizes that the campaign needs."""
    for size in set(SIZES.values()):
        draw = np.random.default_rng(0)
        y = np.arange(2000) % 10
        patterns = draw.integers(60, 196, (10, size, size, 3))
        x = np.clip(patterns[y] + draw.normal(0, 40, (2000, size, size, 3)), 0, 255).astype(np.uint8)
        np.savez(folder / f"images{size}.npz", x=x, y=y)


def suite(words: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Run the default checks on a setup; return the alarms and, if there are any, whether the setup learns."""
    from dlrun import checks
    from dlrun.config.compose import compose
    from dlrun.training.experiment import build

    always = ("check.fresh=true", "check.budget=600", f"seed={seed}", *THREADS)
    started = time.perf_counter()
    results = checks.run(build(compose(*words, *always)))
    seconds = round(time.perf_counter() - started, 2)
    said: dict[str, dict[str, str]] = {"fail": {}, "warn": {}, "skip": {}}
    for r in results:
        asked_for = r.check == "lint_activation" and words[1].split("=")[1] in ("sigmoid", "tanh")
        if r.status in said and r.check != "penalty" and not asked_for:
            said[r.status][r.check] = f"{r.value}: {r.message}"
    alarm = bool(said["fail"] or said["warn"])
    found = {"setup": " ".join(words), "seed": seed, "seconds": seconds, "checks": len(results), "commit": commit()}
    return {**found, **said, "learns": learns(words) if alarm else True}


def convolved(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, otherwise: Any) -> Tensor:
    """A convolution of 1×1 on a map of at most 8×8, or of 3×3 on one of at most 2×2, as one matrix product."""
    (k, _), (stride, _), (height, width) = layer.kernel_size, layer.stride, x.shape[2:]
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    if not plain or layer.padding != (k // 2, k // 2) or not height == width <= {1: 8, 3: 2}.get(k, 0):
        return otherwise(layer, x, weight, bias)
    rows, at = x.permute(0, 2, 3, 1), range(0, height, stride)
    if k == 1:
        rows = rows[:, ::stride, ::stride]
    else:
        rows = F.pad(rows, (0, 0, 1, 1, 1, 1))
        taps = [rows[:, i : i + k, j : j + k].flatten(1) for i in at for j in at]
        rows = torch.stack(taps, 1).unflatten(1, (len(at), len(at)))
    return F.linear(rows, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


@functools.cache
def commit() -> str:
    """The abbreviated hash of the current commit."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def learns(words: tuple[str, ...]) -> bool:
    """Whether an epoch of a normal training, with conf's seed, classifies half of the validation images correctly."""
    from dlrun.config.compose import compose
    from dlrun.data.batches import Batch
    from dlrun.training import loop
    from dlrun.training.experiment import build

    exp = build(compose(*words, *THREADS))
    for epoch in range(exp.cfg.trainer.epochs):
        exp.model.train()
        for i, (x, y, _) in enumerate(exp.train.epoch(epoch)):
            exp.scheduler.set(epoch + i / len(exp.train))
            loop.step(exp, Batch(x, y))
        if loop.scores(exp, loop.predict(exp, exp.val), "val")["val_acc"] >= RIGHT:
            return True
    return False


def table(rows: list[dict[str, Any]], planned: int) -> str:
    """The log as text: counts by model, then every alarm."""
    dead = {r["setup"] for r in rows if not r["learns"]}
    sound = [r for r in rows if r["setup"] not in dead]
    lines = [f"{'model':28} setups suites seconds  failures  warnings"]
    for model in sorted({_model(r) for r in sound}):
        mine = [r for r in sound if _model(r) == model]
        counts = f"{len({r['setup'] for r in mine}):6} {len(mine):6} {sum(r['seconds'] for r in mine) / len(mine):7.1f}"
        lines.append(f"{model:28} {counts} {_suites(mine, 'fail'):9} {_suites(mine, 'warn'):9}")
    checks = sum(r["checks"] for r in sound)
    warned = sum(len(r["warn"]) for r in sound)
    lines.append(
        f"{len(rows)} of {planned} suites run, {len(rows) - len(sound)} of them on setups that do not learn and do not "
        f"count, nor were their other seeds run; "
        f"of {len(sound)}: failures {_suites(sound, 'fail')}, suites with a warning {_suites(sound, 'warn')} "
        f"({_suites(sound, 'warn') / max(1, len(sound)):.1%}); {warned} of {checks} checks warn "
        f"({warned / max(1, checks):.2%})"
    )
    lines.append(f"by check: {dict(Counter((c, s) for r in sound for s in ('fail', 'warn', 'skip') for c in r[s]))}")
    lines += [f"  {r['setup']} seed={r['seed']}: {r['fail'] | r['warn']}" for r in sound if r["fail"] or r["warn"]]
    lines.append(f"do not learn: {sorted(dead)}")
    return "\n".join(lines)


def _model(row: dict[str, Any]) -> str:
    words = row["setup"].split()
    return str(words["torchvision" in words[0]].split("=")[1])


def _suites(rows: list[dict[str, Any]], status: str) -> int:
    return sum(bool(r[status]) for r in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="False alarms of the default checks.")
    parser.add_argument("--log", type=Path, default=Path("false_alarms.jsonl"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="setups whose overrides hold this text")
    parser.add_argument("--part", default="1/1", help="1/2 and 2/2 in two processes")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no suite after so long")
    given = parser.parse_args()
    log = given.log.absolute()
    planned = [(w, seed) for w in setups() for seed in range(1, given.seeds + 1) if given.only in " ".join(w)]
    planned.sort(key=lambda one: hashlib.sha256(str(one).encode()).digest())
    part, parts = map(int, given.part.split("/"))
    deadline = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        paint(Path(folder))
        rows = _read(log)
        own = set(planned[part - 1 :: parts])  # the same whenever a process starts
        due = _due(planned, rows)
        due = [one for one in due if one in own] + [one for one in due[::-1] if one not in own]
        otherwise = nn.Conv2d._conv_forward
        nn.Conv2d._conv_forward = lambda *given: convolved(*given, otherwise)  # type: ignore[method-assign]
        for words, seed in due:  # who is done helps the others, from their far end
            if _settled(rows, " ".join(words), seed):
                continue
            if time.monotonic() > deadline:
                break
            row = suite(words, seed)
            if not _settled(_read(log), row["setup"], seed):  # another process may have run it as well
                with log.open("a") as file:
                    file.write(json.dumps({k: v for k, v in row.items() if v != {} and v is not True}) + "\n")
            rows = _read(log)
    print(table([r for r in _read(log) if given.only in r["setup"]], len(planned)))


def _due(planned: list[tuple[tuple[str, ...], int]], rows: list[dict[str, Any]]) -> list[tuple[tuple[str, ...], int]]:
    """The suites that are not settled, setups with the fewest suites first."""
    seen = Counter(r["setup"] for r in rows)
    level: dict[tuple[tuple[str, ...], int], int] = {}
    for words, seed in planned:
        if not _settled(rows, setup := " ".join(words), seed):
            seen[setup] += 1
            level[words, seed] = seen[setup]
    return sorted(level, key=level.__getitem__)


def _settled(rows: list[dict[str, Any]], setup: str, seed: int) -> bool:
    """Whether the log has this suite, or one that found that its setup does not learn."""
    return any(r["setup"] == setup and (r["seed"] == seed or not r["learns"]) for r in rows)


def _read(log: Path) -> list[dict[str, Any]]:
    nothing: dict[str, Any] = {"fail": {}, "warn": {}, "skip": {}, "learns": True}
    return [{**nothing, **json.loads(line)} for line in log.read_text().splitlines()] if log.exists() else []


if __name__ == "__main__":
    main()
