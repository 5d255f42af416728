"""Optimizers of the extra `optimizers`, by their formulas, and what is said without it (O1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dlrun.config import extras
from support.commands import TINY, Outcome


def moved(kind: str, gradients: list[torch.Tensor], start: torch.Tensor, **options: Any) -> torch.Tensor:
    pytest.importorskip("pytorch_optimizer", reason="the extra optimizers is not installed")
    from dlrun.optim import further

    p = nn.Parameter(start.clone())
    optimizer = getattr(further, kind)([p], **options)
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()
    return p.detach()


START, G = torch.tensor([[1.0, -2.0], [0.5, 2.0]]), [torch.tensor([[0.3, -0.1], [2.0, 0.4]])] * 2


def test_lion_moves_by_the_sign_and_decays_apart() -> None:
    once = moved("lion", G[:1], START, lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(once, START * (1 - 0.1 * 0.5) - 0.1 * G[0].sign())


def test_the_step_of_lamb_is_lr_times_the_norm_of_the_tensor() -> None:
    found = moved("lamb", G[:1], START, lr=0.1)
    step = START - found
    assert float(step.norm()) == pytest.approx(0.1 * float(START.norm()), rel=1e-4)  # ‖w‖ / ‖u‖ · u
    far = moved("lamb", [1000 * g for g in G[:1]], START, lr=0.1)
    torch.testing.assert_close(far, found, rtol=1e-3, atol=1e-3)  # no clipping of its own, and invariant to scale


def test_adan_begins_as_adam_by_the_sign() -> None:
    found = moved("adan", G[:1], START, lr=0.1, weight_decay=0.0)
    assert bool(((START - found).sign() == G[0].sign()).all())
    twice = moved("adan", G, START, lr=0.1, weight_decay=0.0)
    assert float((START - twice).norm()) > float((START - found).norm())


@pytest.mark.parametrize("name", ["lion", "lamb", "adan"])
def test_without_the_package_one_line_says_what_to_install(
    name: str, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda package: None)
    done = dlrun("train", *TINY, f"optimizer={name}", "run.dir=run")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"optimizer={name}" in done.err
    assert "dlrun[optimizers]" in done.err
