"""Muon by its formula, and every option of an optimizer on a small problem (O1)."""

from __future__ import annotations

import copy
import io
import pkgutil
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from dlrun.config.compose import builtin_conf
from dlrun.optim import parameter_groups
from dlrun.optim.muon import Muon, orthogonalised

CONF = builtin_conf()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml")))
def test_optimizer_option_trains_a_line(option: str) -> None:
    keys = OmegaConf.to_container(OmegaConf.load(CONF / f"optimizer/{option}.yaml"))
    assert isinstance(keys, dict)
    target = keys.pop("_target_")
    if ".further." in target:
        pytest.importorskip("pytorch_optimizer", reason="the extra optimizers is not installed")
    kind = pkgutil.resolve_name(target)
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = x @ torch.tensor([[2.0], [-1.0]]) + 0.5
    optimizer = kind(parameter_groups(model, keys.get("weight_decay", 0.0)), **keys)
    assert all(type(value) in (int, float, bool, str, list) for value in keys.values())

    def closure() -> float:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss.detach()  # type: ignore[return-value]

    first = closure()
    for _ in range(60):
        optimizer.step(closure)
    assert closure() < 0.99 * first


@pytest.mark.parametrize("shape", [(16, 16), (32, 8), (8, 200)])
def test_orthogonalised_has_singular_values_near_one_and_the_same_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    # the polynomial maps each singular value; the vectors stay
    values = s / matrix.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    found = orthogonalised(matrix)
    assert torch.allclose(found, u @ torch.diag(values) @ vh, atol=1e-10)
    large = s / matrix.norm() > 0.01
    assert ((values[large] > 0.68) & (values[large] < 1.14)).all()
    assert torch.allclose(orthogonalised(matrix.float(), bf16=True).double(), found, atol=0.05)
    assert not orthogonalised(torch.zeros(3, 4)).any()


def muon(model: nn.Sequential, **options: Any) -> Muon:
    options = {"lr": 0.1, "momentum": 0.9, "sgd_lr": 0.2, "sgd_momentum": 0.5, **options}
    groups = parameter_groups(model, options.get("weight_decay", 0.0), options.pop("per_layer", {}))
    return Muon(groups, head=list(model[-1].parameters()), **options)


def filled(model: nn.Sequential, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def test_muon_moves_filters_by_their_orthogonalised_momentum_and_the_rest_as_sgd() -> None:
    torch.manual_seed(0)
    model = net()
    twin = copy.deepcopy(model)
    ours, sgd = muon(model), torch.optim.SGD(twin.parameters(), lr=0.2, momentum=0.5, nesterov=True)
    filters, buffer = model[0].weight.detach().clone(), torch.zeros(4, 9)
    for seed in (1, 2):
        filled(model, seed), filled(twin, seed)
        ours.step(), sgd.step()
        gradient = model[0].weight.grad.view(4, 9)
        buffer = 0.9 * buffer + gradient
        filters -= 0.1 * orthogonalised(gradient + 0.9 * buffer).view(4, 1, 3, 3)
        assert torch.allclose(model[0].weight, filters, atol=1e-6)
        for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert name == "0.weight" or torch.allclose(mine, theirs, atol=1e-6), name


def test_muon_keeps_filters_at_one_norm_and_shrinks_by_weight_decay() -> None:
    model = net()
    optimizer = muon(model, unit_norm=True, lr=0.0)
    filled(model, 1)
    optimizer.step()
    assert model[0].weight.norm().item() == pytest.approx(2.0)  # the root of four rows
    optimizer = muon(model, weight_decay=0.25, sgd_lr=0.0)
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    optimizer.step()
    assert model[0].weight.norm().item() == pytest.approx(2.0 * (1 - 0.1 * 0.25))


def test_muon_takes_rates_by_layer_and_its_state_comes_back() -> None:
    def made() -> tuple[nn.Sequential, Muon]:
        torch.manual_seed(0)
        model = net()
        return model, muon(model, per_layer={r"\.bias": {"lr": 7.0}, r"^3": {"sgd_lr": 0.3}})

    model, optimizer = made()
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert [rates[id(p)] for p in model.parameters()] == [0.1, 7.0, 0.2, 7.0, 0.3, 0.3]
    assert optimizer.param_groups[0]["lr"] == 0.1
    buffer = io.BytesIO()
    other, again = made()
    filled(model, 1), optimizer.step()
    torch.save([model.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)
    other.load_state_dict(weights), again.load_state_dict(state)
    filled(model, 2), filled(other, 2)
    optimizer.step(), again.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
