"""False alarms of the checks on networks of others that are sound.

    python tests/benchmarks/bench_sound.py --log sound.jsonl --minutes 30      continues the log
    python tests/benchmarks/bench_sound.py --log sound.jsonl --minutes 0       only the table
    python tests/benchmarks/bench_sound.py --log sound.jsonl --only timm --again    networks with an alarm once more

Every family of torchvision's classifiers at its smallest, forty of the most used families of timm (if it is installed)
at their smallest, and the unusual networks of tests/support/sound.py: random weights, every check, generated images of
a small size that the network takes. A row of the log has the commit that was checked; a later row for the same network
replaces an earlier one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import bench_false_alarms as campaign  # noqa: E402

# name: side of the images in pixels
TORCHVISION = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 32,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 32,
    "swin_v2_t": 64,
    "vgg11": 32,
    "vgg11_bn": 32,
    "vit_b_16": 32,
    "wide_resnet50_2": 32,
}
TIMM = {
    "cait_xxs24_224": 64,
    "convnext_atto": 64,
    "convnextv2_atto": 64,
    "crossvit_9_240": 240,
    "deit_tiny_patch16_224": 64,
    "densenet121": 32,
    "dla46_c": 64,
    "edgenext_xx_small": 64,
    "efficientformer_l1": 224,
    "efficientnet_b0": 64,
    "efficientvit_b0": 64,
    "fastvit_t8": 64,
    "fbnetc_100": 64,
    "focalnet_tiny_srf": 64,
    "ghostnet_050": 64,
    "hrnet_w18_small": 64,
    "inception_next_atto": 64,
    "lcnet_035": 64,
    "levit_128s": 128,
    "mixer_s32_224": 64,
    "mixnet_s": 64,
    "mnasnet_small": 64,
    "mobilenetv2_035": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_035": 64,
    "mobilevit_xxs": 64,
    "pit_ti_224": 64,
    "poolformer_s12": 64,
    "pvt_v2_b0": 64,
    "regnetx_002": 64,
    "regnety_002": 64,
    "repvgg_a0": 64,
    "resmlp_12_224": 64,
    "resnet10t": 64,
    "resnet18": 32,
    "rexnet_100": 64,
    "tf_efficientnet_lite0": 64,
    "tinynet_e": 64,
    "vit_tiny_patch16_224": 64,
    "xcit_nano_12_p16_224": 64,
}
SIZED = (
    "cait",
    "crossvit",
    "deit",
    "mixer",
    "pit",
    "resmlp",
    "vit_",
    "levit",
)  # their size is fixed when built
ALWAYS = ("check.fresh=true", "trainer.threads=1", "trainer.device=cpu")


def networks() -> Iterator[tuple[str, tuple[str, ...]]]:
    """The name of each network and its overrides; none for those of the zoo, which are built in code."""
    for name, size in TORCHVISION.items():
        yield f"torchvision {name}", ("model=torchvision", f"model.name={name}", *_images(size))
    for name, size in TIMM.items():
        words = [
            "model=custom",
            "model._target_=timm.create_model",
            f"+model.model_name={name}",
            "+model.num_classes=10",
        ]
        words += [f"+model.img_size={size}"] if name.startswith(SIZED) else []
        yield f"timm {name}", (*words, "trust=[timm]", *_images(size))
    from support.sound import SOUND

    for name in SOUND:
        yield f"zoo {name}", ()


def _images(size: int) -> tuple[str, ...]:
    return "dataset=arrays", f"dataset.path=smooth{size}.npz", "dataset.limit=1000"


def suite(name: str, words: tuple[str, ...], budget: float) -> dict[str, Any]:
    """Run every check on a network; return the alarms, what was not decided, and the processor time in seconds."""
    from dlrun import checks
    from dlrun.config.compose import compose
    from dlrun.training.experiment import build

    began = time.process_time()
    options = (*ALWAYS, f"check.budget={budget:g}")
    if words:
        exp = build(compose(*words, *options))
    else:
        from support.pairs import experiment
        from support.sound import SOUND

        # receipts know the config alone, which all of these share
        exp = experiment("check.fresh=true", SOUND[name.removeprefix("zoo ")])
    built = time.process_time()
    results = checks.run(exp)
    said: dict[str, dict[str, str]] = {"fail": {}, "warn": {}, "skip": {}}
    for r in results:
        if r.status in said and r.value != "off":
            said[r.status][r.check] = f"{r.value}: {r.message}"
    slow = sorted(results, key=lambda r: -r.seconds)[:4]
    row = {"network": name, "commit": campaign.commit(), "build": round(built - began, 1)}
    row |= {"seconds": round(time.process_time() - built, 1), "checks": len(results)}
    return {**row, "slowest": {r.check: r.seconds for r in slow}, **said}


def table(rows: list[dict[str, Any]], planned: int) -> str:
    """The log as text: counts, then every alarm and everything that was not decided."""
    lines = [f"{'network':40} seconds failures warnings undecided"]
    for r in rows:
        lines.append(f"{r['network']:40} {r['seconds']:7.1f} {len(r['fail']):8} {len(r['warn']):8} {len(r['skip']):9}")
    for status in ("fail", "warn", "skip"):
        lines += [f"{status} {r['network']} {check}: {text}" for r in rows for check, text in r[status].items()]
    counts = [sum(bool(r[status]) for r in rows) for status in ("fail", "warn", "skip")]
    lines.append(
        f"{len(rows)} of {planned} networks: {counts[0]} with a failure, {counts[1]} with a warning, {counts[2]} with "
        f"something undecided; {sum(r['checks'] for r in rows)} checks"
    )
    return "\n".join(lines)


def _read(log: Path) -> dict[str, dict[str, Any]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return {row["network"]: row for row in map(json.loads, lines)}


def _mended(row: dict[str, Any] | None, undecided: bool) -> bool:
    """Whether a network is due again: its row is of another commit and has an alarm, or something undecided."""
    return (
        row is not None
        and row["commit"] != campaign.commit()
        and bool(row["fail"] or row["warn"] or (undecided and row["skip"]))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="False alarms of the checks on networks of others.")
    parser.add_argument("--log", type=Path, default=Path("sound.jsonl"))
    parser.add_argument("--only", default="", help="networks whose names hold this text")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no suite after so long")
    parser.add_argument("--budget", type=float, default=60.0, help="check.budget of each suite, in seconds")
    parser.add_argument("--again", action="store_true", help="repeat networks with an alarm of another commit")
    parser.add_argument("--undecided", action="store_true", help="with --again: also those with something undecided")
    parser.add_argument("--processor", action="store_true", help="count processor time, beside other programs")
    given = parser.parse_args()
    if given.processor:
        time.perf_counter = time.process_time  # before the checks take it
    log, deadline = given.log.absolute(), time.monotonic() + 60 * given.minutes
    planned = {name: words for name, words in networks() if given.only in name}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sizes = {**{f"torchvision {n}": s for n, s in TORCHVISION.items()}, **{f"timm {n}": s for n, s in TIMM.items()}}
        campaign.paint(Path(folder), {sizes[name] for name in planned if name in sizes})
        for name, words in planned.items():
            known = _read(log).get(name)
            if (
                known is not None and not (given.again and _mended(known, given.undecided))
            ) or time.monotonic() > deadline:
                continue
            try:
                row = suite(name, words, given.budget)
            except Exception as error:  # one network that cannot be built must not end the others
                row = {
                    "network": name,
                    "commit": campaign.commit(),
                    "seconds": 0.0,
                    "checks": 0,
                    "warn": {},
                    "skip": {},
                }
                row["fail"] = {"build": f"{type(error).__name__}: {error}"}
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(table([row for name, row in _read(log).items() if name in planned], len(planned)))


if __name__ == "__main__":
    main()
