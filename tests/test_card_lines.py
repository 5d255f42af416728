"""Lines that only a machine with a card reaches, walked on a processor: what they ask of torch, and what follows.

What a card then does is for tests/gpu to say.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlrun.checks import descent, garbage, layers, small, strength, targets
from dlrun.data import batches, draws, jpegs
from dlrun.data.augment import Augment
from dlrun.data.batches import Batches
from dlrun.data.draws import Draws
from dlrun.data.images import InMemory
from dlrun.errors import UserError
from dlrun.inference import predictor, teacher
from dlrun.objectives import Adversarial
from dlrun.probes import batch_time
from dlrun.regularizers import Penalty
from dlrun.search.launchers import protocol
from dlrun.search.launchers.job import Job, work
from dlrun.training import averaging, bends, device, experiment, memory, random_state
from dlrun.training.device import pick_device
from dlrun.training.experiment import build
from dlrun.training.shared_data import SharedData
from support.commands import TINY, Outcome
from support.composed import SMALL, composed
from support.members import member

CARD = torch.device("cuda")


@pytest.mark.parametrize(("there", "found"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_card_that_is_there(monkeypatch: pytest.MonkeyPatch, there: bool, found: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(there))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto").type == found
    if not there:
        with pytest.raises(UserError, match=r"\bcuda\b.*\bcpu\b"):
            pick_device("cuda")


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bf16_where_a_card_computes_it(
    monkeypatch: pytest.MonkeyPatch, has: bool, dtype: torch.dtype
) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **more: asked.append(more) or has)
    assert device.pick_dtype("auto", CARD, nn.Linear(2, 2), (8, 8, 1)) == dtype
    assert asked == [{"including_emulation": False}]  # one that only emulates it is slower than fp32
    assert device.pick_dtype("fp32", CARD, nn.Linear(2, 2), (8, 8, 1)) == torch.float32


def test_without_triton_nothing_compiles_for_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install triton"):
        device.compiled(nn.Linear(2, 2), CARD)


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic_asks_cublas_and_cudnn_for_it(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", wanted)
    try:
        build(composed(*SMALL, f"trainer.deterministic={str(wanted).lower()}"))
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is wanted
        assert torch.backends.cudnn.benchmark is not wanted
        assert torch.get_deterministic_debug_mode() == int(wanted)
    finally:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        torch.set_deterministic_debug_mode("default")


@pytest.mark.parametrize(("free", "resident"), [(4 * 800 + 1, True), (800, False)])
def test_images_move_to_a_card_that_has_room_for_twice_as_many(
    monkeypatch: pytest.MonkeyPatch, free: int, resident: bool
) -> None:
    moved = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))
    monkeypatch.setattr(InMemory, "to", lambda images, device: moved.append(device) or images)
    images = InMemory(torch.zeros(100, 4, 4, 1, dtype=torch.uint8))
    assert batches._resident(images, CARD) is images
    assert moved == [CARD] * resident


def test_what_is_kept_in_memory_goes_pinned_and_asynchronous(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: sent.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *words, **more: sent.append((words, more)) or tensor)
    made = object.__new__(Batches)
    made.device = CARD
    made._sent(torch.zeros(3))
    assert sent == ["pinned", ((CARD,), {"non_blocking": True})]


@pytest.mark.parametrize(("name", "waits"), [("cuda", False), ("mps", True), ("cpu", True)])
def test_draws_are_sent_without_waiting_to_cuda_alone(monkeypatch: pytest.MonkeyPatch, name: str, waits: bool) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *words, **more: seen.append((words, more)) or tensor)
    draws.sent(torch.zeros(3), torch.device(name))
    assert seen == [((torch.device(name),), {"non_blocking": not waits})]


CHANGES: tuple[dict[str, Any], ...] = (
    {"pad": 2, "flip": True, "rotate": 9, "skew": 0.1, "hue": 0.1, "contrast": 0.3, "blur": 1, "cutout": 4},
    {"crop": "full", "flip": True, "flip_vertical": True, "erase": 0.5, "sharpness": 0.5, "solarize": 0.5},
    {"crop": [8, 8], "trivialaugment": True, "grayscale": 0.5, "autocontrast": 0.5, "posterize": 3},
    {"randaugment": 2, "equalize": 0.5},
    {"augmix": 3, "padding": "reflect"},
)


@pytest.mark.parametrize("changes", CHANGES, ids=lambda found: next(iter(found)))
def test_augmentation_asks_the_card_for_nothing_and_mixes_no_devices(changes: dict[str, Any]) -> None:
    images = torch.zeros(6, 12, 12, 3, dtype=torch.uint8, device="meta")  # which have no values
    made = Augment(**changes)(images, Draws(1, 2, torch.arange(6)))
    assert (made.device.type, made.dtype) == ("meta", torch.uint8)
    assert made.is_contiguous()


def test_the_numbers_of_a_batch_are_known_without_asking_the_card() -> None:
    for words in ((), ("dataset.balance=true",), ("augment=crop_flip", "augment.repeats=2")):
        exp = build(composed(*SMALL, "trainer.batch_size=25", *words))
        for epoch in (1, 2):
            found = [index for _, _, index in exp.train.epoch(epoch)]
            known = exp.train.numbers(epoch)
            assert len(known) == len(found)
            assert all(torch.equal(a, b) for a, b in zip(known, found, strict=True))


class _Single(TorchFunctionMode):
    """Refuses float64 as MPS does, except of tensors that came to the processor in the expression before."""

    def __init__(self) -> None:
        super().__init__()
        self.here: set[int] = set()
        self.kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.double and id(args[0]) not in self.here:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
        found = func(*args, **(kwargs or {}))
        if func is Tensor.cpu:
            found = found.view_as(found)
            self.here.add(id(found))
            self.kept.append(found)  # so that no other tensor gets its id
        return found


def test_no_float64_is_asked_of_mps() -> None:
    exp = build(composed(*SMALL))
    x, y, _ = next(exp.train.epoch(1))
    weights = {name: p.detach() for name, p in exp.model.named_parameters() if p.ndim > 1}
    with torch.no_grad(), _Single():
        with pytest.raises(TypeError, match="MPS"):
            x.double()
        assert x.cpu().double().dtype == torch.float64
        bent = bends.nonlinear(exp.model.eval(), x)
        assert bent is not None
        assert bent > 0
        assert garbage._p_value(y, y) < 1e-6
        assert descent._norm([x]) == pytest.approx(float(x.norm()), rel=1e-5)
        assert small.length([x]) == pytest.approx(float(x.norm()), rel=1e-5)
        assert layers._uniform(torch.linspace(-1, 1, 5000))
        assert targets._shares(x[:4], x[:4])[1]
        assert strength.mistaken(Penalty(l2=1.0), weights, weights) is None


def test_batches_that_norms_are_measured_by_are_made_outside_of_autocast() -> None:
    seen: list[bool] = []

    class Norm(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(x)

    def batches_of(count: int) -> Any:
        for _ in range(count):
            assert not torch.is_autocast_enabled("cpu")  # augmentation would compute in bfloat16
            yield torch.rand(4, 3, 5, 5)

    context = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
    averaging.measure(nn.Sequential(Norm(3)), batches_of(3), context=context)
    assert seen == [True] * 3


def test_peak_memory_of_a_card_is_what_torch_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forgotten.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    memory.forget_peak(CARD)
    assert forgotten == [CARD]
    assert memory.peak_mb(CARD) == 3.0


def test_what_a_card_held_is_freed_for_the_report_of_batch_time(monkeypatch: pytest.MonkeyPatch) -> None:
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    batch_time._free(torch.device("cpu"))
    assert freed == []
    batch_time._free(CARD)
    assert freed == [True]


def test_the_random_state_of_cards_goes_into_checkpoints_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    states, back = [torch.tensor([7], dtype=torch.uint8), torch.tensor([8], dtype=torch.uint8)], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", back.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found = random_state.rng_state()
    assert found["cuda"] == states
    random_state.set_rng_state(found)
    assert back == [states[:1]]  # a machine with fewer cards takes those it has


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        ({"/proc/driver/nvidia/gpus": ["0000:1b:00.0", "0000:1c:00.0"], "/dev": ["nvidia0"]}, ["0", "1"]),
        ({"/dev": ["null", "nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"]}, ["0", "1", "2"]),
        ({"/dev": ["null"]}, []),
        ({}, []),
    ],
)
def test_cards_are_counted_without_torch(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, list[str]], found: list[str]
) -> None:
    def listed(path: str | Path) -> list[str]:
        if str(path) not in folders:
            raise FileNotFoundError(path)
        return folders[str(path)]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(protocol.os, "listdir", listed)
    assert protocol.gpus() == found


def test_a_run_of_a_card_is_evaluated_and_exported_where_there_is_none(dlrun: Callable[..., Outcome]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    assert dlrun("train", *TINY, "trainer.device=cpu", "run.dir=r").code == 0
    config = Path("r/config.yaml")
    config.write_text(config.read_text().replace("device: cpu", "device: cuda:1"))
    for words in (("export", "r", "--to", "torch_export"), ("ensemble", "r", "--fresh", "--out", "e")):
        done = dlrun(*words)
        assert done.code == 0, done.err


def test_the_second_card_is_asked_for_by_every_verb_that_takes_a_device(
    dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as two:
        two.setattr(torch.cuda, "is_available", lambda: True)
        two.setattr(torch.cuda, "device_count", lambda: 2)
        assert pick_device("cuda:1") == torch.device("cuda", 1)
    asked: list[str] = []

    def on_processor(name: str, key: str = "") -> torch.device:
        asked.append(name)
        return torch.device("cpu")

    for module in (device, experiment, predictor):
        monkeypatch.setattr(module, "pick_device", on_processor)
    assert dlrun("train", *TINY, "trainer.device=cuda:1", "run.dir=r").code == 0
    np.save("x.npy", np.zeros((2, 8, 8, 1), np.uint8))
    assert dlrun("predict", "r", "x.npy", "--device", "cuda:1").code == 0
    assert dlrun("ensemble", "r", "--fresh", "--out", "e").code == 0
    assert {*asked} == {"cuda:1"}
    # an export is computed on the processor, whatever the run was trained on; its data are read again
    assert dlrun("export", "r", "--to", "torch_export").code == 0
    assert {*asked} == {"cuda:1", "cpu"}


@pytest.mark.parametrize(
    ("name", "wanted"), [("gpu", "--device cuda?"), ("cuda:x", "cuda:0"), ("cuda:7", "--device cuda:7")]
)
def test_a_device_that_is_none_or_not_here_is_refused(
    dlrun: Callable[..., Outcome], tmp_path: Path, name: str, wanted: str
) -> None:
    member(tmp_path / "r", seed=0)
    np.save("x.npy", np.zeros((2, 8, 8, 1), np.uint8))
    refused = dlrun("predict", "r", "x.npy", "--device", name)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert wanted in refused.err


def test_a_teacher_uses_the_card_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded(Exception):
        pass

    def load(path: Path, trust: list[str], name: str) -> None:
        raise Loaded(name)

    monkeypatch.setattr(teacher, "load", load)
    with pytest.raises(Loaded, match=r"^cuda:1$"):
        teacher.log_probabilities("t", None, [], torch.device("cuda", 1))  # type: ignore[arg-type]


def test_a_worker_frees_a_card_after_each_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    job = Job(0, {}, str(tmp_path / "no" / "folder"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    work(job, SharedData(share=False))
    assert freed == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    work(job, SharedData(share=False))
    assert freed == [True]


def test_a_step_of_adversarial_training_copies_nothing_to_the_card() -> None:
    data = build(composed(*SMALL)).data
    attack = Adversarial(data, torch.device("meta")).attack
    assert attack.mean.device.type == attack.std.device.type == "meta"  # made where the images are, once


def test_jpegs_are_decoded_beside_training_into_memory_that_nothing_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def synchronize(self) -> None:
            order.append(f"{self.name} done")

        def wait_stream(self, other: Stream) -> None:
            order.append(f"{self.name} after {other.name}")

    class Made:
        def record_stream(self, other: Stream) -> None:
            order.append(f"{other.name} holds it")

    side, current = Stream("side"), [Stream("main")]

    @contextmanager
    def within(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def decode(contents: list[Tensor], mode: Any, device: torch.device) -> list[Any]:
        order.append(f"decodes {len(contents)} on {device}")
        return []

    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(jpegs, "_stream", lambda device: side)
    monkeypatch.setattr("torchvision.io.decode_jpeg", decode)
    with jpegs._beside(CARD) as out:
        jpegs._torchvision([np.zeros(3, np.uint8)] * 2, CARD)
        out.append(Made())  # type: ignore[arg-type]
    assert order == ["side done", "decodes 2 on cuda", "main after side", "main holds it"]
