"""Files that dlrun reads as data: pickles in them are never loaded, and names in them lead nowhere else."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import dlrun as package
from dlrun.errors import UserError
from support.commands import TINY, Outcome
from support.hostile import change, evil_pickle, watched
from support.stored import write


def evil_torch() -> bytes:
    """A file of torch whose pickle is the payload."""
    kept = io.BytesIO()
    torch.save({"model": {}}, kept)
    made = io.BytesIO()
    with zipfile.ZipFile(kept) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, evil_pickle() if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


def evil_array() -> bytes:
    """An .npy whose objects are a pickle."""
    made = io.BytesIO()
    np.lib.format.write_array_header_1_0(made, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return made.getvalue() + evil_pickle()


def evil_archive(*names: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", evil_array())
    return made.getvalue()


ARRAYS = (
    "val_logits",
    "val_labels",
    "val_ids",
    "test_logits",
    "test_labels",
    "test_ids",
    "images",
    "logits",
    "digests",
)
# a file, what it holds, and a command that reads it
STORED = [
    *(
        ("finished/checkpoints/best.pt", kind, "predict finished images.npy --out p.csv")
        for kind in ("pickle", "torch")
    ),
    ("finished/checkpoints/best.pt", "torch", "export finished --to torch_export --out m.pt2"),
    ("finished/checkpoints/last.pt", "torch", "resume finished trainer.epochs=9"),
    ("run/checkpoints/last.pt", "torch", "resume run"),
    ("finished/predictions.npz", "archive", "ensemble finished sweep/0000 --out votes"),
    ("sweep/0000/predictions.npz", "archive", "ensemble sweep --out votes"),
    ("finished/predictions.npz", "archive", "compare finished"),
    ("finished/probe.npz", "archive", "predict finished images.npy --out p.csv"),
    ("finished/identity.npz", "archive", "predict finished images.npy --out p.csv"),
    ("ensemble/predictions.npz", "archive", "compare ensemble"),
    ("sweep/study.journal", "pickle", "resume sweep"),
    ("finished/result.json", "pickle", "compare finished run"),
    ("finished/config.yaml", "yaml", "diff finished run"),
    ("finished/config.yaml", "yaml", "train --from finished run.dir=new"),
    ("sweep/sweep.yaml", "yaml", "resume sweep"),
    ("sweep/sweep.yaml", "yaml", "compare sweep"),
    ("ensemble/ensemble.yaml", "yaml", "predict ensemble images.npy --out p.csv"),
    ("finished/metrics.csv", "pickle", "board finished --out b.html"),
]
STORED += [(f"finished/{name}.npz", "archive", "report finished") for name in ("showcase", "histograms", "predictions")]
SLOW = ("report", "ensemble", "resume sweep", "resume finished", "export", "board")  # they draw or train
CONTENT: dict[str, Callable[[], bytes]] = {
    "pickle": evil_pickle,
    "torch": evil_torch,
    "archive": lambda: evil_archive(*ARRAYS),
    "yaml": lambda: b"x: !!python/object/apply:os.system ['touch PWNED']\n",
}


@pytest.mark.parametrize(
    ("name", "kind", "route"),
    [pytest.param(*one, marks=[pytest.mark.slow] * one[2].startswith(SLOW), id=f"{one[0]} {one[2]}") for one in STORED],
)
def test_a_stored_file(name: str, kind: str, route: str, theirs: Path, harmless: Callable[..., Outcome]) -> None:
    (theirs / name).write_bytes(CONTENT[kind]())
    harmless(*route.split())


@pytest.mark.slow
def test_files_of_data_and_weights(theirs: Path, harmless: Callable[..., Outcome]) -> None:
    for name, kind in {"w.pt": "torch", "w.pth": "pickle", "w.safetensors": "pickle", "x.npz": "archive"}.items():
        (theirs / name).write_bytes(CONTENT[kind]())
    for name in ("x.npy", "y.npy"):
        (theirs / name).write_bytes(evil_array())
    (theirs / "images2.npz").write_bytes(evil_archive("x", "y"))
    for words in (
        ("dataset=arrays", "dataset.path=x.npz"),
        ("dataset=arrays", "dataset.path=images2.npz"),
        ("dataset=arrays", "dataset.x=x.npy", "dataset.y=y.npy"),
        ("trainer.start_from=w.pt",),
        ("trainer.start_from=w.pth",),
        ("trainer.start_from=w.safetensors",),
        ("model=torchvision", "model.name=resnet18", "model.weights=w.pt"),
    ):
        assert harmless("train", *[w for w in TINY if "width" not in w], *words).code != 0
    for words in (
        "predict finished x.npy --out p.csv",
        "predict finished images2.npz --out p.csv",
        "embed finished x.npy",
    ):
        assert harmless(*words.split()).code != 0


def test_pickles_in_caches(theirs: Path, harmless: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("outputs/.teachers", "outputs/.receipts"):
        (theirs / folder).mkdir(parents=True)
    for name in ("a.npz", "0" * 64 + ".npz"):
        (theirs / "outputs/.teachers" / name).write_bytes(evil_archive("targets"))
    from dlrun.folders import memo

    monkeypatch.setattr(memo, "TEACHERS", theirs / "outputs/.teachers")
    with watched(theirs) as seen:
        assert memo.read_targets("a") is None
    assert seen.bad == []
    harmless("compare", "run")


@pytest.mark.slow
def test_names_that_lead_out(theirs: Path, harmless: Callable[..., Outcome]) -> None:
    home = write(theirs.parent / f"{theirs.name}-home/secret.txt", "mine")
    up = f"../{theirs.name}-home"
    result = json.loads((theirs / "finished/result.json").read_text())
    result |= {"name": f"{up}/x", "code": {"files": {f"../{up}/secret.txt": "0", str(home): "0"}}, "weights": up}
    write(theirs / "finished/result.json", json.dumps(result))
    plain = yaml.safe_load((theirs / "run/config.yaml").read_text())
    change(theirs / "run/config.yaml", run={"dir": up, "name": f"{up}/y"}, sweep={"dir": up})
    change(theirs / "run/config.yaml", choices={**plain["choices"], "model": f"../{up}/secret", f"../{up}": "secret"})
    members = [
        {"run": "../finished", "checkpoint": f"../../{up}/secret.txt"},
        {"run": "../finished", "checkpoint": str(home)},
    ]
    change(theirs / "ensemble/ensemble.yaml", members=members)
    for words in (
        *("predict ensemble images.npy --out p.csv", "predict finished images.npy --out q.csv"),
        *("compare .", "rm ensemble --yes"),
        f"train --from run run.name={up}/z check=none trainer.epochs=1 trainer.report=false dataset.limit=60",
        f"train experiment={up}/x",
        f"train -cn {up}/x",
    ):
        harmless(*words.split())
    assert [file.name for file in home.parent.iterdir()] == ["secret.txt"]
    assert home.read_text() == "mine"


@pytest.mark.slow
def test_names_in_a_table_of_images(theirs: Path, harmless: Callable[..., Outcome]) -> None:
    home = write(theirs.parent / f"{theirs.name}-photos/a.png", "mine")
    rows = [f"../{home.parent.name}/a.png,cat", f"{home},dog", "$(touch PWNED).png,cat", "`touch PWNED`,=cmd|'/C x'!A0"]
    write(theirs / "their.csv", "id,label\n" + "\n".join([*rows, "../../../etc/passwd,cat"]) + "\n")
    words = ("dataset=table", "dataset.csv=their.csv", "dataset.images=.", "dataset.on_bad=drop", "run.dir=new")
    harmless("train", *[word for word in TINY if "width" not in word], *words)
    assert home.read_text() == "mine"


def test_load_from_python(theirs: Path) -> None:
    (theirs / "finished/checkpoints/best.pt").write_bytes(evil_torch())
    with watched(theirs) as seen, pytest.raises(UserError, match=r"best\.pt"):
        package.load("finished")
    assert seen.bad == []


SHADOWS = (
    "json",
    "numpy",
    "torch",
    "yaml",
    "hydra",
    "timm",
    "torchvision",
    "sitecustomize",
    "usercustomize",
    "logging",
)


def test_modules_beside_the_command(here: Path) -> None:
    """Files of the current folder named like installed modules, and plugins of Hydra, in new processes."""
    code = "import pathlib\nwith open({!r}, 'a') as file:\n    file.write(__name__ + ' ')\n".format(str(here / "PWNED"))
    for name in SHADOWS:
        write(here / f"{name}.py", code)
    write(here / "hydra_plugins/evil/__init__.py", code)
    write(here / "conf/experiment/mine.yaml", "seed: 2\n")
    root = str(Path(package.__file__).parents[1])
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"} | {"PYTHONPATH": root}
    commands = [["-m", "dlrun", "train", "--cfg", "job"]]
    if sys.version_info >= (3, 11):
        commands.append(
            ["-c", "import sys; del sys.path[0]; from dlrun.cli import main; main()", "train", "-m", "x=1,2"]
        )
    for words in commands:
        done = subprocess.run([sys.executable, *words], cwd=here, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode in (0, 2), done.stderr
        assert not (here / "PWNED").exists(), (here / "PWNED").read_text()


def test_workers_of_a_sweep_start_without_the_current_folder(here: Path) -> None:
    from dlrun.search.launchers.pool import CODE

    write(here / "json.py", f"open({str(here / 'PWNED')!r}, 'w')")
    code = CODE.replace("from dlrun.search.launchers.job import main; main(", "print(")
    assert code != CODE
    words = [sys.executable, "-c", code, "1", "2", json.dumps(sys.path)]
    done = subprocess.run(words, cwd=here, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1 2\n"
    assert not (here / "PWNED").exists()
