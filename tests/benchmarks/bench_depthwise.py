"""A training step in bf16 on one thread of a processor, with depthwise convolutions in fp32 and in bf16.

    python tests/benchmarks/bench_depthwise.py
    python tests/benchmarks/bench_depthwise.py --size 224 --batch 16

Networks of torchvision, and EfficientNet-Lite0 if timm is installed, channels last. Processor time of forward and
backward passes, the median of several steps, in turn with fp32 in the layout that torch starts with, as scripts
without precision and layout have it.
"""

from __future__ import annotations

import argparse
import time
from importlib.util import find_spec
from statistics import median

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from dlrun.models.depthwise import widen


def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, low: bool) -> float:
    began = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        loss = F.cross_entropy(model(x), y)
    loss.backward()
    return time.process_time() - began


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("tf_"):
        import timm

        made: nn.Module = timm.create_model(name, num_classes=6)
        return made
    return torchvision.models.get_model(name, num_classes=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = torch.randn(args.batch, 3, args.size, args.size), torch.randint(0, 6, (args.batch,))
    last = x.contiguous(memory_format=torch.channels_last)
    lite = ["tf_efficientnet_lite0"] if find_spec("timm") else []
    print(f"torch {torch.__version__}; {args.batch} images of {args.size} pixels; images per second of the processor")
    print(f"{'network':24} {'fp32':>8} {'bf16':>8} {'ours':>8}  time of ours / bf16, / fp32")
    for name in [*lite, "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "convnext_tiny"]:
        plain, low, ours = build(name), build(name), build(name)
        widen(ours)
        low.to(memory_format=torch.channels_last)
        ours.to(memory_format=torch.channels_last)
        rows = []
        for _ in range(args.steps + 1):
            rows.append((step(plain, x, y, False), step(low, last, y, True), step(ours, last, y, True)))
        a, b, c = (median(column) for column in zip(*rows[1:], strict=True))
        speeds = "".join(f" {args.batch / t:8.1f}" for t in (a, b, c))
        print(f"{name:24}{speeds}  {c / b:.2f}, {c / a:.2f}", flush=True)


if __name__ == "__main__":
    main()
