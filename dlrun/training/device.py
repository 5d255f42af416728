"""The one place that picks the device and the precision, and what depends on them (`trainer.device=`)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

import torch
from torch import nn

from dlrun.errors import UserError

__all__ = ["BF16_SIDE", "BF16_WIDTH", "compiled", "determinism", "pick_device", "pick_dtype"]


# from here on a processor's bf16 was measured to pay: pixels of the shorter side, channels of a convolution
BF16_SIDE, BF16_WIDTH = 32, 64


def pick_device(name: str) -> torch.device:
    """Return the device of that name; auto prefers CUDA, then MPS. Raises UserError when it is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(n for n in ("cuda", "mps", "cpu") if there[n])
    if not there[name]:
        raise UserError(f"trainer.device={name}: not available here; found {', '.join(n for n in there if there[n])}")
    return torch.device(name)


def compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model compiled, when first called, anew for each size of batch. Raises UserError without a compiler.

    It shares the weights of the model, which evaluation, diagnostics, checks and checkpoints go on with as it is: they
    look into its layers, and all their sizes of batches would have to be compiled too.
    """
    own = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(own) is None:
        raise UserError(f"trainer.compile=true: no compiler {own} here; install it, name another in CXX, or type false")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("trainer.compile=true: triton is not installed, which compiles for CUDA; pip install triton")
    made: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return made


def determinism(wanted: bool) -> None:
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # the same switch as use_deterministic_algorithms(…, warn_only=True), which imports a compiler for 1.4 s
    torch.set_deterministic_debug_mode("warn" if wanted else "default")
    # filling every fresh tensor with NaN would cost time and change no result
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not wanted


def pick_dtype(precision: str, device: torch.device, model: nn.Module, shape: tuple[int, int, int]) -> torch.dtype:
    """The precision of forward passes; auto takes bf16 where the hardware has it and a step is then no slower.

    On a processor with avx512_bf16 a step of 128 images of 32 × 32 took 0.55 (cnn) and 0.62 (resnet20) of the time of
    fp32, in processor time of one thread; an mlp, a cnn at 8 × 8 and one of width 8 took a little more than fp32.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        wide = any(isinstance(m, nn.Conv2d) and m.out_channels >= BF16_WIDTH for m in model.modules())
        fast = bool(has.get("amx_bf16") or has.get("avx512_bf16")) and wide and min(shape[:2]) >= BF16_SIDE
    return torch.bfloat16 if fast else torch.float32
