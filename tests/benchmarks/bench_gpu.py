"""On one GPU, in one call: epochs of `dlrun train` against the bare step, the speedrun, peers, JPEGs, a profile.

    python tests/benchmarks/bench_gpu.py [--seconds 240] [--out table.md]
    python tests/benchmarks/bench_gpu.py --device cpu --tiny          every line of this file, on a CPU

Needs only dlrun: the images are generated, in the shape of CIFAR and at 224 pixels; the real CIFAR-10 is trained too
if its files exist (--root). Parts for which there is no time are listed. Rows are written to --out as they are
measured.

The bare step is that of bench_throughput: forward, backward and optimizer on one batch in GPU memory, in the same
precision, memory layout and compiled form. An epoch of dlrun draws, augments (crop and flip) and normalises its
batches, clips nothing, sums its scores and runs the layer diagnostics afterwards. The two take turns, after one of each
to warm up; medians are shown, in images per second. Targets: 0.95 of the bare step, 3 times Lightning on the small
networks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
from bench_throughput import bare
from gpu_parts import augmentation, jpegs, peers, profile, speedrun
from gpu_rig import SETUPS, Bench, Setup, made, timed

ROUNDS = 3
TARGET = 0.95


def against_bare(bench: Bench, setup: Setup, precision: str, compiled: bool, title: str = "") -> None:
    """One row: images per second of an epoch of `dlrun train` and of the bare step, and their ratio."""
    words = (f"trainer.precision={precision}", f"trainer.compile={str(compiled).lower()}")
    exp = bench.built(setup, *words, *(("trainer.deterministic=true",) if title else ()))
    watch, state, screen = bench.dlrun.Watch(exp), bench.dlrun.State(), bench.dlrun.Screen(quiet=True)

    def epoch() -> None:
        bench.dlrun.train_epoch(exp, 2, state, screen, watch)  # 2: one without histograms, as all but four are
        watch.look(2)

    step, _ = bare(exp)
    taken: list[tuple[float, float]] = []
    for number in range(2 if bench.tiny else 1 + ROUNDS):
        calls = (step, epoch) if number % 2 else (epoch, step)
        pair = {call: timed(bench.device, call) for call in calls}
        taken.append((pair[step], pair[epoch]))
        if bench.left() < 10 and number:
            break
    full = len(exp.train) * exp.train.batch_size  # images of the bare side: all its batches are whole
    bares, ours = ([n / pair[k] for pair in taken[1:]] for k, n in ((0, full), (1, len(exp.data.train))))
    ratio = median(mine / most for mine, most in zip(ours, bares, strict=True))
    bench.table.row(
        *(title or setup.name, str(exp.dtype).removeprefix("torch."), "yes" if compiled else "no"),
        *(str(exp.train.batch_size), f"{median(ours):,.0f}", f"{median(bares):,.0f}", f"{ratio:.3f}"),
        "yes" if ratio >= TARGET else "NO",
    )


def bare_steps(bench: Bench, compiled: bool) -> None:
    """The table of epochs against the bare step, not compiled or compiled, the most important rows first."""
    bench.table.head(
        f"Epochs of dlrun train against the bare step{', compiled' if compiled else ''}",
        *("network", "precision", "compiled", "batch", "dlrun images/s", "bare images/s", "ratio", f"≥ {TARGET}"),
    )
    least = 40.0 if compiled and not bench.tiny else 4.0
    setups = SETUPS[1:2] if compiled and bench.tiny else SETUPS
    # fp32: convolutions in TF32 where a card has it, torch's default
    for precision in ("fp32",) if compiled and bench.tiny else ("bf16", "fp32"):
        for setup in setups:
            if compiled and setup is SETUPS[0]:
                continue
            measure = partial(against_bare, bench, setup, precision, compiled)
            bench.part(f"{setup.name}, {precision}{', compiled' if compiled else ''}", least, measure)
    if not compiled:
        measure = partial(against_bare, bench, SETUPS[3], "bf16", False, "resnet18, deterministic=true")
        bench.part("deterministic", least, measure)


def header(bench: Bench) -> None:
    """The GPU, the driver and the versions."""
    import torch

    name, driver = "processor", ""
    if bench.device == "cuda":
        name = torch.cuda.get_device_name()
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(ask, capture_output=True, text=True, timeout=20).stdout.strip().splitlines()[0]
        except (OSError, IndexError, subprocess.SubprocessError):
            driver = "unknown"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, driver {driver or 'none'}"
    bench.table.say(f"\n## Benchmark on {name}\n\n{versions}; {torch.get_num_threads()} threads of the processor")
    if bench.tiny:
        bench.table.say("\nOf a few tiny images: the numbers below say that the benchmark runs, and nothing else.")


def measured(bench: Bench) -> None:
    """All parts, the most important first."""
    header(bench)
    bare_steps(bench, compiled=False)
    bench.part("peers", 30, partial(peers, bench))
    count = (64, 40) if bench.tiny else (50_000, 10_000)
    arrays = ["dataset=arrays", f"dataset.path={made(bench.folder, 'cifar', 32, count[0], 0, count[1])}"]
    bench.part("speedrun", 30, partial(speedrun, bench, arrays, "made images in the form of CIFAR-10 (for speed)"))
    for setup in (SETUPS[0], SETUPS[2]):
        bench.part(f"profile of {setup.name}", 10, partial(profile, bench, setup))
    bench.part("jpegs", 20, partial(jpegs, bench))
    bench.part("augmentation", 15, partial(augmentation, bench))
    if (bench.root / "cifar-10-batches-py").is_dir():
        own = ["dataset=cifar10", f"dataset.root={bench.root}", "dataset.download=false"]
        bench.part("speedrun on CIFAR-10", 40, partial(speedrun, bench, own, "CIFAR-10 itself"))
    else:
        bench.table.say(f"\nCIFAR-10 itself: not measured, no {bench.root / 'cifar-10-batches-py'}")
    bare_steps(bench, compiled=True)


def main() -> None:
    """Measure, and exit with 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a few small images and networks: does it run at all")
    parser.add_argument("--seconds", type=float, default=240.0, help="no part is begun that would end after these")
    parser.add_argument("--out", type=Path, help="append the tables to this file, too")
    parser.add_argument("--root", type=Path, default=Path("data"), help="where CIFAR-10 may be")
    options = parser.parse_args()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; --device cpu --tiny tries the benchmark on a processor")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        measured(bench)
        sys.exit(bench.failed)


if __name__ == "__main__":
    main()
