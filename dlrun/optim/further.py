"""Optimizers of the package pytorch-optimizer: `dlrun train optimizer=lion`, `lamb`, `adan` (O1).

The package is the extra `optimizers`. It is imported only here, and only if one of them is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from dlrun.errors import UserError

__all__ = ["adan", "lamb", "lion"]


def lion(
    params: ParamsT, lr: float = 1e-4, betas: Sequence[float] = (0.9, 0.99), weight_decay: float = 0.0
) -> Optimizer:
    """Steps of lr in the direction of a sign: that of the interpolated momentum; decoupled weight decay.

    Chen et al. 2023, "Symbolic discovery of optimization algorithms". Raises UserError without the package.
    """
    return _made("Lion", params, lr=lr, betas=tuple(betas), weight_decay=weight_decay)


def lamb(
    params: ParamsT,
    lr: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam whose step of each tensor has lr times the norm of the tensor, at most 10; decoupled weight decay.

    You et al. 2020, "Large batch optimization for deep learning". Raises UserError without the package.
    """
    # the gradient is clipped by trainer.clip_norm; without adam_debias the package multiplies the norms of the first
    # steps by 1 / (1 - beta1^t), ten in the first one
    options = {"eps": eps, "weight_decay": weight_decay, "max_grad_norm": 0.0, "adam_debias": True}
    return _made("Lamb", params, lr=lr, betas=tuple(betas), **options)


def adan(
    params: ParamsT,
    lr: float = 1e-3,
    betas: Sequence[float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam with a Nesterov momentum that is estimated from differences of gradients; decoupled weight decay.

    Xie et al. 2022, "Adan: adaptive Nesterov momentum algorithm". Raises UserError without the package.
    """
    options = {"betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "weight_decouple": True}
    return _made("Adan", params, lr=lr, **options)


def _made(name: str, params: ParamsT, **options: Any) -> Optimizer:
    try:
        import pytorch_optimizer
    except ImportError:
        word = f"optimizer={name.lower()}"
        raise UserError(
            f"{word}: the package pytorch_optimizer is not installed; type pip install 'dlrun[optimizers]'"
        ) from None
    made: Optimizer = getattr(pytorch_optimizer, name)(params, **options)
    return made
