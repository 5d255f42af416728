"""`dlrun prune`: exactly the smallest weights go, and what is stored is a run for every other verb (R4)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dlrun.folders import reading
from dlrun.training import checkpoint
from support.commands import Outcome

WORDS = ("model.width=4", "trainer.epochs=2", "check=none", "trainer.threads=1", "trainer.report=false")


def weights(run: str) -> dict[str, torch.Tensor]:
    model = checkpoint.load(Path(run) / "checkpoints/best.pt")["model"]
    return {name: value for name, value in model.items() if value.ndim >= 2}


@pytest.fixture
def run(here: Path, dlrun: Callable[..., Outcome]) -> str:
    assert dlrun("train", *WORDS, "dataset.limit=400", "run.dir=run").code == 0
    return "run"


def test_the_smallest_weights_of_the_whole_network_become_zero(run: str, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("prune", run, "--sparsity", "0.9,0.5", "--out", "pruned")
    assert done.code == 0
    before = weights(run)
    every = torch.cat([value.abs().flatten() for value in before.values()])
    for share in (0.5, 0.9):
        after = weights(f"pruned/sparsity_{share}")
        zeros = torch.cat([(value == 0).flatten() for value in after.values()])
        assert int(zeros.sum()) == round(share * len(every))
        assert every[zeros].max() <= every[~zeros].min()
        for name, value in after.items():
            assert torch.equal(value[value != 0], before[name][value != 0])
    with open("pruned/pruned.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["sparsity"]) for row in rows] == [0, 0.5, 0.9]
    total = int(rows[0]["weights"])
    shares = [json.loads(Path(row["run"], "result.json").read_text()).get("sparsity") for row in rows]
    assert shares[0] is None
    assert shares[1:] == pytest.approx([0.5, 0.9], abs=0.02)  # the others near 0 count as well
    assert [total - int(row["weights"]) for row in rows] == [0, round(0.5 * len(every)), round(0.9 * len(every))]
    for row in rows:
        stored = json.loads(Path(row["run"], "result.json").read_text())
        assert float(row["test_acc"]) == stored["test_acc"]
        assert row["run"] in done.out


def test_a_pruned_run_stands_in_tables_and_reports_with_its_sparsity(here: Path, dlrun: Callable[..., Outcome]) -> None:
    run = "run"
    assert dlrun("train", "model=mlp", "trainer.epochs=4", *WORDS[2:], "run.dir=run").code == 0
    done = dlrun("prune", run, "--sparsity", "0.99", "--out", "pruned")
    many = json.loads(Path("pruned/sparsity_0.99/result.json").read_text())
    assert many["sparsity"] > 0.98
    assert len(many["sparsity_by_layer"]) == 3
    assert [one["name"] for one in many["verdicts"]] == ["sparsity"]
    assert many["verdicts"][0]["sentence"] in done.out
    rows = json.loads(dlrun("compare", run, "pruned", "--json").out)
    assert sorted(round(row["sparsity"] or 0, 1) for row in rows) == [0, 1.0]
    assert len(json.loads(dlrun("compare", run, "pruned", "--json", "--filter", "sparsity>0.9").out)) == 1
    assert dlrun("report", "pruned/sparsity_0.99").code == 0
    page = Path("pruned/sparsity_0.99/report.html").read_text()
    assert page.count("weights near 0") == 1
    assert "<h2>Weights near 0 by layer</h2>" in page


def test_a_penalty_that_selects_no_weight_has_a_verdict(here: Path, dlrun: Callable[..., Outcome]) -> None:
    words = (*WORDS, "dataset.limit=400", "regularizer=l1", "regularizer.l1=1e-9", "run.dir=l1")
    assert dlrun("train", *words).code == 0
    result = json.loads(Path("l1/result.json").read_text())
    assert result["sparsity"] < 0.01
    assert ("sparsity", "regularizer.l1=1e-08") in [(one["name"], one["try"]) for one in result["verdicts"]]


def test_a_run_of_an_older_version_has_its_sparsity_by_layer(run: str) -> None:
    file = Path(run, "result.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sparsity": {"conv": 0.5, "all": 0.25}}))
    found = reading.stored(Path(run))
    assert (found["sparsity"], found["sparsity_by_layer"]) == (0.25, {"conv": 0.5})


def test_a_pruned_run_is_evaluated_and_trained_on_but_not_extended(run: str, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("prune", run, "--sparsity", "0.5", "--out", "pruned").code == 0
    made = "pruned/sparsity_0.5"
    result = json.loads(Path(made, "result.json").read_text())
    assert result["pruned_from"] == run
    done = dlrun("evaluate", made, "--out", "scores", "--json")
    assert json.loads(done.out)["largest_difference_from_stored_logits"] == 0
    assert dlrun("train", *WORDS, f"trainer.start_from={made}", "dataset.limit=400", "run.dir=again").code == 0
    done = dlrun("resume", made, "trainer.epochs=9")
    assert (done.code, "trainer.start_from" in done.err) == (2, True)
    done = dlrun("ensemble", run, "pruned", "--out", "both")
    assert made in done.out + done.err  # left out, with the reason
    assert json.loads(Path("both/result.json").read_text())["members"] == 1


def test_what_cannot_be_pruned_is_refused_in_one_line(run: str, dlrun: Callable[..., Outcome]) -> None:
    for words in (("--sparsity", "1"), ("--sparsity", "0"), ("--sparsity", "a"), ("--out", run)):
        done = dlrun("prune", run, *words)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert words[0] in done.err
    assert dlrun("prune", "nothing").code == 2
