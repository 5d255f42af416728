"""False alarms of the default checks on healthy setups (issue: 0 failures, warnings under 5 %).

    python tests/benchmarks/bench_false_alarms.py --log alarms.jsonl --minutes 30
    python tests/benchmarks/bench_false_alarms.py --log alarms.jsonl --part 1/2 &     and 2/2: two processes
    python tests/benchmarks/bench_false_alarms.py --log alarms.jsonl --minutes 0      only the table
    python tests/benchmarks/bench_false_alarms.py --log drawn.jsonl --drawn 200       setups drawn from all of conf/
    python tests/benchmarks/bench_false_alarms.py --log drawn.jsonl --drawn 200 --again    suites with alarms once more
    python tests/benchmarks/bench_false_alarms.py --log drawn.jsonl --drawn 200 --processor    beside other programs

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

--drawn composes setups at random from models, optimizers, schedules, losses, regularizers, augmentations, objectives
and data, small networks more often than large ones, each at its default rate. Each row has the commit that was checked;
a later row for the same suite replaces an earlier one. What an alarm says may be true of a setup that learns (TRUE):
such suites stay in the sample, and are counted beside the false ones.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
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
# what --drawn chooses from, with how often: large networks take minutes
MODELS = {
    "model=mlp": 5,
    "model=cnn": 6,
    "model=airbench": 1,
    "model=resnet20": 5,
    "model=resnet32": 1,
    "model=resnet18": 1,
}
PHOTO_MODELS = {
    "model=cnn": 5,
    "model=resnet20": 2,
    "model=torchvision model.name=squeezenet1_1": 1,
    "model=torchvision model.name=mobilenet_v3_small": 2,
    "model=torchvision model.name=shufflenet_v2_x0_5": 2,
    "model=torchvision model.name=resnet18": 1,
}
DATA = (
    ("dataset=digits",),
    ("dataset=digits", "dataset.limit=600"),
    ("dataset=digits", "dataset.folds=5"),
    ("dataset=arrays", "dataset.path=smooth32.npz", "dataset.limit=1000"),
    ("dataset=arrays", "dataset.path=smooth64.npz", "dataset.limit=1000"),
)
DATA_SHARES = (5, 2, 2, 2, 1)
REGULARIZERS = (
    "regularizer=none",
    "regularizer=none",
    "regularizer=dropout",
    "regularizer=elastic",
    "regularizer=l1",
    "regularizer=l2",
    "regularizer=label_smoothing",
    "regularizer=max_norm",
    "regularizer=l2 regularizer.dropout=0.3",
)
AUGMENTS = (
    "augment=none",
    "augment=none",
    "augment=none augment.pad=1",
    "augment=affine",
    "augment=blur",
    "augment=colour",
    "augment=cutout",
    "augment=noise",
    "augment=randaugment",
)
SATURATING = ("model.activation=sigmoid", "model.activation=tanh")
RIGHT = 0.5
THREADS = ("trainer.threads=1",)
TEACHER = "teacher"  # a run on digits, for distillation
# alarms that are true of setups that learn: the check, a word of the setup, the reason
TRUE: tuple[tuple[str, str, str], ...] = (
    (
        "schedule",
        "scheduler=halve",
        "half the rate after each of 30 epochs: under a thousandth of it from the eleventh",
    ),
)


def setups() -> Iterator[tuple[str, ...]]:
    """The overrides of every setup of the campaign."""
    from dlrun.models.layers import ACTIVATIONS, NORMS

    # these are other people's networks, without an activation or a norm to choose
    models = [m for m in _options("model") if m not in ("custom", "timm", "torchvision")]
    for model, activation, norm, loss in itertools.product(models, ACTIVATIONS, NORMS, _options("loss")):
        yield (f"model={model}", f"model.activation={activation}", f"model.norm={norm}", f"loss={loss}")
    for name, size in SIZES.items():
        images = ("dataset=arrays", f"dataset.path=images{size}.npz", "dataset.limit=1000")
        yield ("model=torchvision", f"model.name={name}", *images)


def _options(group: str) -> list[str]:
    from dlrun.config.compose import builtin_conf

    return sorted(file.stem for file in (builtin_conf() / group).glob("*.yaml"))


def drawn(count: int) -> Iterator[tuple[str, ...]]:
    """The overrides of setups drawn at random, the same ones each time."""
    from dlrun.models.layers import ACTIVATIONS, NORMS

    draw = random.Random(24)
    smooth = [a for a in ACTIVATIONS if a not in ("sigmoid", "tanh", "softsign")]
    for _ in range(count):
        data = draw.choices(DATA, DATA_SHARES)[0]
        models = MODELS if data[0] == "dataset=digits" else PHOTO_MODELS
        model = draw.choices(list(models), list(models.values()))[0].split()
        if model[0] != "model=torchvision" and draw.random() < 0.4:
            norm = draw.choice(NORMS)
            # deep networks without a norm learn with few activations and rates, which is no alarm
            model += [f"model.activation={draw.choice(smooth)}", f"model.norm={norm}"]
        words = [*model, *data]
        words += [f"optimizer={draw.choice(_options('optimizer'))}", f"scheduler={draw.choice(_options('scheduler'))}"]
        loss = draw.choice(("cross_entropy", "cross_entropy", "focal", "hinge"))
        regularizers = [r for r in REGULARIZERS if loss == "cross_entropy" or "smoothing" not in r]
        words += [f"loss={loss}", *draw.choice(regularizers).split(), *draw.choice(AUGMENTS).split()]
        if draw.random() < 0.2 and data == ("dataset=digits",):
            words += ["objective=distill", f"objective.teacher={TEACHER}"]
        if draw.random() < 0.3:
            words += [f"trainer.batch_size={draw.choice((16, 64, 128))}"]
        yield tuple(words)


def teach() -> None:
    """Train the teacher of the setups that distil."""
    words = ["train", "check=none", "trainer.epochs=3", "trainer.report=false", f"run.dir={TEACHER}", *THREADS]
    subprocess.run([sys.executable, "-m", "dlrun", *words], check=True, capture_output=True)


def paint(folder: Path, sizes: Collection[int] = frozenset(SIZES.values())) -> None:
    """Write images of ten patterns under noise, in the sizes that a campaign needs."""
    for size in sizes:
        draw = np.random.default_rng(0)
        y = np.arange(2000) % 10
        patterns = draw.integers(60, 196, (10, size, size, 3))
        x = np.clip(patterns[y] + draw.normal(0, 40, (2000, size, size, 3)), 0, 255).astype(np.uint8)
        np.savez(folder / f"images{size}.npz", x=x, y=y)
        # smooth ones, as photos are: neighbouring pixels of noise differ, which a check reports
        x = sum(_enlarged(patterns, size) for patterns in (draw.integers(78, 178, (10, 3, 4, 4))[y], *_details(draw)))
        x = np.clip(x + draw.normal(0, 4, x.shape), 0, 255).astype(np.uint8)
        np.savez(folder / f"smooth{size}.npz", x=x, y=y)


def _details(draw: np.random.Generator) -> list[np.ndarray]:
    """What differs between images of a class, at three scales."""
    return [draw.normal(0, spread, (2000, 3, side, side)) for side, spread in ((4, 30), (8, 25), (16, 15))]


def _enlarged(patterns: np.ndarray, size: int) -> np.ndarray:
    grid = torch.tensor(patterns, dtype=torch.float32)
    return F.interpolate(grid, size=(size, size), mode="bicubic").permute(0, 2, 3, 1).numpy()


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
        asked_for = r.check == "lint_activation" and any(w in words for w in SATURATING)
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
        for i, (x, y, index) in enumerate(exp.train.epoch(epoch)):
            exp.scheduler.set(epoch + i / len(exp.train))
            loop.step(exp, Batch(x, y, index))
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
    alarms = [r for r in sound if r["fail"] or r["warn"]]
    lines.append(f"suites whose alarms are all true: {sum(map(_true, alarms))} of {len(alarms)}")
    lines.append(f"by check: {dict(Counter((c, s) for r in sound for s in ('fail', 'warn', 'skip') for c in r[s]))}")
    lines += [f"  {r['setup']} seed={r['seed']} {r.get('commit', '')}: {r['fail'] | r['warn']}" for r in alarms]
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
    parser.add_argument("--drawn", type=int, default=0, help="draw so many setups from all of conf/")
    parser.add_argument("--again", action="store_true", help="repeat suites with an alarm of another commit")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no suite after so long")
    parser.add_argument("--processor", action="store_true", help="count processor time, beside other programs")
    given = parser.parse_args()
    if given.processor:
        time.perf_counter = time.process_time  # before the checks take it
    log = given.log.absolute()
    every = list(drawn(given.drawn)) if given.drawn else list(setups())
    planned = [(w, seed) for w in every for seed in range(1, given.seeds + 1) if given.only in " ".join(w)]
    planned.sort(key=lambda one: hashlib.sha256(str(one).encode()).digest())
    part, parts = map(int, given.part.split("/"))
    deadline = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        paint(Path(folder))
        if given.drawn:
            teach()
        rows = _read(log)
        if given.again:
            rows = [r for r in rows if r["commit"] == commit() or not (r["fail"] or r["warn"])]
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
            if given.again or not _settled(_read(log), row["setup"], seed):  # another process may have run it as well
                with log.open("a") as file:
                    file.write(json.dumps({k: v for k, v in row.items() if v != {} and v is not True}) + "\n")
            rows = [*rows, row] if given.again else _read(log)
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


def _true(row: dict[str, Any]) -> bool:
    """Whether every alarm of a suite is true of its setup."""
    known = [(check, word) for check, word, _ in TRUE]
    return all(any(c == check and word in row["setup"] for check, word in known) for c in row["fail"] | row["warn"])


def _settled(rows: list[dict[str, Any]], setup: str, seed: int) -> bool:
    """Whether the log has this suite, or one that found that its setup does not learn."""
    return any(r["setup"] == setup and (r["seed"] == seed or not r["learns"]) for r in rows)


def _read(log: Path) -> list[dict[str, Any]]:
    nothing: dict[str, Any] = {"fail": {}, "warn": {}, "skip": {}, "learns": True}
    lines = log.read_text().splitlines() if log.exists() else []
    rows = [{**nothing, **json.loads(line)} for line in lines]
    return list({(r["setup"], r["seed"]): r for r in rows}.values())


if __name__ == "__main__":
    main()
