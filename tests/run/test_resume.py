"""A run that is killed and resumed ends bit for bit like one that was not (real processes, real SIGKILL)."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.errors import UserError
from dlrun.folders.run import claim, reopen
from support.composed import composed

COMMON = (
    "check=none", "model.width=4", "regularizer=dropout", "regularizer.l2=1e-3", "augment=crop_flip", "augment.pad=1",
    "optimizer=sgd", "optimizer.lr=0.05", "trainer.batch_size=16", "trainer.threads=1", "trainer.epochs=10",
    "scheduler=warm_restarts", "trainer.report=false",
)  # fmt: skip


def train(cfg: Any, folder: str, die_at_write: int | None) -> None:
    """Child: start or resume the run; with `die_at_write`, SIGKILL ourselves at that write, fsync or rename."""
    if die_at_write is not None:
        _kill_at(die_at_write)
    from dlrun.run.execute import execute

    if (Path(folder) / "config.yaml").exists():
        os._exit(execute(cfg, reopen(folder), resuming=True))
    os._exit(execute(cfg, claim(folder, "test")))


def _kill_at(count: int) -> None:
    calls = 0

    def counting(function: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **more)

        return call

    for name in ("fsync", "replace", "write"):
        setattr(os, name, counting(getattr(os, name)))

    class InTwo:
        """A file whose writes come in two halves, with a moment between them to be killed in."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> InTwo:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            counting(lambda: None)()
            self.file.write(data[len(data) // 2 :])

    real = os.fdopen

    def fdopen(handle: int, mode: str = "r", *args: Any, **more: Any) -> Any:
        file = real(handle, mode, *args, **more)
        return InTwo(file) if mode == "wb" else file

    os.fdopen = fdopen  # type: ignore[assignment]


@pytest.fixture(scope="module")
def processes() -> Any:
    # a server that has imported torch and never used it: a fresh process costs milliseconds, not seconds
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "torch._dynamo",
            "sklearn.datasets",
            "dlrun.run.execute",
            "dlrun.training.loop",
            "dlrun.data.datasets",
            "dlrun.models.cnn",
        ]
    )
    return context


def run_once(processes: Any, cfg: Any, folder: Path, *, after: float | None = None, at_write: int | None = None) -> int:
    child = processes.Process(target=train, args=(cfg, str(folder), at_write))
    child.start()
    child.join(after)
    if child.exitcode is None:
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    return int(child.exitcode)


def photos(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for label in ("ant", "bee", "cat"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                shade = {"ant": 60, "bee": 120, "cat": 180}[label]
                pixels = draw.integers(shade - 50, shade + 50, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def epochs(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        timed = ("train_seconds", "eval_seconds", "samples_per_second", "memory_mb")
        return [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(file)]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize(
    ("source", "count"), [("memory", 3), *(pytest.param(s, 20, marks=pytest.mark.slow) for s in ("memory", "streamed"))]
)
def test_a_run_killed_many_times_ends_bit_for_bit_the_same(
    tmp_path: Path, processes: Any, source: str, count: int
) -> None:
    data = ("dataset.limit=200", "trainer.ema=0.9")
    if source == "streamed":
        root = photos(tmp_path / "photos")
        data = ("dataset=image_folder", f"dataset.root={root}", "dataset.memory_gb=0.0")
    cfg = composed(*COMMON, "trainer.keep=top3", *data)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    started = time.monotonic()
    assert run_once(processes, cfg, straight) == 0
    whole = time.monotonic() - started

    draw, kills, attempts = random.Random(7), 0, 0
    while kills < count:
        attempts += 1
        assert attempts < 10 * count
        how = {"at_write": draw.randint(1, 90)} if draw.random() < 0.5 else {"after": draw.uniform(0.3, 0.8) * whole}
        code = run_once(processes, cfg, broken, **how)
        if code == 0:
            # the run got to its end before this kill came: the kills so far count, and it starts over
            broken.rename(tmp_path / f"done{attempts}")
            continue
        assert code == -signal.SIGKILL
        kills += 1
    assert run_once(processes, cfg, broken) == 0

    for done in [broken, *tmp_path.glob("done*")]:
        assert epochs(done) == epochs(straight)
        names = {path.name for path in (straight / "checkpoints").iterdir()}
        assert len(names) == 5
        for name in names:
            ours, theirs = (
                {k: v for k, v in torch.load(d / "checkpoints" / name, weights_only=True).items() if k != "seconds"}
                for d in (done, straight)
            )
            assert same(ours, theirs), name
        ours, theirs = (dict(np.load(d / "predictions.npz")) for d in (done, straight))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
        assert not list(done.rglob("*.tmp"))


@pytest.mark.slow
def test_a_run_with_every_augmentation_resumes_bit_for_bit_the_same(tmp_path: Path, processes: Any) -> None:
    keys = "rotate=15 shift=0.1 shear=10 scale=0.1 skew=0.1 brightness=0.2 contrast=0.2 saturation=0.2 hue=0.1 blur=1"
    on = [f"augment.{key}" for key in f"{keys} noise=0.05 cutout=3 randaugment=2 padding=reflect".split()]
    cfg = composed(*COMMON, *on, "dataset.limit=80", "trainer.epochs=3")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_once(processes, cfg, straight) == 0
    assert run_once(processes, cfg, broken, at_write=45) == -signal.SIGKILL
    assert 0 < len(epochs(broken)) < 3
    assert run_once(processes, cfg, broken) == 0
    assert epochs(broken) == epochs(straight)
    ours, theirs = (torch.load(d / "checkpoints" / "last.pt", weights_only=True) for d in (broken, straight))
    assert same(ours["model"], theirs["model"])


@pytest.mark.parametrize("step", [17, pytest.param(3, marks=pytest.mark.slow)])
def test_every_kill_inside_a_save_leaves_a_usable_checkpoint(tmp_path: Path, processes: Any, step: int) -> None:
    from dlrun.training import checkpoint

    cfg = composed(*COMMON, "dataset.limit=40", "trainer.epochs=3")
    seen = set()
    for at_write in range(1, 200, step):
        folder = tmp_path / str(at_write)
        code = run_once(processes, cfg, folder, at_write=at_write)
        last = folder / "checkpoints" / "last.pt"
        if last.exists():
            seen.add(checkpoint.load(last)["epoch"])
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert {1, 2, 3} <= seen


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"not a checkpoint", None])
def test_a_damaged_or_foreign_checkpoint_is_named_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    from dlrun.training import checkpoint

    path = tmp_path / "last.pt"
    if content is None:
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


def test_a_checkpoint_that_carries_code_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlrun.training import checkpoint

    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "last.pt")
    with pytest.raises(UserError, match=r"last\.pt: not a readable dlrun checkpoint"):
        checkpoint.load(Path("last.pt"))
    assert not Path("pwned").exists()
