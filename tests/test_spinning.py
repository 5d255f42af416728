"""Threads that wait for each other sleep beside other programs, and spin again without (dlrun/spinning.py)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dlrun import spinning

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux tells what other programs use")

# seconds of the processor that waiting costs, and a result of all threads; before, meanwhile and afterwards
WAITING = """
import time
import torch
from dlrun import spinning
torch.set_num_threads(2)
numbers = torch.linspace(0, 1, 1 << 20)
def waited():
    before = time.process_time()
    for _ in range(60):
        numbers.sum()
        time.sleep(0.01)
    return time.process_time() - before, numbers.sum().item(), torch.get_num_threads()
first = waited()
wake = spinning._sleeping()
time.sleep(0.3)
second = waited()
wake()
time.sleep(0.3)
print([first, second, waited()])
"""
# a training that computes for ever with two threads; it prints when its threads begin to sleep
BESIDE = """
import threading, time
from dlrun import spinning
spinning.watch()
import torch
torch.set_num_threads(2)
numbers = torch.linspace(0, 1, 1 << 20)
until = time.monotonic() + 60
while time.monotonic() < until and "dlrun-sleeping" not in [t.name for t in threading.enumerate()]:
    numbers.sum()
print([t.name for t in threading.enumerate()])
"""


def said(code: str) -> str:
    env = {key: word for key, word in os.environ.items() if key not in (*spinning.OWN, "OMP_NUM_THREADS")}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one core libgomp does not spin")
def test_waiting_costs_nothing_while_threads_sleep_and_results_stay() -> None:
    pytest.importorskip("torch")
    (before, result, threads), (meanwhile, same, count), (after, *_) = ast.literal_eval(said(WAITING))
    assert meanwhile < before / 3
    assert after > 2 * meanwhile
    assert (same, count) == (result, threads) == (result, 2)


@pytest.mark.slow
def test_threads_sleep_soon_after_others_come() -> None:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        assert "dlrun-sleeping" in said(BESIDE)
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What others use at each look, in processors, until the list is over."""
    shares: list[float] = []
    state = [0.0, 0.0, 0.0]

    def used(cores: set[int]) -> tuple[float, float, float]:
        state[0] += spinning.LOOK
        own = spinning.LOOK * len(cores)
        state[1], state[2] = state[1] + own + (shares.pop(0) * spinning.LOOK if shares else 0.0), state[2] + own
        return state[0], state[1], state[2]

    monkeypatch.setattr(spinning, "_used", used)
    monkeypatch.setattr(spinning, "_threads", lambda: len(os.sched_getaffinity(0)))
    return shares


def test_threads_spin_again_after_a_while_without_others(looks: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    class Over(Exception): ...

    def sleep(seconds: float) -> None:
        happened.append(".")
        if len(happened) > 60:
            raise Over

    monkeypatch.setattr(spinning.time, "sleep", sleep)
    monkeypatch.setattr(spinning, "_sleeping", lambda: happened.append("sleep") or (lambda: happened.append("spin")))
    looks += [0.0, 0.0, 0.1, 1.0, 0.0, 0.5]
    with pytest.raises(Over):
        spinning._follow()
    assert [word for word in happened if word != "."] == ["sleep", "spin"]
    quiet = happened[happened.index("sleep") : happened.index("spin")].count(".") * spinning.LOOK
    assert spinning.CALM <= quiet <= spinning.CALM + 4 * spinning.LOOK


@pytest.mark.parametrize("key", spinning.OWN)
def test_what_a_person_has_set_stays(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr(spinning, "_watched", [])
    for other in spinning.OWN:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: happened.append(thread.name))
    happened: list[str] = []
    monkeypatch.setenv(key, "1")
    spinning.watch()
    assert happened == []
    monkeypatch.delenv(key)
    spinning.watch()
    spinning.watch()
    assert happened == ["dlrun-spinning"]  # once in a process
