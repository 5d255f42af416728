"""What result.json, sweep.yaml and the text of stored files may hold, and what is refused in one line."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrun.folders import formats, plain, reading, sweep
from dlrun.folders.opener import Unreadable
from support.commands import TINY
from support.stored import write, write_run

ALIASES = "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij"))
MERGES = "".join(f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in pairwise("abcdefghij"))
BOMBS = {
    "aliases": f"a: &a [x,x,x,x,x,x,x,x,x]\n{ALIASES}",
    "merges": f"a: &a {{x: 1}}\n{MERGES}",
    "itself": "a: &a [*a]",
    "deep": "[" * 10_000,
    "integer": "a: 1" + "0" * 400,
    "hex": "a: 0x" + "f" * 400,
    "bytes": "a: !!binary aGk=",
    "object": "a: !!python/object/apply:os.getcwd []",
    "key": "? [a]\n: b",
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_grows_is_refused_at_once(name: str) -> None:
    began = time.process_time()
    with pytest.raises(Unreadable, match=r"config\.yaml"):
        plain.yaml_of(BOMBS[name], "config.yaml")
    assert time.process_time() - began < 5


def test_yaml_of_dlrun_reads_as_before() -> None:
    import yaml

    shared = [1, 2.5]
    value = {"a": shared, "b": shared, "c": {"d": None, "e": True, "f": "2020-01-01", "g": "1:30", "h": 1e-5, 3: "x"}}
    text = yaml.safe_dump(value)
    assert "&id001" in text
    assert plain.yaml_of(text, "") == value
    assert plain.yaml_of("a: 2020-01-01", "") == {"a": "2020-01-01"}  # typed by hand; safe_load makes a date


@pytest.mark.parametrize(
    "text",
    ['{"val_acc": 1' + "0" * 400 + "}", f'{{"a": -{10**19}}}', "[" * 100_000, "[]", "{", "\xff", '{"a": NaN'],
)
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_json_that_is_none_is_refused(here: Path, text: str, encoding: str) -> None:
    (here / "result.json").write_bytes(text.encode(encoding))
    with pytest.raises(Unreadable, match=r"result\.json"):
        reading.stored(here)


@pytest.mark.parametrize(
    "wrong",
    [
        {"val_acc": "high"}, {"test_loss": []}, {"epochs": "1"}, {"status": 3}, {"config": []}, {"verdicts": {}},
        {"verdicts": ["x"]}, {"data": {"classes": 3}}, {"data": {"train": "many"}}, {"typed": "x"}, {"name": {}},
    ],
)  # fmt: skip
def test_a_value_of_another_kind_names_its_key(here: Path, wrong: dict[str, Any]) -> None:
    write_run(here / "run", **wrong)
    with pytest.raises(Unreadable, match=next(iter(wrong))):
        reading.stored(here / "run")


def test_what_runs_hold_is_accepted(here: Path) -> None:
    fine = {"val_acc": None, "test_loss": float("nan"), "epochs": 3, "name": "", "other": ["x"], "verdicts": []}
    write_run(here / "run", **fine, data={"train": 1, "val": None, "classes": ["a"], "shape": [8, 8, 1]})
    assert reading.stored(here / "run")["epochs"] == 3


@pytest.mark.parametrize(
    "wrong",
    ["axes: [3]", "axes: [{key: {a: 1}}]", "axes: [{words: [1]}]", "axes: [{low: .nan}]", "rounds: [{new: 1000000000}]",
     "rounds: [{new: true}]", "rounds: [{kept: [a]}]", "fixed: [{a: 1}]", "search: []", "search: {timeout: x}",
     f"fixed: [{'a=1, ' * 2001}]", f"axes: [{'{key: a}, ' * 1001}]", f"rounds: [{{axes: [{'{key: a}, ' * 1001}]}}]"],
)  # fmt: skip
def test_a_plan_of_another_kind_names_its_key(here: Path, wrong: str) -> None:
    write(here / "sweep.yaml", wrong)
    with pytest.raises(Unreadable, match=rf"sweep\.yaml: .*{wrong.partition(':')[0]}"):
        sweep.plan(here)


def test_tables_of_other_widths_are_read_and_damage_is_named(here: Path) -> None:
    file = write(here / "metrics.csv", "epoch,lr\n1\n2,0.1,9\n\n")
    assert formats.read_rows(file) == [{"epoch": "1", "lr": ""}, {"epoch": "2", "lr": "0.1"}]
    for text in ("a,a\n1,2\n", "a\n\0\n", 'a\n"' + "x" * (17 << 20)):
        write(file, text)
        with pytest.raises(Unreadable, match=r"metrics\.csv"):
            formats.read_rows(file)


def test_arrays_that_lie_or_unpack_to_gigabytes_are_not_loaded(here: Path) -> None:
    good: dict[str, Any] = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(["x", "é"]), "c": np.zeros((0, 3))}
    good |= {"d": np.asfortranarray(np.eye(3)), "e": np.float32(2)}
    for small in (False, True):
        formats.write_arrays(here / "a.npz", good, small=small)
        found = formats.read_arrays(here, "a.npz")
        for name, value in good.items():
            assert np.array_equal(found[name], value)
            assert found[name].dtype == np.asarray(value).dtype
        found["a"][0, 0] = 7  # it may be changed
    formats.write_arrays(here / "a.npz", {"a": good["a"]})
    data = (here / "a.npz").read_bytes()
    (here / "a.npz").write_bytes(data.replace(b"(2, 3)", b"(2,3e)"))
    assert formats.read_arrays(here, "a.npz") == {}
    (here / "a.npz").write_bytes(data.replace(b"(2, 3), ", b"(9, 9), "))
    assert formats.read_arrays(here, "a.npz") == {}
    np.savez(here / "a.npz", a=np.array([{"x": 1}], dtype=object), allow_pickle=True)
    assert formats.read_arrays(here, "a.npz") == {}


def test_a_small_archive_of_many_gigabytes_is_refused_unread(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LARGEST", 1 << 20)
    formats.write_arrays(here / "a.npz", {"a": np.zeros(1 << 21, np.uint8)}, small=True)
    assert (here / "a.npz").stat().st_size < 10_000
    assert formats.read_arrays(here, "a.npz") == {}


def test_one_bad_run_hides_no_other(here: Path, dlrun: Any) -> None:
    """Each kind of damage, each in its own run beside a good one: all verbs of many runs name it and continue."""
    import os

    from support.stored import config, result

    damage = {
        "integer": lambda p: (p / "result.json").write_text('{"val_acc": ' + "9" * 400 + "}"),
        "pipe": lambda p: ((p / "result.json").unlink(), os.mkfifo(p / "result.json")),
        "latin": lambda p: (p / "result.json").write_bytes(b'{"name": "\xe9"}'),
        "deep": lambda p: (p / "result.json").write_text("[" * 100_000),
        "kind": lambda p: (p / "result.json").write_text('{"status": "completed", "val_acc": {}}'),
        "link": lambda p: ((p / "result.json").unlink(), (p / "result.json").symlink_to("/dev/zero")),
    }
    for name in ("good", *damage):
        write_run(here / "outputs" / name, **result(config(), 0.5))
    for name, spoil in damage.items():
        spoil(here / "outputs" / name)
    outcome = dlrun("compare", "outputs")
    assert outcome.code == 0
    assert "good" in outcome.out
    lines = outcome.out.splitlines()
    for name in damage:
        assert any(line.startswith("left out: ") and f"{name} (result.json" in line for line in lines), name
    for words in (["list"], ["board"], ["report", "outputs"], ["compare", "--json"], ["rm", "--failed"]):
        assert dlrun(*words).code == 0, words
    assert json.loads(dlrun("compare", "--json").out)[0]["run"] == "outputs/good"
    from dlrun import runs

    assert set(runs("outputs")["status"]) == {"completed", "unreadable"}


def test_a_run_without_a_readable_config_is_not_offered_to_be_resumed(here: Path, dlrun: Any) -> None:
    from support.stored import config, result

    write_run(here / "outputs" / "good", **result(config(), 0.5))
    write(here / "outputs" / "loop" / "config.yaml", "a: &a [*a]")
    outcome = dlrun("compare", "outputs")
    assert outcome.code == 0
    assert "left out: loop (config.yaml" in outcome.out
    assert "interrupted" not in outcome.out


@pytest.mark.parametrize(
    "words",
    [
        ("regularizer=elastic", "trainer.ema=0.9", "loss.weight=balanced"),
        ("model.freeze=backbone", "model.unfreeze_at=2"),
        ("objective=mixup", "trainer.swa=0.5", "run.name=x", "run.tags=[a]", "run.note=b"),
        ("trainer.fit_all=true", "trainer.keep=last"),
    ],
)
def test_what_training_writes_can_be_read(here: Path, dlrun: Any, words: tuple[str, ...]) -> None:
    """Runs with L1 were once left out of every table: their share of small weights is not one number."""
    assert dlrun("train", *TINY[1:], *words, "trainer.epochs=2", "run.dir=run").code == 0
    done = dlrun("compare", "run")
    assert "left out" not in done.out + done.err
    assert "completed" in dlrun("list", "run").out
