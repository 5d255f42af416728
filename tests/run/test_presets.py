"""The presets for pretrained networks, from the command to predictions, with weights from a file (M3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from dlrun.folders import reading

NAME = "shufflenet_v2_x0_5"
QUICK = ("dataset.root=photos", "dataset.image_size=32", "trainer.threads=1", "trainer.report=false", "check=none")


@pytest.fixture
def photos(here: Path) -> Path:
    """Bright and dark photographs, and a file of weights."""
    rng = np.random.default_rng(0)
    for label, level in (("day", 170), ("night", 40)):
        for split, count in (("train", 14), ("test", 3)):
            for number in range(count):
                file = here / "photos" / split / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((level + rng.integers(0, 60, (32, 32, 3))).astype(np.uint8)).save(file)
    torch.manual_seed(0)
    model = torchvision.models.get_model(NAME).train()
    with torch.no_grad():
        for _ in range(40):
            model(torch.randn(8, 3, 32, 32))  # statistics of norms that fit its weights
    torch.save(model.state_dict(), here / "weights.pt")
    return here


@pytest.mark.parametrize(
    ("preset", "more"),
    [
        ("linear_probe", ("trainer.epochs=12",)),
        pytest.param("finetune", ("trainer.epochs=3", "trainer.diagnostics=false"), marks=pytest.mark.slow),
    ],
)
def test_a_preset_needs_photos_and_weights_alone(
    dlrun: Callable[..., Any], photos: Path, preset: str, more: tuple[str, ...]
) -> None:
    model = (f"model.name={NAME}", "model.weights=weights.pt")
    found = dlrun("train", f"experiment={preset}", *model, *QUICK, *more, "run.dir=run")
    assert found.code == 0, found.err
    assert preset == "finetune" or reading.stored(photos / "run")["test_acc"] >= 5 / 6  # that takes three steps here
    now, start = torch.load(photos / "run/checkpoints/last.pt")["model"], torch.load(photos / "weights.pt")
    kept = all(torch.equal(now[name], start[name]) for name in now if not name.startswith("fc."))
    assert kept is (preset == "linear_probe")
    assert dlrun("predict", "run", "photos/test/day", "--out", "said.csv").code == 0
    assert len((photos / "said.csv").read_text().splitlines()) == 4
