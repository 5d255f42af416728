"""Data that the trials of a worker share: read once, by one object that its owner hands on."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

from dlrun.folders import reading
from dlrun.search.launchers import job
from dlrun.training import shared_data
from dlrun.training.experiment import build
from dlrun.training.shared_data import SharedData
from support.composed import SMALL, composed


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each time that data is prepared, whether it is shared with other processes."""
    found, prepare = [], shared_data.prepare

    def counted(raw: Any, *, share: bool, **options: Any) -> Any:
        found.append(share)
        return prepare(raw, share=share, **options)

    # read_data asks the signature of `prepare` for the keys of `dataset`
    counted.__wrapped__ = prepare  # type: ignore[attr-defined]
    monkeypatch.setattr(shared_data, "prepare", counted)
    return found


def test_builds_that_ask_for_the_same_data_get_one_object(reads: list[bool]) -> None:
    shared = SharedData(share=False)
    one, other = (build(composed(*SMALL, f"seed={seed}"), shared) for seed in (1, 2))
    assert one.data is other.data
    assert reads == [False]
    alone = build(composed(*SMALL))
    assert alone.data is not one.data
    assert SharedData(share=False).read(one.cfg.plain["dataset"], []) is not one.data  # no state beside the object
    assert len(reads) == 3


def test_other_data_replaces_the_data_that_was_kept(reads: list[bool]) -> None:
    shared = SharedData(share=True)
    node = composed(*SMALL).plain["dataset"]
    first = ref(shared.read(node, []))
    kept = shared.read({**node, "split_seed": 1}, [])
    gc.collect()
    assert first() is None
    assert shared.read({**node, "split_seed": 1}, []) is kept
    assert reads == [True, True]


def test_data_that_cannot_be_read_leaves_nothing_behind(reads: list[bool]) -> None:
    shared = SharedData(share=False)
    node = composed(*SMALL).plain["dataset"]
    data = shared.read(node, [])
    with pytest.raises(ValueError, match="planted"):
        shared.read({**node, "split_seed": 1, "on_bad": Planted()}, [])
    assert shared.read(node, []).record() == data.record()


class Planted:
    def __eq__(self, other: object) -> bool:
        raise ValueError("planted")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("how", ["worker", "launcher"])
def test_trials_of_a_process_read_their_data_once(here: Path, reads: list[bool], how: str) -> None:
    job._kept.cache_clear()
    shared, place = SharedData(share=False), job.Place(str(here), ())
    for number in (0, 1):
        plain = composed(*SMALL, "trainer.epochs=1", f"seed={number}").plain
        trial = job.Job(number, plain, str(here / f"{number:04d}"))
        assert job.work(trial, shared) == (0, "") if how == "worker" else job.away(trial, place) == (0, "")
        assert reading.stored(here / f"{number:04d}")["status"] == "completed"
    assert reads == [False]
