"""`dlrun compare` in any width: one line per run, scores in sight, and a decision at the end (S10)."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlrun.analysis import compare, deciding, scores
from dlrun.config.compose import builtin_conf
from support.commands import Outcome
from support.stored import config, result, write, write_run
from support.terminal import run

COUNTS = {"data": {"val": 60, "test": 200}, "test_samples": 200}


def forty(root: Path) -> None:
    """Forty runs as they mix after a week: sweeps, single runs, long names, failed, refused and interrupted ones."""
    rng = random.Random(0)
    for k in range(40):
        lr, model = 10 ** rng.uniform(-5, 0), rng.choice(("cnn", "resnet20", "a_model_of_my_own_with_a_long_name"))
        cfg = config(optimizer__lr=lr, choices__model=model, seed=k, model__width=rng.choice((8, 16)))
        typed = [f"optimizer.lr={lr}", f"model={model}", f"seed={k}"]
        path = root / f"runs/20261127-0000{k:02d}-my_photos_of_the_garden-{model}-{k:04x}"
        if k < 20:
            path = root / f"sweeps/20261127-000000-my_photos-{k % 2:04x}/{k:04d}"
        more: dict[str, Any] = {"typed": typed, "changed": {}, "verdicts": [], **COUNTS}
        if k % 10 == 3:
            cfg["widht"] = k
            refused = {"config": cfg, "status": "failed", "reason": f"widht={k}: did you mean width?", **more}
            write_run(path, **{**refused, "typed": [*typed, "+widht=3"]})
        elif k % 10 == 7:
            write_run(path, **result(cfg, 0.7, status="running", best_epoch=2, **more))
            write(path / "metrics.csv", "epoch,val_loss,val_acc\n1,0.9,0.1\n2,0.2,0.8\n3,0.3,0.7\n")
        else:
            write_run(path, **result(cfg, round(60 * rng.random()) / 60, best_epoch=3, **more))


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_forty_mixed_runs_fit(
    width: int, here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    forty(here / "outputs")
    monkeypatch.setenv("COLUMNS", str(width))
    lines = dlrun("compare").out.splitlines()
    assert lines[0].split()[:4] == ["run", "status", "val_acc", "test_acc"]
    rows = [line for line in lines if " completed " in line]
    assert len(rows) == 32
    for line in rows:
        assert re.search(r" [01]\.\d{4} ±0\.\d{3} +-?[01]\.\d{4}", line), line
    assert max(map(len, lines[:-2])) <= width  # the last two are to be copied
    assert len({line.split()[0] for line in rows}) == 32
    assert "widht" not in lines[0]
    assert "scheduler" not in lines[0]
    assert {"model", "optimizer.lr", "seed"} & set(lines[0].split())
    assert "model.width" not in lines[0]  # differs, but nobody typed it
    footer = "\n".join(lines[33:])
    assert "failed: " in footer
    assert "interrupted: " in footer
    assert "val_acc 0.800 (48 of 60) in epoch 2" in footer
    assert any(line.startswith("best: ") for line in lines)
    with open("outputs/compare.csv", newline="") as file:
        stored = list(csv.DictReader(file))
    assert len(stored) == 40
    assert {"widht", "model.width", "optimizer.lr"} <= stored[0].keys()


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_forty_mixed_runs_fit_in_a_terminal(width: int, tmp_path: Path) -> None:
    forty(tmp_path / "outputs")
    seen = run(width, tmp_path, "compare")
    assert seen.code == 0, seen.raw
    lines = seen.lines
    assert max(len(line) for line in lines if not line.startswith(("best: ", "next: "))) <= width
    rows = [line for line in lines if " completed " in line]
    assert len(rows) == 32
    for line in rows:
        assert re.search(r" [01]\.\d{4} ±0\.\d{3} +-?[01]\.\d{4}", line), line
    assert rows[0].split()[0] == next(line for line in lines if line.startswith("best: ")).split()[1].rstrip(",")
    assert len([line for line in lines if "failed: " in line]) == 4
    assert seen.colours


@pytest.mark.parametrize("width", [80, 160])
def test_failed_runs_with_one_reason_are_one_line_with_their_number(
    width: int, here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    write_run(here / "outputs/runs/good", **result(config(), 0.5))
    for k in range(32):
        reason = "OSError: disk full" if k < 30 else f"ValueError: number {k}"
        cfg = config(optimizer__lr=0.1 + k)
        write_run(here / f"outputs/runs/a_long_name_of_a_run_{k:02d}", config=cfg, status="failed", reason=reason)
    failed = [line for line in dlrun("compare").out.splitlines() if "failed: " in line]
    assert len(failed) == 3
    assert failed[0].startswith("30 failed: ")
    assert re.search(r" and (27|28|29) more: OSError: disk full$", failed[0])
    assert [line.split(": ", 1)[1][-9:] for line in failed[1:]] == ["number 30", "number 31"]
    assert max(map(len, failed)) <= width


def test_a_key_that_refers_to_another_never_stands_for_it(here: Path) -> None:
    for k, epochs in enumerate((3, 9)):
        cfg = config(trainer__epochs=epochs, scheduler__epochs=epochs, regularizer__dropout=k / 10)
        cfg = {"scheduler": cfg.pop("scheduler"), "model": {"dropout": k / 10}, **cfg}  # in the order of a config
        write_run(here / f"s/{k}", **result(cfg, 0.5))
    entries = compare.read(["s"])
    assert compare.varying([e.config for e in entries]) == ["trainer.epochs", "regularizer.dropout"]


def test_every_reference_in_the_options_is_known() -> None:
    found = {}
    for file in builtin_conf().glob("*/*.yaml"):
        if file.parent.name in ("hydra", "experiment"):
            continue
        for key, value in (yaml.safe_load(file.read_text()) or {}).items():
            if isinstance(value, str) and (match := re.fullmatch(r"\$\{([\w.]+)\}", value)):
                found[f"{file.parent.name}.{key}"] = match[1]
    assert found == compare.DERIVED


def test_scores_of_an_interrupted_run_are_those_of_its_best_epoch(here: Path) -> None:
    path = write_run(here / "r", **result(config(), 0.7, status="running", best_epoch=2))
    write(path / "metrics.csv", "epoch,val_loss,val_acc\n1,0.9,0.1\n2,0.2,0.8\n3,0.3,0.7\n")
    (row,) = compare.rows(["r"])
    assert (row["status"], row["val_acc"], row["val_loss"]) == ("interrupted", 0.8, 0.2)


def names(outcome: Outcome) -> list[str]:
    assert outcome.code == 0, outcome.err
    return [Path(row["run"]).name for row in json.loads(outcome.out)]


def test_selecting(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for k, (acc, model, tags) in enumerate(((0.9, "cnn", ["base"]), (0.8, "mlp", ["base", "x"]), (0.6, "mlp", []))):
        more = {"tags": tags, "note": f"note {k}", "started": f"2026-01-0{9 - k}T00:00:00+0000"}
        write_run(here / f"outputs/{k}", **result(config(choices__model=model), acc, **more))
    write_run(here / "outputs/3", **result(config(), status="failed", reason="x"))
    cases: list[tuple[list[str], str]] = [
        (["--filter", "val_acc>0.7 and model=mlp"], "1"),
        (["--filter", "val_acc>=0.9 or model=mlp"], "012"),
        (["--filter", "optimizer.lr=1e-3 and val_acc<0.85"], "12"),
        (["--filter", "status!=failed"], "012"),
        (["--where", "tag=base"], "01"),
        (["--where", "tag=base", "--where", "tag=x"], "1"),
        (["--where", "note=te 2"], "2"),
        (["--status", "failed"], "3"),
        (["--last", "1", "--status", "completed"], "0"),
    ]
    for words, expected in cases:
        assert "".join(names(dlrun("compare", *words, "--json"))) == expected, words
    for words, wanted in (
        (["--filter", "val_acc"], "--filter"),
        (["--filter", "optimiser.lr>1"], "optimizer.lr"),
        (["--filter", "lr>1"], "optimizer.lr"),
        (["--status", "faild"], "failed"),
        (["--columns", "val_ac"], "val_acc"),
        (["--last", "0"], "--last 0"),
        (["--where", "x"], "tag=baseline"),
    ):
        refused = dlrun("compare", *words)
        assert (refused.code, refused.err.count("\n")) == (2, 1), words
        assert wanted in refused.err
    chosen = dlrun("compare", "--columns", "test_loss,seed").out.splitlines()
    assert chosen[0].split() == ["run", "test_loss", "seed"]
    assert dlrun("compare", "--status", "failed").out.splitlines()[1].split()[:2] == ["outputs/3", "failed"]


def decided(*runs: dict[str, Any]) -> list[str]:
    for k, each in enumerate(runs):
        write_run(Path(f"s/{k:04d}"), **each)
    return deciding.decision(compare.read(["s"]), "val_acc", lower=False)


def test_a_lead_within_the_noise_of_few_images_asks_for_seeds(here: Path) -> None:
    typed = ["model.width=4", "run.dir=x", "seed=3", "optimizer.lr=0.1"]
    best, following = decided(
        result(config(optimizer__lr=0.1), 0.8, typed=typed, **COUNTS),
        result(config(optimizer__lr=0.2), 0.75, typed=[], **COUNTS),
    )
    assert best.startswith("best: s/0000, val_acc 0.800 (48 of 60); leads s/0001 by 0.0500: within ")
    assert " 0.1496 " in best  # √((0.8 − 0.6822)² + (0.8422 − 0.75)²), the ends of their intervals
    command = "dlrun train -m model.width=4 optimizer.lr=0.1 'seed=range(1,6)'"
    assert command in following


def test_a_clear_lead_is_used(here: Path) -> None:
    best, following = decided(
        result(config(optimizer__lr=0.1), 0.9, **COUNTS), result(config(optimizer__lr=0.2), 0.3, **COUNTS)
    )
    assert "more than" in best
    assert "dlrun predict s/0000 " in following


@pytest.mark.parametrize(("apart", "words"), [(0.3, "more than"), (0.0, "within")])
def test_settings_with_seeds_are_compared_by_their_means(here: Path, apart: float, words: str) -> None:
    runs = [(0.1, s, a) for s, a in ((1, 0.80), (2, 0.82), (3, 0.81))]
    runs += [(0.2, s, a - apart) for s, a in ((1, 0.81), (2, 0.79), (3, 0.80))]
    best, _ = decided(*(result(config(optimizer__lr=lr, seed=seed), acc) for lr, seed, acc in runs))
    assert "0.8100 ± 0.0100" in best
    assert words in best


def test_nothing_completed_decides_nothing(here: Path) -> None:
    assert len(decided(result(config(), status="failed"))) == 1


def test_names_lose_what_they_share_and_stay_apart() -> None:
    date = "20261127-101112"
    trials = [f"outputs/sweeps/{date}-s-ab12/000{k}" for k in (1, 2)]
    assert scores.short_names(trials) == ["0001", "0002"]
    runs = [f"outputs/runs/{date}-digits-{model}" for model in ("cnn-aaaa", "cnn-bbbb", "mlp-cccc")]
    assert scores.short_names(runs) == ["cnn-aaaa", "cnn-bbbb", "mlp-cccc"]
    assert scores.short_names(["a/x", "b/x"]) == ["a/x", "b/x"]
    assert scores.short_names(["outputs/runs/alone"]) == ["alone"]
    assert scores.short_names([f"r/{date}-x", "r/20261128-101112-x"]) == [f"{date}-x", "20261128-101112-x"]
