"""`dlrun ensemble` on stored predictions: hand-made runs, real files, no torch."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn import metrics

from dlrun.analysis.scores import margin
from dlrun.ensembles.members import apart
from dlrun.ensembles.votes import COLDEST, FEWEST, HOTTEST
from support.commands import Outcome, without_torch
from support.members import member
from support.stored import write_run


def table(folder: Path, name: str = "table") -> list[dict[str, str]]:
    with open(folder / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def picked(folder: Path) -> dict[str, int]:
    found = yaml.safe_load((folder / "ensemble.yaml").read_text())["members"]
    return {Path(m["run"]).name: m["weight"] for m in found}


@pytest.fixture
def five(here: Path) -> Path:
    for k in range(5):
        member(here / "sweep" / f"{k:04d}", seed=k, skill=0.6 + 0.1 * k)
    return here / "sweep"


def test_every_vote_stands_beside_best_and_mean(five: Path, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("ensemble", "sweep", "--out", "e")
    assert done.code == 0, done.err
    rows = table(Path("e"))
    assert [row["vote"] for row in rows] == [
        *("best member", "mean member", "majority", "confidence", "mean_probability", "mean_logit"),
    ]
    mean, vote = rows[1], rows[4]
    assert float(vote["test_acc"]) > float(mean["test_acc"])
    each = [float(row["test_acc"]) for row in table(Path("e"), "members")]
    assert float(mean["test_acc"]) == pytest.approx(np.mean(each))
    # milliseconds: the median epoch took 0.12 s for 60 images
    assert float(rows[0]["ms_per_image"]) == pytest.approx(2.0)
    assert float(vote["ms_per_image"]) == pytest.approx(10.0)
    assert (rows[0]["parameters"], vote["parameters"]) == ("1000", "5000")
    for row in rows:
        assert row["vote"] in done.out
    with np.load("e/predictions.npz", allow_pickle=False) as stored:
        found = dict(stored)
        right = (found["test_logits"].argmax(1) == found["test_labels"]).mean()
        np.testing.assert_allclose(np.exp(found["val_logits"]).sum(1), 1, rtol=1e-5)
    assert right == float(vote["test_acc"])
    result = json.loads(Path("e/result.json").read_text())
    assert result["test_acc"] == float(vote["test_acc"])
    y, p = found["test_labels"], found["test_logits"].argmax(1)
    f1 = metrics.f1_score(y, p, average="macro")
    assert result["test_macro_f1"] == float(vote["test_macro_f1"]) == pytest.approx(f1)
    shares = np.exp(found["test_logits"].astype(float))
    area = metrics.roc_auc_score(y, shares / shares.sum(1, keepdims=True), multi_class="ovr")
    assert result["test_auc"] == pytest.approx(area)
    assert (rows[0]["test_auc"] != "", rows[1]["test_auc"]) == (True, "")  # the mean member has none
    low, high = result["bootstrap"]["test_acc"]
    assert low <= result["test_acc"] <= high
    assert [row["class"] for row in table(Path("e"), "per_class")] == ["ant", "bee", "cow"]


@pytest.fixture
def five_larger(here: Path) -> Path:
    """With enough errors on validation for a temperature."""
    for k in range(5):
        member(here / "sweep" / f"{k:04d}", seed=k, skill=0.2 + 0.1 * k, count=300)
    return here / "sweep"


@pytest.mark.parametrize("how", [("--top", "3"), ("--greedy",), ()])
def test_selection_never_sees_the_test_split(
    how: tuple[str, ...], five_larger: Path, dlrun: Callable[..., Outcome]
) -> None:
    assert dlrun("ensemble", "sweep", *how, "--temperature", "--out", "before").code == 0
    draw = np.random.default_rng(5)
    wrong = draw.integers(0, 3, 300)
    for path in five_larger.iterdir():
        with np.load(path / "predictions.npz") as file:
            arrays = dict(file)
        arrays["test_labels"] = wrong
        arrays["test_logits"] = draw.normal(size=(300, 3)).astype(np.float32)
        np.savez(path / "predictions.npz", **arrays)
    assert dlrun("ensemble", "sweep", *how, "--temperature", "--out", "after").code == 0
    before, after = (yaml.safe_load(Path(f"{name}/ensemble.yaml").read_text()) for name in ("before", "after"))
    assert before == after  # members, weights, temperature
    assert [r["val_acc"] for r in table(Path("before"))] == [r["val_acc"] for r in table(Path("after"))]
    assert [r["test_acc"] for r in table(Path("before"))] != [r["test_acc"] for r in table(Path("after"))]


def test_top_takes_the_best_on_validation(five: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("ensemble", "sweep", "--out", "all").code == 0
    assert dlrun("ensemble", "sweep", "--top", "2", "--out", "e").code == 0
    ranked = sorted(table(Path("all"), "members"), key=lambda r: (-float(r["val_acc"]), float(r["val_loss"])))
    assert list(picked(Path("e"))) == [Path(r["member"]).name for r in ranked[:2]]


def test_accuracy_by_number_of_members(five: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("ensemble", "sweep", "--out", "e").code == 0
    rows = table(Path("e"), "sizes")
    assert [row["members"] for row in rows] == ["1", "2", "3", "4", "5"]
    votes = table(Path("e"))
    assert float(rows[0]["test_acc_best_first"]) == float(votes[0]["test_acc"])
    assert float(rows[-1]["test_acc_best_first"]) == float(votes[4]["test_acc"])
    assert float(rows[-1]["test_acc_std"]) < 0.02  # all members, in any order (except for rounded ties)
    assert Path("e/plots/members_val.png").read_bytes()[:4] == b"\x89PNG"
    assert Path("e/report.html").exists()


def test_temperature_lowers_the_validation_loss_and_moves_no_class(
    five_larger: Path, dlrun: Callable[..., Outcome]
) -> None:
    assert dlrun("ensemble", "sweep", "--out", "cold").code == 0
    assert dlrun("ensemble", "sweep", "--temperature", "--out", "warm").code == 0
    for cold, warm in zip(table(Path("cold")), table(Path("warm")), strict=True):
        assert float(warm["val_loss"]) <= float(cold["val_loss"]) + 1e-9
        assert warm["test_acc"] == cold["test_acc"]
    assert yaml.safe_load(Path("warm/ensemble.yaml").read_text())["temperature"] != 1.0


def test_a_temperature_at_the_edge_of_its_range_warns() -> None:
    from dlrun.commands.ensemble import _heat

    assert _heat("majority", 1.234, 12) == "majority 1.23"
    assert "1.23" not in _heat("majority", 1.234, 9)
    for edge in (COLDEST, HOTTEST):
        shown, _, warning = _heat("majority", edge, 12).partition(f"{edge:.2f}")
        assert shown == "majority "
        assert warning


def test_no_temperature_is_fitted_to_a_few_errors(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for k in range(2):
        member(here / "sweep" / f"{k:04d}", seed=k, skill=9.0, count=144)  # every validation image is right
    plain = dlrun("ensemble", "sweep", "--out", "plain")
    assert plain.code == 0
    refused = dlrun("ensemble", "sweep", "--temperature", "--out", "warm")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert refused.err.startswith("dlrun: --temperature: mean_probability")
    assert [number for number in (" 0 ", " 144 ", f" {FEWEST}") if number not in refused.err] == []
    assert not Path("warm").exists()


def test_a_member_with_few_errors_keeps_its_probabilities(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for k, skill in enumerate((9.0, 0.0, 0.0, 0.0)):  # the others outvote the good one
        member(here / "sweep" / f"{k:04d}", seed=k, skill=skill, count=144)
    assert dlrun("ensemble", "sweep", "--out", "plain").code == 0
    warm = dlrun("ensemble", "sweep", "--temperature", "--vote", "majority", "--out", "warm")
    assert warm.code == 0, warm.err
    before, after = (table(Path(name))[0] for name in ("plain", "warm"))
    assert before["vote"] == "best member"
    assert before["test_loss"] == after["test_loss"]
    assert f"fewer than {FEWEST} " in warm.out


def test_accuracies_on_few_images_have_an_interval(five: Path, dlrun: Callable[..., Outcome]) -> None:
    out = dlrun("ensemble", "sweep", "--out", "e").out
    best, mean = (next(line for line in out.splitlines() if line.startswith(f"{name} m") and "%" in line)
                  for name in ("best", "mean"))  # fmt: skip
    for row, line in zip(table(Path("e")), (best, mean), strict=False):
        share = float(row["test_acc"])
        assert f"{100 * share:.2f} % ± {100 * margin(share, 60):.2f}" in line


def test_runs_that_did_not_complete_are_omitted_by_name(five: Path, dlrun: Callable[..., Outcome]) -> None:
    write_run(five / "0005", status="diverged")
    member(five / "0006", seed=1)
    (five / "0006" / "predictions.npz").unlink()
    done = dlrun("ensemble", "sweep", "--out", "e")
    assert done.code == 0
    assert re.search(r"\bsweep/0005\b.*\bdiverged\b", done.out)
    assert re.search(r"\bsweep/0006\b.*\bpredictions\.npz\b", done.out)
    assert len(picked(Path("e"))) == 5


def test_compare_lists_ensembles_by_their_vote(five: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("ensemble", "sweep", "--out", "all/e").code == 0
    done = dlrun("compare", "sweep", "all")
    assert "5 runs and 1 ensemble;" in done.out
    rows = {r["run"]: r for r in json.loads(dlrun("compare", "sweep", "all", "--json").out)}
    assert float(rows["all/e"]["test_acc"]) == float(table(Path("all/e"))[4]["test_acc"])
    assert len(json.loads(dlrun("compare", "sweep", "all", "--group-seeds", "--json").out)) == 1


def test_a_folder_in_use_is_refused_before_anything_is_evaluated(
    five: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlrun.ensembles.members.completed", lambda _: pytest.fail("looked for members"))
    for more in (["--fresh"], ["--average", "weights"]):
        done = dlrun("ensemble", "sweep", *more, "--out", "sweep")
        assert (done.code, done.out) == (2, "")
        assert re.search(r"\bsweep\b.*\b0000\b.*--out\b", done.err)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text"])
def test_damaged_predictions_are_omitted_by_name(damage: str, five: Path, dlrun: Callable[..., Outcome]) -> None:
    file = five / "0000" / "predictions.npz"
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[: middle - 99] + bytes(255 - b for b in whole[middle - 99 : middle]) + whole[middle:]
    file.write_bytes({"cut": whole[:middle], "empty": b"", "flipped": flipped, "text": b"hello"}[damage])
    done = dlrun("ensemble", "sweep", "--out", "e")
    assert done.code == 0, done.err
    assert re.search(r"\bsweep/0000: predictions\.npz: ", done.out)
    assert len(picked(Path("e"))) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ["ant", "bee", "dog"]}, r"classes\b.*\b3 \(ant, bee, dog\).*\b3 \(ant, bee, cow\)"),
        ({"mean": [5.0]}, r"mean\b.*\b1 \(5\).*\b1 \(4\)"),
        ({"shape": [9, 9, 1]}, r"shape\b.*\b3 \(9, 9, 1\).*\b3 \(8, 8, 1\)"),
        ({"count": 50}, r"val ids\b.*\b50\b.*\b60\b"),
        ({"test_labels": np.zeros(60, int)}, r"test labels\b.*\b0\b"),
        ({"decoding": {"resize": "crop", "interpolation": "bicubic"}}, r"dataset\.interpolation\b.*\bbicubic\b"),
    ],
)
def test_members_that_disagree_are_named(
    changes: dict[str, Any], words: str, five: Path, dlrun: Callable[..., Outcome]
) -> None:
    member(five / "0009", seed=9, **changes)
    done = dlrun("ensemble", "sweep", "--out", "e")
    assert done.code == 2
    assert re.match(rf"dlrun: sweep/0009\b.*\bsweep/0000\b.*\b{words}", done.err)
    assert done.err.count("\n") == 1
    assert not Path("e").exists()


def test_of_two_lists_the_first_values_that_differ_are_shown() -> None:
    assert apart(["a", "b"], ["a", "c"]) == ("2 (a, b)", "2 (a, c)")
    assert apart(range(9), range(12)) == ("9 (0, 1, 2, 3, …)", "12 (0, 1, 2, 3, …)")
    long = list("abcdefghijk")
    assert apart(long, [*long[:7], "x"]) == ("11 (…, h, i, j, k)", "8 (…, x)")


class Boom:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("boom"),))


def test_a_pickle_is_not_opened(five: Path, dlrun: Callable[..., Outcome]) -> None:
    with np.load(five / "0000" / "predictions.npz") as file:
        arrays = dict(file)
    np.savez(five / "0000" / "predictions.npz", **(arrays | {"val_ids": np.array([Boom()], dtype=object)}))
    done = dlrun("ensemble", "sweep", "--out", "e")
    assert done.code == 0
    assert "sweep/0000: " in done.out
    assert not Path("boom").exists()


def test_mistakes_are_one_line(five: Path, dlrun: Callable[..., Outcome]) -> None:
    (five / "notes").mkdir()
    for words, pattern in {
        ("nowhere",): "nowhere: ",
        ("sweep/notes",): r"no completed runs .*sweep/notes\b",
        ("sweep", "--top", "0"): "--top=0: ",
        ("sweep", "--top", "2", "--greedy"): "--greedy.*--top",
        ("sweep", "--out", "sweep"): r"\bsweep .*\b0000\b.*--out\b",
    }.items():
        done = dlrun("ensemble", *words)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert re.search(pattern, done.err), done.err


def test_fifty_members_need_no_torch(here: Path) -> None:
    for k in range(50):
        member(here / "sweep" / f"{k:04d}", seed=k)
    done = without_torch([("ensemble", "sweep", "--greedy"), ("ensemble", "sweep")], here)
    assert [one.code for one in done] == [0, 0], done[0].err
    assert len(list((here / "outputs" / "ensembles").iterdir())) == 2
