"""A large checkpoint is read once: to the memory where its tensors stay, and through its digest (O8)."""

from __future__ import annotations

import copy
import io
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.errors import UserError
from dlrun.folders.run import Run
from dlrun.training import checkpoint, expected, one_pass, sealing
from dlrun.training.experiment import Experiment
from support.checkpoints import flipped, paused_after_two_steps
from support.tensors import tensors


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint counts as a large one, and is read in many parts."""
    monkeypatch.setattr(checkpoint, "MAPPED", 0)
    monkeypatch.setattr(one_pass, "PART", 4 * sealing.BLOCK)


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Experiment]:
    return paused_after_two_steps(tmp_path_factory.mktemp("paused") / "run", "optimizer=adam", "trainer.ema=0.9")


def stored(content: Any, folder: Path) -> Path:
    file = folder / "content.pt"
    file.write_bytes(sealing.save(content).getvalue())
    return file


def read(file: Path, **into: nn.Module) -> Any:
    with file.open("rb") as handle:
        return one_pass.read(handle, file.stat().st_size, into)


def network() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Linear(300, 200), nn.Linear(3, 1, bias=False))
    net[0].to(memory_format=torch.channels_last)
    net[2].weight.data = net[2].weight.data.bfloat16()
    return net


def test_tensors_of_all_kinds_are_those_that_torch_reads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    big, shared = torch.randn(3, 70, 50), torch.arange(100.0)
    content = {
        "kinds": [big.to(kind) for kind in (torch.float64, torch.float16, torch.bfloat16, torch.int16, torch.bool)],
        "orders": (big.transpose(0, 2), big[1:, ::2], big.expand(2, 3, 70, 50), torch.empty(0, 5), torch.tensor(3.0)),
        "shared": {"a": shared[10:20], "b": (shared[15:], [shared])},
        "model": OrderedDict(network().state_dict()),
        "words": ["kept", 7, None, 2.5, {3: "as they are"}],
    }
    file = stored(content, tmp_path)
    ours, theirs = read(file, model=network()), torch.load(file, weights_only=True)
    pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
    assert len(pairs) == 13 + len(content["model"])
    assert all(torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride() for a, b in pairs)
    assert ours["words"] == content["words"]
    assert ours["shared"]["a"].data_ptr() - ours["shared"]["b"][1][0].data_ptr() == 40


def test_weights_like_those_of_the_model_are_read_into_it_and_no_others(tmp_path: Path) -> None:
    net, other = network(), network()
    named: dict[str, Any] = dict(net.state_dict())
    named["0.weight"] = named["0.weight"].contiguous()  # another order
    named["2.bias"] = named["2.bias"].double()  # another type
    named["3.weight"] = torch.ones(2, 3)  # another shape
    content = read(stored({"model": named, "optimizer": [named["2.weight"]]}, tmp_path), model=other)
    own = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    into = {name for name, tensor in content["model"].items() if tensor is own[name]}
    assert into == named.keys() - {"0.weight", "2.bias", "3.weight"}
    assert all(torch.equal(content["model"][name], tensor) for name, tensor in named.items())
    # what the optimizer keeps is not the weight of the model, though it is the same record
    assert content["optimizer"][0].data_ptr() != own["2.weight"].data_ptr()
    assert torch.equal(content["optimizer"][0], named["2.weight"])


def test_a_run_continues_from_the_memory_of_its_model(paused: tuple[Run, Experiment]) -> None:
    run, exp = paused
    found = checkpoint.load(run.last)
    before = [weight.data_ptr() for weight in exp.model.parameters()]
    assert checkpoint._read(run.last, {})[1]  # and not in the usual way
    assert checkpoint.restore(run, exp).step == 2
    assert [weight.data_ptr() for weight in exp.model.parameters()] == before
    assert exp.kept.average is not None
    for ours, theirs in (
        (exp.model.state_dict(), found["model"]),
        (exp.kept.average.state_dict(), found["ema"]),
        (exp.optimizer.state_dict(), found["optimizer"]),
    ):
        assert all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(theirs), strict=True))
    memory = [tensor.data_ptr() for tensor in (*exp.model.parameters(), *tensors(exp.optimizer.state_dict()["state"]))]
    assert len(set(memory)) == len(memory)


def test_every_flipped_bit_is_noticed_in_one_line(paused: tuple[Run, Experiment]) -> None:
    run, exp = paused
    data, draw = run.last.read_bytes(), random.Random(0)
    bits = [draw.randrange(8 * len(data)) for _ in range(60)]
    bits += [8 * byte for byte in range(len(data) - 70, len(data))]  # the end of the archive and the digest itself
    try:
        for bit in bits:
            run.last.write_bytes(flipped(data, bit))
            with pytest.raises(UserError, match=r"last\.pt") as refused:
                checkpoint.restore(run, exp)
            assert "\n" not in str(refused.value)
        for size in (0, 1, 30, len(data) // 2, len(data) - 1):
            run.last.write_bytes(data[:size])
            with pytest.raises(UserError):
                checkpoint.restore(run, exp)
    finally:
        run.last.write_bytes(data)


@pytest.mark.parametrize("place", ["model", "ema", "optimizer"])
def test_numbers_that_were_not_finite_when_they_were_written_are_named(
    paused: tuple[Run, Experiment], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, exp = paused
    intact, content = run.last.read_bytes(), checkpoint.load(run.last)
    assert content["finite"] is True
    tensors(content[place])[0].view(-1)[0] = float("nan")
    checkpoint.write(run, content, is_best=False)
    try:
        assert checkpoint.load(run.last)["finite"] is False
        with pytest.raises(UserError, match="finite"):
            checkpoint.restore(run, exp)
    finally:
        run.last.write_bytes(intact)


class _Outside:
    """Stands for what torch.load returns of a file that somebody made: a tensor at any place of it."""

    def __init__(self, place: int, count: int) -> None:
        self.place, self.count = place, count

    def __call__(self, *_: object, **__: object) -> list[Tensor]:
        tensor = torch.empty(self.count, dtype=torch.uint8, device="meta")
        tensor.untyped_storage()._checkpoint_offset = self.place  # type: ignore[attr-defined]
        return [tensor]


class Wide:
    """Is stored as a tensor of a hundred values in a record that has ten."""

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.arange(10.0)._typed_storage()  # type: ignore[no-untyped-call]
        return torch._utils._rebuild_tensor_v2, (storage, 0, (100,), (1,), False, OrderedDict())


def test_a_tensor_larger_than_its_record_does_not_get_the_bytes_behind_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside"):
        read(stored({"a": Wide(), "b": torch.zeros(1000)}, tmp_path))


def remade(known: Any, name: str, content: bytes, method: int = zipfile.ZIP_STORED, more: int = 0) -> bytes:
    """A file with another content of a record, by a writer that aligns nothing, and a digest of that.

    There are `more` records besides, which are all the first one.
    """
    file, out = io.BytesIO(), io.BytesIO()
    torch.save(known, file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(out, "w", method) as made:
        for record in archive.namelist():
            made.writestr(record, content if record.endswith(f"/{name}") else archive.read(record))
        for number in range(more):
            made.filelist.append(copy.copy(made.filelist[0]))
            made.filelist[-1].filename = f"archive/data/more{number}"
    whole = out.getvalue()[:-2] + struct.pack("<H", sealing.LENGTH)
    return whole + sealing.MARK + sealing._digest(memoryview(bytearray(whole)))


# torch swaps, divides and computes by these records: the process died, or went on with other numbers
@pytest.mark.parametrize(
    ("name", "content"),
    [(".storage_alignment", b"0"), (".storage_alignment", b"1"), (".storage_alignment", b"64"), ("byteorder", b"big")],
)
def test_an_archive_that_torch_did_not_write_is_read_as_torch_reads_it(
    paused: tuple[Run, Experiment], name: str, content: bytes
) -> None:
    run, exp = paused
    intact, known = run.last.read_bytes(), torch.load(run.last, weights_only=True)  # no map of it
    try:
        run.last.write_bytes(remade(known, name, content))
        with run.last.open("rb") as file, pytest.raises(ValueError, match=r"alignment|byteorder|outside"):
            one_pass.read(file, run.last.stat().st_size, {})
        if name == "byteorder":  # what is swapped is no random state
            with pytest.raises(UserError, match="last"):
                checkpoint.restore(run, exp)
        else:
            checkpoint.restore(run, exp)
            assert all(torch.equal(known["model"][name], weight) for name, weight in exp.model.state_dict().items())
    finally:
        run.last.write_bytes(intact)


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", [torch.conj, lambda z: z.conj().imag, torch.Tensor.to_sparse])
def test_tensors_that_are_more_than_their_record_are_left_to_torch(
    paused: tuple[Run, Experiment], kind: Callable[[Tensor], Tensor]
) -> None:
    run, _ = paused
    intact, tensor = run.last.read_bytes(), kind(torch.tensor([1 + 2j, 3 - 4j]))
    try:
        checkpoint.write(run, {**checkpoint.load(run.last), "more": tensor}, is_best=False)
        found, whole = checkpoint._read(run.last, {})
        assert not whole
        assert torch.equal(found["more"].to_dense(), tensor.to_dense())
    finally:
        run.last.write_bytes(intact)


@pytest.mark.parametrize("kind", ["a wide tensor", "lists in lists", "a list in itself", "compressed", "upon others"])
@pytest.mark.parametrize("large", [False, True])
def test_a_small_file_does_not_fill_the_memory(
    paused: tuple[Run, Experiment], kind: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, exp = paused
    intact, content = run.last.read_bytes(), torch.load(run.last, weights_only=True)
    lists: list[Any] = [1]
    for _ in range(40):
        lists = [lists, lists]
    around: list[Any] = []
    around.append(around)
    more = {"a wide tensor": torch.zeros(1).expand(10**6, 10**6), "lists in lists": lists, "a list in itself": around}
    content["optimizer"]["state"][0]["more"] = more.get(kind)
    monkeypatch.setattr(checkpoint, "MAPPED", 0 if large else 1 << 30)
    monkeypatch.setattr(expected, "MOST_ENTRIES", 50_000)
    archives = {
        "compressed": lambda: remade(content, "version", b"3\n", zipfile.ZIP_DEFLATED),
        "upon others": lambda: remade(content, "version", b"3\n", more=1000),
    }
    try:
        run.last.write_bytes(archives.get(kind, lambda: sealing.save(content).getvalue())())
        for read in (lambda: checkpoint.load(run.last), lambda: checkpoint.restore(run, exp)):
            with pytest.raises(UserError, match=r"last\.pt: not a readable dlrun checkpoint"):
                read()
    finally:
        run.last.write_bytes(intact)


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", [lambda one: one.to(torch.float8_e4m3fn), torch.Tensor.to_sparse])
def test_numbers_that_torch_cannot_compare_are_written_and_read(
    paused: tuple[Run, Experiment], kind: Callable[[Tensor], Tensor]
) -> None:
    run, exp = paused
    intact, content = run.last.read_bytes(), torch.load(run.last, weights_only=True)
    try:
        for count in (2, 100_000):
            content["optimizer"]["state"][0]["more"] = kind(torch.ones(count))
            checkpoint.write(run, content, is_best=False)
            assert checkpoint.restore(run, exp).step == 2
            more = exp.optimizer.state_dict()["state"][0]["more"]
            assert torch.equal(more.to_dense().float(), torch.ones(count))
    finally:
        run.last.write_bytes(intact)


@pytest.mark.parametrize(("place", "count"), [(-8, 8), (0, 8), (10**12, 8), (None, 10**12), (None, 4096)])
def test_a_tensor_outside_of_the_file_takes_no_memory(
    tmp_path: Path, place: int | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stored({"a": torch.zeros(4)}, tmp_path)
    with file.open("rb") as handle:
        record = max(one_pass._records(handle))
    monkeypatch.setattr(torch, "load", _Outside(record if place is None else place, count))
    with pytest.raises(ValueError, match="outside"):
        read(file)


def test_a_list_that_contains_itself_is_read(tmp_path: Path) -> None:
    around: list[Any] = [torch.ones(3)]
    around.append(around)
    found = read(stored(around, tmp_path))
    assert found[1] is found
    assert found[0].tolist() == [1, 1, 1]
