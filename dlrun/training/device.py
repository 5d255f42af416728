"""The one place that picks the device and the precision, and what depends on them (`trainer.device=`)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

import torch
from torch import nn

from dlrun.config import ranks
from dlrun.errors import UserError

__all__ = ["BF16_SIDE", "BF16_WIDTH", "compiled", "determinism", "pick_device", "pick_dtype"]


# least pixels of the shorter side and channels of a convolution at which bf16 was measured to be faster on a processor
BF16_SIDE, BF16_WIDTH = 32, 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, key: str = "trainer.device=") -> torch.device:
    """Return the device of that name; auto prefers CUDA, then MPS.

    Raises UserError if it does not exist; `key` is what the user typed before the name.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = [*["cuda"][:gpus], *(f"cuda:{number}" for number in range(gpus))]
    there += [*(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if name == "auto":
        name = there[0]
    if name not in there:
        raise UserError(f"{key}{name}: not available here; found {', '.join(there)}")
    if (place := ranks.own()) is not None:
        if name not in ("cpu", "cuda"):
            raise UserError(f"{key}{name}: expected cpu or cuda for {place.world} processes")
        if name == "cuda":
            torch.cuda.set_device(place.local % gpus)  # srun may show each process one
            name = f"cuda:{place.local % gpus}"
    return torch.device(name)


def compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a module that compiles the model at its first call, and again for each batch size.

    It shares the weights of the model. Evaluation, diagnostics, checks and checkpoints use the plain model: they read
    its layers, and each of their batch sizes would be compiled too. Raises UserError without a compiler.
    """
    own = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(own) is None:
        raise UserError(f"trainer.compile=true: found no compiler {own}; install it, set CXX to another, or use false")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("trainer.compile=true: CUDA needs triton, which is not installed; pip install triton")
    made: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return made


def determinism(wanted: bool) -> None:
    """Choose kernels whose results repeat, or the fastest ones; operations without such a kernel warn (B8)."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # does the same as use_deterministic_algorithms(…, warn_only=True), which spends 1.4 s on importing a compiler
    torch.set_deterministic_debug_mode("warn" if wanted else "default")
    # filling every new tensor with NaN costs time and changes no result
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not wanted


def pick_dtype(precision: str, device: torch.device, model: nn.Module, shape: tuple[int, int, int]) -> torch.dtype:
    """Return the precision of forward passes; auto is bf16 if the hardware supports it and a step is then no slower.

    Measured on a processor with avx512_bf16, one thread, 128 images of 32 × 32: a step took 0.55 (cnn) and 0.62
    (resnet20) of the time of fp32; an mlp, a cnn on 8 × 8 and a cnn of width 8 took slightly more than fp32.
    """
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        wide = any(isinstance(m, nn.Conv2d) and m.out_channels >= BF16_WIDTH for m in model.modules())
        fast = bool(has.get("amx_bf16") or has.get("avx512_bf16")) and wide and min(shape[:2]) >= BF16_SIDE
    return torch.bfloat16 if fast else torch.float32
