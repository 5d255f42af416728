"""Setups rebuilt from public reports, which lie beside the repository: the faulty one is marked, the repaired one not.

Each file of ../shared/cases/bugs has COMMON, BUGGY and FIXED, overrides of `dlrun check`, and may have prepare(fixed),
which writes its data. Some read CIFAR-10 from $CIFAR10 and scenes from $SCENES, folders of images. $CASES is another
folder of such files.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from support.commands import Outcome

CASES = Path(os.environ.get("CASES") or Path(__file__).parents[3] / "shared/cases/bugs")
FILES = sorted(CASES.glob("*.py"))
# the check that has to mark the faulty setup; a file that is not here is marked by any
NAMED = {
    "c01_batch_norm_of_one": "batch_norm",
    "c02_accumulation_starves_batch_norm": "batch_norm",
    "c03_mnasnet_running_statistics": "batch_norm",
    "d01_reshape_not_transpose": "inputs splits layout",
    "d03_val_bgr": "splits",
    "d07_twelve_bits_in_png16": "splits inputs",
    "d09_mixup_other_permutation": "mixture",
    "l01_focal_of_the_mean": "loss_terms",
    "m05_layers_shared_by_accident": "structure",
    "m07_dropout_keep_probability": "flow",
    "m09_divided_by_255_again": "reach",
    "o01_decay_of_the_wrong_sign": "updates descent",
    "o03_rate_decays_to_nothing": "schedule",
    "o06_clipped_to_nothing": "trial_steps",
}
SOUND = {"lint_bias", "data_duplicates"}  # true of a sound setup: a bias that a norm cancels, copies among the scenes


def found(dlrun: Callable[..., Outcome], here: Path, file: Path, fixed: bool) -> dict[str, str]:
    """The status of each check that is no pass, by name."""
    here = here / ("fixed" if fixed else "buggy")
    here.mkdir()
    os.chdir(here)
    shutil.copy(file, here)
    module = _loaded(file)
    if hasattr(module, "prepare"):
        module.prepare(fixed)
    words = [word.replace("MOD", file.stem) for word in module.COMMON + (module.FIXED if fixed else module.BUGGY)]
    words += ["check.fresh=true", "check.budget=6000", "trainer.threads=1", f"trust=[{file.stem}]"]
    done = dlrun("check", "--json", *words)
    assert done.out.startswith("["), done.err
    return {row["check"]: row["status"] for row in json.loads(done.out) if row["status"] in ("fail", "warn")}


def _loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"case_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason="the cases lie in ../shared, beside the repository")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_faulty_setup_of_others_is_marked_and_the_repaired_one_is_not(
    dlrun: Callable[..., Outcome], here: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CIFAR10", "SCENES"):
        if f'"{name}"' in file.read_text() and not Path(os.environ.get(name, "")).joinpath("train").is_dir():
            pytest.skip(f"needs ${name}, a folder of images with train/ and test/ in it")
    repaired = found(dlrun, here, file, fixed=True)
    assert set(repaired) <= SOUND, repaired
    if file.stem.startswith("h"):  # sound, and once refused
        return
    for name in [*sys.modules]:
        if name == file.stem:
            monkeypatch.delitem(sys.modules, name)
    marked = set(found(dlrun, here, file, fixed=False)) - set(repaired)
    assert marked & set(NAMED.get(file.stem, " ".join(marked)).split()), marked
