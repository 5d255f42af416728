"""The most memory that an epoch held: a column of metrics.csv, a column of `dlrun batch_time` (B7, O6)."""

from __future__ import annotations

import ctypes
import gc
import mmap
import platform
from pathlib import Path

import pytest
import torch

from dlrun.folders import reading
from dlrun.folders.run import claim
from dlrun.run import execute
from dlrun.training import memory
from support.composed import SMALL, composed

CPU = torch.device("cpu")


def test_the_peak_is_seen_after_what_held_it_is_gone() -> None:
    memory.forget_peak(CPU)
    before = memory.peak_mb(CPU)
    if before is None:
        pytest.skip("this system does not tell what a process holds")
    # pages of its own, written to: an allocator may hand out what the process holds already
    with mmap.mmap(-1, 64 * 2**20) as held:
        for start in range(0, len(held), mmap.PAGESIZE):
            held[start] = 1
    after = memory.peak_mb(CPU)
    assert after is not None
    assert 60 < after - before < 100
    if memory.CLEAR.exists():
        memory.forget_peak(CPU)
        assert (memory.peak_mb(CPU) or 0) < after - 30


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library frees by other rules")
def test_large_blocks_come_from_what_is_kept_and_not_from_the_system_one_by_one() -> None:
    class Info(ctypes.Structure):  # struct mallinfo2 of malloc.h: hblks counts the blocks that were mapped alone
        _fields_ = [(n, ctypes.c_size_t) for n in ["arena", "ordblks", "smblks", "hblks", "a", "b", "c", "d", "e", "f"]]

    library = ctypes.CDLL("libc.so.6")
    if not hasattr(library, "mallinfo2"):
        pytest.skip("this C library does not tell")
    library.mallinfo2.restype = Info
    memory.keep_freed()
    before = library.mallinfo2().hblks
    held = torch.ones(2**24)  # 64 MiB: above what is ever kept by itself
    assert library.mallinfo2().hblks == before
    del held


def test_without_proc_the_peak_of_the_whole_process_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = memory.peak_mb(CPU)
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "nowhere" / "clear_refs")
    memory.forget_peak(CPU)
    assert (memory.peak_mb(CPU) or 0) >= (whole or 0) - 1


@pytest.mark.gpu
def test_an_accelerator_counts_what_torch_allocated() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA here")
    before = torch.cuda.memory_allocated() / 2**20
    memory.forget_peak(torch.device("cuda"))
    held = torch.ones(2**24, device="cuda")
    del held
    assert 64 <= (memory.peak_mb(torch.device("cuda")) or 0) - before < 200


def test_every_epoch_says_what_it_held(tmp_path: Path) -> None:
    run = claim(str(tmp_path / "run"), "test")
    assert execute.execute(composed(*SMALL, "trainer.device=cpu"), run) == 0
    held = [float(row["memory_mb"]) for row in reading.metrics(tmp_path / "run")]
    assert len(held) == 2
    assert all(50 < mb < 20_000 for mb in held)


def test_training_collects_more_often_than_the_start_of_a_command() -> None:
    before = gc.get_threshold()
    try:
        for given, expected in ((300_000, 50_000), (700, 700)):  # of a command, and of a person's own process
            gc.set_threshold(given, 10, 10)
            memory.collect_often()
            assert gc.get_threshold()[0] == expected
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
