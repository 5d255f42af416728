"""A checkpoint that is not what it must be is one line before anything is loaded, and no flipped bit is overlooked."""

from __future__ import annotations

import copy
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.errors import UserError
from dlrun.folders.run import Run
from dlrun.training import checkpoint, expected, sealing
from dlrun.training.experiment import Experiment
from dlrun.training.random_state import rng_state, set_rng_state
from support.checkpoints import flipped, paused_after_two_steps
from support.tensors import tensors

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Experiment]:
    return paused_after_two_steps(tmp_path_factory.mktemp("paused") / "run", "optimizer=adam", "trainer.ema=0.9")


def first(content: dict[str, Any]) -> dict[str, Any]:
    return content["optimizer"]["state"][0]  # type: ignore[no-any-return]


def setting(place: str, value: Any) -> Change:
    """A change of one entry, named by the keys on the way to it."""

    def change(content: dict[str, Any]) -> None:
        *way, last = [int(key) if key.isdigit() else key for key in place.split("/")]
        node: Any = content
        for key in way:
            if isinstance(node[key], tuple):
                node[key] = list(node[key])
            node = node[key]
        node[last] = value(node[last]) if callable(value) else value

    return change


def poisoned(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = float("nan")
    return tensor


STATE, GROUP = "optimizer/state/0", "optimizer/param_groups/0"
WRONG = {
    "another shape": ("model/head.weight", lambda t: t[:3], "head.weight"),
    "another type": ("model/head.weight", lambda t: t.double(), "head.weight"),
    "no tensor": ("model/head.weight", "x", "head.weight"),
    "nan": ("model/head.weight", poisoned, "head.weight"),
    "nan in the average": ("ema/head.bias", poisoned, "head.bias"),
    "no average": ("ema", None, "ema"),
    "state of another size": (f"{STATE}/exp_avg", lambda t: t.flatten()[:2], "exp_avg"),
    "larger state": (f"{STATE}/exp_avg_sq", lambda t: t.new_zeros(10**5), "exp_avg_sq"),
    "negative squares": (f"{STATE}/exp_avg_sq", lambda t: t - 1, "exp_avg_sq"),
    "infinite state": (f"{STATE}/exp_avg", lambda t: t / 0, "exp_avg"),
    "steps of three": (f"{STATE}/step", torch.ones(3, dtype=torch.int64), "step"),
    "missing state": (STATE, lambda s: {"step": s["step"]}, "exp_avg"),
    "state of no weight": ("optimizer/state", lambda s: {999: s[0]}, "999"),
    "weights twice": (f"{GROUP}/params", lambda p: [0] * len(p), "param_groups"),
    "no groups": ("optimizer/param_groups", [], "groups"),
    "rate": (f"{GROUP}/lr", -1.0, "lr"),
    "huge rate": (f"{GROUP}/lr", 10**400, "lr"),
    "betas": (f"{GROUP}/betas", (0.9, 1.5), "betas"),
    "flag": (f"{GROUP}/differentiable", True, "differentiable"),
    "fused": (f"{GROUP}/fused", "yes", "fused"),
    "schedule": ("scheduler/base_lrs", [], "base_lrs"),
    "values": ("scheduler/values", ["x"], "values"),
    "epoch": ("epoch", -1, "epoch"),
    "huge epoch": ("epoch", 10**400, "epoch"),
    "no number": ("step", True, "step"),
    "best": ("best", {"epoch": 7, "value": 0.5, "val_loss": None}, "best"),
    "pace": ("pace", {"left": 0, "rate": 1}, "pace"),
    "torch's generator": ("rng/torch", lambda t: t[:100], "rng.torch"),
    "numpy's place": ("rng/numpy/2", 10**9, "rng.numpy"),
    "numpy's numbers": ("rng/numpy/1", lambda t: t - 2**40, "rng.numpy"),
    "python's numbers": ("rng/python/1", torch.tensor([1, 2, 3]), "rng.python"),
    "python's numbers, older": ("rng/python/1", (1, 2, 3), "rng.python"),
    "python's numbers of 33 bits": ("rng/python/1", torch.full((625,), 2**32), "rng.python"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named_in_one_line_and_nothing_is_loaded(
    paused: tuple[Run, Experiment], name: str
) -> None:
    run, exp = paused
    intact, before = run.last.read_bytes(), [t.clone() for t in tensors(exp.model.state_dict())]
    place, value, named = WRONG[name]
    content = copy.deepcopy(checkpoint.load(run.last))
    setting(place, value)(content)
    torch.save(content, run.last)
    try:
        with pytest.raises(UserError, match=re.escape(str(run.last))) as refused:
            checkpoint.restore(run, exp)
    finally:
        run.last.write_bytes(intact)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < len(str(run.last)) + 300
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(exp.model.state_dict()), strict=True))
    assert exp.optimizer.state_dict()["state"] == {}


def test_what_is_not_named_is_another_checkpoint_if_there_is_one(tmp_path: Path) -> None:
    run, exp = paused_after_two_steps(tmp_path / "run")
    run.best.write_bytes(run.last.read_bytes())
    run.last.write_bytes(run.last.read_bytes()[:-1])
    with pytest.raises(UserError) as refused:
        checkpoint.restore(run, exp)
    command = re.search("`cp (.*?) (.*?)`", str(refused.value))
    assert command is not None
    assert command.groups() == (str(run.best), str(run.last))


OPTIMIZERS = ("sgd", "nesterov", "radam", "rmsprop", "rmsprop_momentum", "adagrad", "adadelta", "muon", "lbfgs")


@pytest.mark.parametrize(
    ("name", "more"), [*((name, ()) for name in OPTIMIZERS), ("adamw", ("optimizer.lookahead=2",))]
)
def test_every_optimizer_fits_its_own_checkpoint(tmp_path: Path, name: str, more: tuple[str, ...]) -> None:
    run, exp = paused_after_two_steps(tmp_path / "run", f"optimizer={name}", "model.depth=1", *more)
    found = checkpoint.load(run.last)
    assert checkpoint.restore(run, exp).step == 2
    pairs = zip(tensors(exp.optimizer.state_dict()), tensors(found["optimizer"]), strict=True)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


def test_state_that_shares_memory_gets_its_own(paused: tuple[Run, Experiment]) -> None:
    """Fused steps write through the memory of a tensor as if it were whole and nobody else's."""
    run, exp = paused
    content = checkpoint.load(run.last)
    state = first(content)
    state["exp_avg"] = torch.zeros(1).expand(state["exp_avg"].shape)
    state["exp_avg_sq"] = content["optimizer"]["state"][1]["exp_avg_sq"] = torch.zeros(10).expand(10, 10)
    state["exp_avg_sq"] = state["exp_avg"]
    del content["optimizer"]["state"][1]
    checkpoint.expected.hold(content, exp)
    mine = first(content)
    assert mine["exp_avg"].untyped_storage().nbytes() == mine["exp_avg"].numel() * 4
    assert mine["exp_avg"].data_ptr() != mine["exp_avg_sq"].data_ptr()


# --- the digest


def test_every_flipped_bit_is_noticed_in_one_line(paused: tuple[Run, Experiment], tmp_path: Path) -> None:
    data, draw = paused[0].last.read_bytes(), random.Random(0)
    bits = [draw.randrange(8 * len(data)) for _ in range(60)]
    bits += range(8 * len(data) - 8 * 70, 8 * len(data))  # the end of the archive and the digest itself
    file = tmp_path / "last.pt"
    for bit in bits:
        file.write_bytes(flipped(data, bit))
        with pytest.raises(UserError, match=r"last\.pt") as refused:
            checkpoint.load(file)
        assert "\n" not in str(refused.value)
    for size in (0, 1, 30, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(UserError):
            checkpoint.load(file)


def test_a_file_with_a_digest_is_an_archive_that_others_read(paused: tuple[Run, Experiment]) -> None:
    last = paused[0].last
    with last.open("rb") as file:
        assert sealing.sealed(file.fileno())
    assert torch.serialization.get_crc32_options()
    ours, theirs = checkpoint.load(last), torch.load(last, weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(theirs), strict=True))


def test_small_tensors_are_one_record_and_none_reaches_into_another(paused: tuple[Run, Experiment]) -> None:
    last, exp = paused[0].last, paused[1]
    with zipfile.ZipFile(last) as archive:
        records = [name for name in archive.namelist() if "/data/" in name]
    found = checkpoint.load(last)
    assert len(records) < 12 < len(tensors(found))  # by type, and the random states
    assert checkpoint.restore(paused[0], exp).step == 2
    before = [tensor.clone() for tensor in tensors(exp.optimizer.state_dict())]
    for tensor in tensors(exp.optimizer.state_dict()):
        tensor.add_(1)  # in place, as a step does
    assert all(torch.equal(a + 1, b) for a, b in zip(before, tensors(exp.optimizer.state_dict()), strict=True))


def test_a_checkpoint_without_a_digest_loads(paused: tuple[Run, Experiment], tmp_path: Path) -> None:
    torch.save(checkpoint.load(paused[0].last), tmp_path / "old.pt")
    with (tmp_path / "old.pt").open("rb") as file:
        assert not sealing.sealed(file.fileno())
    assert checkpoint.load(tmp_path / "old.pt")["step"] == 2


def test_a_checkpoint_with_the_former_digest_loads(paused: tuple[Run, Experiment], tmp_path: Path) -> None:
    data, mark = paused[0].last.read_bytes(), sealing.FORMER + b"0" * 32
    end = data[: -sealing.LENGTH - 2] + len(mark).to_bytes(2, "little")
    (tmp_path / "old.pt").write_bytes(end + mark)
    assert checkpoint.load(tmp_path / "old.pt")["step"] == 2


def test_the_random_state_of_an_older_checkpoint_is_restored() -> None:
    random.seed(3)
    state = rng_state()
    drawn = [random.random() for _ in range(3)]
    version, numbers, following = state["python"]
    set_rng_state({**state, "python": (version, tuple(numbers.tolist()), following)})
    assert [random.random() for _ in range(3)] == drawn
    set_rng_state(state)
    assert [random.random() for _ in range(3)] == drawn


def test_values_whose_sum_overflows_are_finite() -> None:
    model = torch.nn.Linear(4, 1)
    torch.nn.init.constant_(model.weight, 3e38)
    expected.hold_weights(model.state_dict(), model)
    found = {**model.state_dict(), "weight": torch.tensor([[1.0, 2.0, float("inf"), -float("inf")]])}
    with pytest.raises(expected.Misfit, match="not finite"):
        expected.hold_weights(found, model)
