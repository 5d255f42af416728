"""Fine-tuning beside timm's own script (issue: as accurate, at most 0.6 of its time).

    git clone https://github.com/huggingface/pytorch-image-models
    python tests/benchmarks/bench_finetune_peers.py data/scenes WEIGHTS pytorch-image-models/train.py --log peers.jsonl

The folder has train/<class>/ and test/<class>/ images, WEIGHTS is a file for tf_efficientnet_lite0. Both sides train
on the same 1,800 images at 112 pixels and choose by the same 198, for as many epochs, in batches of 64, on one thread,
from the same weights, with AdamW at 0.001, weight decay 0.05, layer decay 0.75, a cosine, label smoothing 0.1 and an
average of weights: `dlrun train experiment=finetune` with its preset, which trains the classifier alone for the first
quarter of the epochs, and train.py with these words and otherwise its own defaults, except crops of at least 0.35 of an
image, one epoch of warm-up, and an average that warms up. `--rate 0.003` gives timm's side the rate that the preset
gives the classifier, as a side of its own. Of both the best epoch by validation is tested on all test
images, with or without the average as validation decides. Sides and seeds alternate. `seconds` is processor time of the
whole process, start and decoding included; `wall` is the clock. Each run is a line of JSON in the log; runs in it are
not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch

NAME, SIZE, TRAIN, VAL = "tf_efficientnet_lite0", 112, 1800, 200
RATE, DECAY, LAYERS, SMOOTHING, AVERAGE, BATCH = 0.001, 0.05, 0.75, 0.1, 0.99, 64


def pack(folder: Path, out: Path) -> None:
    """Link or copy the first images of each class to train/ and val/, and name the test images."""
    classes = sorted(path for path in (folder / "train").iterdir() if path.is_dir())
    for found in classes:
        files = sorted(found.iterdir())
        parts = {"train": files[: TRAIN // len(classes)], "val": files[-(VAL // len(classes)) :]}
        parts["test"] = sorted((folder / "test" / found.name).iterdir())
        for part, chosen in parts.items():
            (out / part / found.name).mkdir(parents=True)
            for file in chosen:
                shutil.copyfile(file, out / part / found.name / file.name)


def timed(command: Sequence[str], cwd: Path) -> tuple[float, float]:
    """Seconds of the processor and of the clock of a process and its children. Ends the program if it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if subprocess.run(command, cwd=cwd, env=env).returncode:
        sys.exit(f"failed: {' '.join(command)}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(spent, 1), round(time.perf_counter() - began, 1)


def ours(data: Path, weights: Path, out: Path, epochs: int, seed: int) -> dict[str, Any]:
    words = ["experiment=finetune", "model=timm", f"model.name={NAME}", f"model.weights={weights}", f"run.dir={out}"]
    words += [f"dataset.root={data}", "dataset.val_dir=val", f"dataset.image_size={SIZE}", f"trainer.epochs={epochs}"]
    words += [f"seed={seed}", "trainer.threads=1", "check=none", "trainer.report=false"]
    words += [f"model.unfreeze_at={max(2, epochs // 4 + 1)}"]
    seconds, wall = timed([sys.executable, "-m", "dlrun", "train", *words], data)
    result = json.loads((out / "result.json").read_text())
    return {"seconds": seconds, "wall": wall, "val_acc": result["val_acc"], "test_acc": result["test_acc"]}


def theirs(data: Path, weights: Path, out: Path, epochs: int, seed: int, script: Path, rate: float) -> dict[str, Any]:
    words = f"--data-dir {data} --train-split train --val-split val --model {NAME} --pretrained --num-classes 6"
    words += f" --pretrained-path {weights} --img-size {SIZE} --batch-size {BATCH} --epochs {epochs} --opt adamw"
    words += f" --lr {rate} --weight-decay {DECAY} --layer-decay {LAYERS} --smoothing {SMOOTHING} --sched cosine"
    words += " --warmup-epochs 1 --cooldown-epochs 0 --scale 0.35 1.0 --model-ema --model-ema-warmup"
    words += f" --model-ema-decay {AVERAGE}"
    words += f" --device cpu --workers 0 --seed {seed} --output {out.parent} --experiment {out.name}"
    seconds, wall = timed([sys.executable, str(script), *words.split()], data)
    best = torch.load(out / "model_best.pth.tar", map_location="cpu", weights_only=False)  # of this very program
    made = [(tested(data / "val", best[key]), key) for key in ("state_dict", "state_dict_ema")]
    score, key = max(made)
    return {"seconds": seconds, "wall": wall, "val_acc": score, "test_acc": tested(data / "test", best[key])}


def tested(folder: Path, state: dict[str, Any]) -> float:
    """Accuracy on a folder of images with timm's own transform."""
    import timm
    from timm.data import create_transform, resolve_data_config
    from torchvision.datasets import ImageFolder

    model = timm.create_model(NAME, num_classes=6).eval()
    model.load_state_dict(state)
    config = resolve_data_config({"img_size": SIZE}, model=model)
    loader = torch.utils.data.DataLoader(ImageFolder(folder, create_transform(**config)), batch_size=128)
    with torch.inference_mode():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    return hits / len(loader.dataset)  # type: ignore[arg-type]


def converted(weights: Path, out: Path) -> Path:
    """The same tensors under the names of timm, which its script asks for."""
    from dlrun.models.timm import build

    if not out.exists():
        torch.save(build(NAME, 1000, image_size=SIZE, weights=str(weights)).state_dict(), out)
    return out


def table(rows: Sequence[dict[str, Any]], epochs: int) -> None:
    sides = dict.fromkeys(r["side"] for r in rows if r["epochs"] == epochs)
    found = {side: [r for r in rows if r["side"] == side and r["epochs"] == epochs] for side in sides}
    for side, mine in found.items():
        if mine:
            scores, seconds = [r["test_acc"] for r in mine], mean(r["seconds"] for r in mine)
            accuracy = f"{mean(scores):.4f} ± {pstdev(scores):.4f} ({len(mine)})"
            print(f"{side:10} test {accuracy}, {seconds:.0f} s of a processor")
    spent = {side: mean(r["seconds"] for r in mine) for side, mine in found.items()}
    for side in spent.keys() - {"dlrun"} if "dlrun" in spent else ():
        print(f"time of dlrun / {side}: {spent['dlrun'] / spent[side]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("script", type=Path, help="timm's train.py")
    parser.add_argument("--log", type=Path, default=Path("finetune_peers.jsonl"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="*", default=(1, 2, 3))
    parser.add_argument("--rate", type=float, default=RATE, help="of timm's side; another one is a side of its own")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    home = args.log.resolve().with_suffix("")
    data = home / "data"
    if not data.exists():
        pack(args.folder, home / "packing")
        (home / "packing").rename(data)
    weights = args.weights.resolve()
    there = converted(weights, home / "weights.pth")
    for seed in args.seeds:
        for side in ("dlrun", "timm" if args.rate == RATE else f"timm {args.rate:g}"):
            if any((r["side"], r["seed"], r["epochs"]) == (side, seed, args.epochs) for r in rows):
                continue
            out = home / f"{side.replace(' ', '-')}-{args.epochs}-{seed}"
            shutil.rmtree(out, ignore_errors=True)
            if side == "dlrun":
                found = ours(data, weights, out, args.epochs, seed)
            else:
                found = theirs(data, there, out, args.epochs, seed, args.script.resolve(), args.rate)
            rows.append({"side": side, "seed": seed, "epochs": args.epochs, **found})
            with args.log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    table(rows, args.epochs)


if __name__ == "__main__":
    main()
