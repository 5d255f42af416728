"""`dlrun compare --group-seeds`: settings over seeds, with statistics that a hand can follow (S9)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun import vocabulary
from dlrun.analysis import compare, seed_groups
from support.commands import Outcome
from support.stored import config, result, write_run

THREE = {"1": 0.90, "2": 0.92, "3": 0.94}
OTHER = {"1": 0.88, "2": 0.91, "3": 0.90}


def runs(*given: tuple[dict[str, Any], float | None], **more: Any) -> None:
    """Write a run for each config and accuracy below outputs."""
    start = len(list(Path("outputs").glob("*")))
    for number, (cfg, acc) in enumerate(given, start):
        write_run(Path(f"outputs/{number:04d}"), **result(cfg, acc, **more))


def rows() -> list[dict[str, Any]]:
    return seed_groups.grouped(compare.read(["outputs"]))


def over_seeds(scores: dict[str, float], **changes: Any) -> list[tuple[dict[str, Any], float | None]]:
    return [(config(seed=int(seed), **changes), acc) for seed, acc in scores.items()]


def test_mean_and_sample_deviation(here: Path) -> None:
    runs(*over_seeds(OTHER, optimizer__lr=0.1), *over_seeds(THREE))
    best, other = rows()
    assert list(best)[:3] == ["optimizer.lr", "n", "seeds"]
    assert (best["optimizer.lr"], best["n"], best["seeds"]) == ("0.001", 3, "[1, 2, 3]")
    assert best["val_acc_mean"] == pytest.approx(0.92)
    assert best["val_acc_std"] == pytest.approx(0.02)  # with n − 1; with n it were 0.0163
    assert best["val_loss_mean"] == pytest.approx(0.08)
    assert other["val_acc_mean"] == pytest.approx(2.69 / 3)
    assert json.loads(best["runs"]) == ["outputs/0003", "outputs/0004", "outputs/0005"]
    assert (best["verdict"], best["p"]) == ("best", "")
    # differences 0.02, 0.01, 0.04: t = √7 with two degrees of freedom, p = 1 − t / √(t² + 2)
    assert other["test"] == "paired"
    assert other["p"] == pytest.approx(1 - math.sqrt(7) / 3)
    assert other["verdict"] == "within noise"


def test_welch_where_the_seeds_differ() -> None:
    from scipy.stats import ttest_ind

    other = {"4": 0.80, "5": 0.85, "6": 0.84, "7": 0.83}
    p, name = seed_groups.difference(THREE, other)
    assert name == "welch"
    assert p == pytest.approx(ttest_ind(list(THREE.values()), list(other.values()), equal_var=False).pvalue)
    # by hand: variances 4e-4/3 and 14e-4/3/4, t = 0.09/√2.5e-4
    assert p == pytest.approx(0.0031, abs=2e-4)


def test_paired_as_scipy_has_it() -> None:
    from scipy.stats import ttest_rel

    p, name = seed_groups.difference(THREE, OTHER)
    assert name == "paired"
    assert p == pytest.approx(ttest_rel(list(THREE.values()), list(OTHER.values())).pvalue)


def test_no_spread_is_no_evidence() -> None:
    assert math.isnan(seed_groups.difference({"1": 0.5, "2": 0.5}, {"1": 0.4, "2": 0.4})[0])
    assert math.isnan(seed_groups.difference({"1": 0.5, "2": 0.5}, {"3": 0.4, "4": 0.4})[0])
    assert seed_groups.difference({"1": 0.5, "2": 0.6}, {"1": 0.5, "2": 0.6})[0] == 1.0


def test_holm() -> None:
    # the classical steps: 4 × 0.005, 3 × 0.01, 2 × 0.03, then never below the one before
    assert seed_groups.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert seed_groups.holm([0.9, 0.8]) == [1.0, 1.0]
    assert seed_groups.holm([]) == []


def test_many_comparisons_cost_certainty(here: Path) -> None:
    runs(*over_seeds(THREE))
    for k in range(4):
        # differences 0.18, 0.21, 0.20 from the best: p = 0.0020 alone
        runs(*over_seeds({"1": 0.72, "2": 0.71, "3": 0.74}, optimizer__lr=0.1 + k))
    found = rows()
    alone = seed_groups.difference(THREE, {"1": 0.72, "2": 0.71, "3": 0.74})[0]
    assert [row["p"] for row in found[1:]] == pytest.approx([4 * alone] * 4)
    assert {row["verdict"] for row in found[1:]} == {"worse"}
    notes = " ".join(seed_groups.note(found, "val_acc"))
    assert "Holm" in notes
    assert " 4 comparisons" in notes
    assert "3 seeds" in notes


def test_one_seed_has_no_noise_estimate(here: Path) -> None:
    runs((config(optimizer__lr=0.5), 0.99), *over_seeds(THREE), *over_seeds(OTHER, optimizer__lr=0.1))
    found = rows()
    assert [row["n"] for row in found] == [1, 3, 3]
    assert [row["verdict"].split()[:2] for row in found] == [["one", "seed:"], ["best", "of"], ["within", "noise"]]
    assert (found[0]["val_acc_std"], found[0]["p"]) == ("", "")
    assert "'seed=range(1,6)'" in seed_groups.note(found, "val_acc")[-1]


def test_two_seeds_cannot_tell(here: Path) -> None:
    runs(*over_seeds({"1": 0.9, "2": 0.8}), *over_seeds({"1": 0.5, "2": 0.2}, optimizer__lr=0.1))
    best, second = [row["verdict"] for row in rows()]
    assert best == "best"
    assert second.startswith("two seeds: ")


def test_what_does_not_change_learning_makes_no_other_setting(here: Path) -> None:
    base = config()
    base["model"] = {"seed": 1}
    apart = config(seed=2, run__dir="elsewhere", check__enabled=False, choices__check="none", choices__experiment="x")
    apart["model"] = {"seed": 2}  # follows the seed
    apart["trainer"]["threads"] = 1
    apart["search"] = {"trials": 7}
    runs((base, 0.5), (apart, 0.7))
    (row,) = rows()
    assert (row["n"], row["val_acc_mean"], row["verdict"]) == (2, pytest.approx(0.6), "best")
    assert list(row)[:2] == ["n", "seeds"]


def test_repeats_of_a_seed_are_one_piece_of_evidence(here: Path) -> None:
    runs((config(), 0.5), (config(), 0.5), (config(), 0.5), (config(seed=2), 0.7))
    (row,) = rows()
    assert (row["n"], row["val_acc_mean"]) == (2, pytest.approx(0.6))
    assert row["val_acc_std"] == pytest.approx(0.2 / math.sqrt(2))


def test_only_completed_runs_count_and_the_rest_is_said(here: Path) -> None:
    runs(*over_seeds(THREE))
    runs((config(seed=4), 0.1), status="diverged")
    runs((config(seed=5), 0.1), status="failed")
    runs((config(seed=1, optimizer__lr=9.0), None), status="diverged")
    first, second = rows()
    assert (first["n"], first["rest"], first["val_acc_mean"]) == (3, "1 diverged 1 failed", pytest.approx(0.92))
    assert (second["n"], second["verdict"], second["rest"]) == (0, "no score", "1 diverged")


def test_by_loss_where_all_watch_one(here: Path) -> None:
    for seed in (1, 2):
        watched = config(seed=seed, trainer__monitor="val_loss")
        runs((watched, 0.9), val_loss=0.5 + 0.01 * seed)
        runs((config(seed=seed, trainer__monitor="val_loss", optimizer__lr=1.0), 0.8), val_loss=0.2 + 0.03 * seed)
    assert [row["optimizer.lr"] for row in rows()] == ["1.0", "0.001"]


def test_on_screen(here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    runs(*over_seeds(THREE), *over_seeds(OTHER, optimizer__lr=0.1))
    lines = dlrun("compare", "--group-seeds").out.splitlines()
    assert lines[0].split() == ["optimizer.lr", "n", *vocabulary.SCORES, "verdict", "p"]
    assert lines[1].startswith("       0.001  3  0.9200 ± 0.0200")
    assert lines[1].endswith("best")
    assert lines[2].endswith("within noise  0.12")
    assert "±" in lines[3]
    assert re.fullmatch(r"6 runs in 2 settings; .* outputs/compare\.csv", lines[-1])
    table = Path("outputs/compare.csv").read_text().splitlines()
    assert table[0].startswith("optimizer.lr,n,seeds,val_acc_mean,val_acc_std,")
    assert len(table) == 3
    worst_first = dlrun("compare", "--group-seeds", "--sort=-val_acc").out.splitlines()
    assert worst_first[1].split()[0] == "0.1"
    found = json.loads(dlrun("compare", "--group-seeds", "--json").out)
    assert [(row["optimizer.lr"], row["seeds"]) for row in found] == [(0.001, [1, 2, 3]), (0.1, [1, 2, 3])]
    assert found[1]["runs"] == ["outputs/0003", "outputs/0004", "outputs/0005"]
