"""The page of an ensemble: every vote, what it gains in images, its members with links, harmless whatever files say."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from support.commands import Outcome, without_torch
from support.members import member
from support.pages import EVIL, page, section


@pytest.fixture
def made(here: Path, dlrun: Callable[..., Outcome]) -> Path:
    """An ensemble of three, one of which has a page."""
    for seed in range(3):
        member(here / "runs" / f"m{seed}", seed, skill=0.4)
    (here / "runs/m1/report.html").write_text("a page")
    outcome = dlrun("ensemble", "runs", "--out", "ens")
    assert outcome.code == 0, outcome.err
    return here / "ens"


def test_ensemble_ends_with_its_page(made: Path, dlrun: Callable[..., Outcome]) -> None:
    first = page(made)
    (made / "report.html").unlink()
    outcome = dlrun("report", "ens")
    assert (outcome.code, outcome.out.strip()) == (0, "ens/report.html")
    assert page(made) == first
    result = json.loads((made / "result.json").read_text())
    assert f"<b>{result['test_acc']:.4f}</b>test accuracy" in first
    assert "<b>3</b>members" in first
    assert section(first, "Pictures").count("data:image/png;base64,") == 4
    with open(made / "table.csv") as file:
        votes = {row["vote"]: row for row in csv.DictReader(file)}
    shown = section(first, "Votes")
    for name, row in votes.items():
        stored = " (stored)" if name == "mean_probability" else ""
        cells = re.search(rf"<td>{name}{re.escape(stored)}</td>(.*?)</tr>", shown)
        assert cells is not None, name
        assert f"{float(row['test_acc']):.4f}" in cells[1]


def test_the_gain_is_counted_in_images(made: Path, dlrun: Callable[..., Outcome]) -> None:
    result = json.loads((made / "result.json").read_text())
    result["data"] |= {"val": 60, "test": 60}
    (made / "result.json").write_text(json.dumps(result))
    assert dlrun("report", "ens").code == 0
    with open(made / "table.csv") as file:
        votes = {row["vote"]: row for row in csv.DictReader(file)}
    card = section(page(made), "Is the vote better?")
    for split in ("val", "test"):
        vote, best = (round(60 * float(votes[name][f"{split}_acc"])) for name in ("mean_probability", "best member"))
        assert f"{vote} of 60 " in card
        assert f"{best} ({vote - best:+d})" in card


def test_members_link_to_their_own_pages(made: Path) -> None:
    shown = section(page(made), "Members")
    assert re.findall(r"<a href='([^']*)'>([^<]*)</a>", shown) == [("../runs/m1/report.html", "runs/m1")]
    assert len(re.findall("<tr>", shown)) == 1 + 3


def test_an_ensemble_without_its_tables_has_a_page_too(made: Path, dlrun: Callable[..., Outcome]) -> None:
    for name in ("table.csv", "members.csv", "sizes.csv", "predictions.npz", "result.json"):
        (made / name).unlink()
    outcome = dlrun("report", "ens")
    assert (outcome.code, outcome.err) == (0, "")
    assert "runs/m0" in section(page(made), "Members")


def test_words_among_the_numbers_are_one_line(made: Path, dlrun: Callable[..., Outcome]) -> None:
    text = (made / "sizes.csv").read_text().splitlines()
    (made / "sizes.csv").write_text("\n".join([text[0], text[1].replace("0.", "lots.", 1), *text[2:]]))
    outcome = dlrun("report", "ens")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "sizes.csv: val_acc_mean" in outcome.err


def test_nothing_in_a_file_becomes_markup_or_a_script(made: Path, dlrun: Callable[..., Outcome]) -> None:
    trap = made / "javascript:alert(1)" / "x"
    trap.mkdir(parents=True)
    (trap / "report.html").write_text("")
    asked = yaml.safe_load((made / "ensemble.yaml").read_text())
    asked["members"][0]["run"] = "javascript:alert(1)/x"
    asked["members"][1] |= {"run": EVIL, "checkpoint": EVIL, "weight": EVIL}
    (made / "ensemble.yaml").write_text(yaml.safe_dump(asked | {"vote": EVIL, "selection": EVIL, "temperature": EVIL}))
    for name in ("table", "members"):
        rows = list(csv.reader((made / f"{name}.csv").read_text().splitlines()))
        with open(made / f"{name}.csv", "w") as file:
            csv.writer(file).writerows([rows[0], *[[EVIL] * len(row) for row in rows[1:]]])
    result = json.loads((made / "result.json").read_text())
    result["data"]["classes"] = [EVIL] * 3
    (made / "result.json").write_text(json.dumps(result | {"vote": EVIL, "votes": EVIL}))
    outcome = dlrun("report", "ens")
    assert (outcome.code, outcome.err) == (0, "")
    text = page(made)
    assert text.count("<script") == 1
    assert "<img src=x" not in text
    assert "href='javascript:" not in text
    assert re.findall(r"<a href='(javascript[^']*)'", text) == ["javascript%3Aalert%281%29/x/report.html"]


def test_a_perfect_vote_has_a_card_instead_of_a_matrix(made: Path, dlrun: Callable[..., Outcome]) -> None:
    with np.load(made / "predictions.npz") as found:
        arrays = dict(found)
    arrays["val_logits"] = np.eye(3)[arrays["val_labels"]]
    np.savez(made / "predictions.npz", **arrays)
    assert dlrun("report", "ens").code == 0
    shown = section(page(made), "Pictures")
    assert shown.count("data:image/png;base64,") == 3
    assert re.search(r"class='card fine'>[^<]*\b60\b", shown)


def test_drawing_needs_no_torch(made: Path, here: Path) -> None:
    (outcome,) = without_torch([("report", "ens")], here)
    assert (outcome.code, outcome.out.strip()) == (0, "ens/report.html")
