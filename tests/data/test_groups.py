"""Groups of images, such as those of a patient, are never in two splits, and classes are divided as they allow."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.checks.audit import data_audit
from dlrun.config.settings import Settings
from dlrun.data import prepare
from dlrun.data.files import image_folder
from dlrun.data.groups import carve_groups, fold_of_groups
from dlrun.data.table import table
from dlrun.errors import UserError
from dlrun.vocabulary import Outcome

KEYS = {"val_fraction": 0.2, "test_fraction": 0.2, "split_seed": 0}


def patients(count: int = 40, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Labels and groups of some hundred samples: groups of 1 to 20 with one to three classes, the rarest in 8 %."""
    made = np.random.default_rng(seed)
    sizes = made.integers(1, 21, count)
    groups = np.repeat([f"p{k}" for k in range(count)], sizes)
    likely = np.repeat(made.dirichlet((0.6, 0.3, 0.1), count), sizes, axis=0)
    return torch.from_numpy((made.random((len(groups), 1)) > likely.cumsum(1)[:, :2]).sum(1)), groups


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.15, 0.25, 0.4, 0.5, 0.8])
def test_whole_groups_are_carved(seed: int, fraction: float) -> None:
    labels, groups = patients(seed=seed)
    rest, chosen = carve_groups(labels, groups, fraction, seed, "val")
    assert sorted([*rest.tolist(), *chosen.tolist()]) == [*range(len(labels))]
    assert not {*groups[rest]} & {*groups[chosen]}
    assert {*labels[rest].tolist()} == {*labels.tolist()}
    assert abs(len(chosen) / len(labels) - fraction) < 0.08
    again = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    assert {*groups[again][carve_groups(labels[again], groups[again], fraction, seed, "val")[1]]} == {*groups[chosen]}


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_of_whole_groups_and_stratified(seed: int) -> None:
    labels, groups = patients(seed=seed)
    fold = fold_of_groups(labels, groups, 5, seed).numpy()
    assert all(len({*fold[groups == name]}) == 1 for name in groups)
    shares = [np.bincount(labels.numpy()[fold == k], minlength=3) / (fold == k).sum() for k in range(5)]
    assert np.abs(np.array(shares) - np.bincount(labels) / len(labels)).max() < 0.15
    assert [*np.unique(fold)] == [0, 1, 2, 3, 4]


def test_a_group_that_alone_has_a_class_always_trains() -> None:
    labels = torch.tensor([0, 1, 2, 2, 0, 1, 0, 1, 0, 1])
    groups = np.array(["a", "a", "a", "a", "b", "b", "c", "c", "d", "d"])
    assert fold_of_groups(labels, groups, 3, 0)[:4].tolist() == [-1] * 4
    for seed in range(5):
        assert {0, 1, 2, 3} <= {*carve_groups(labels, groups, 0.3, seed, "test")[0].tolist()}


def test_too_few_groups_are_named() -> None:
    with pytest.raises(UserError, match="1 groups"):
        carve_groups(torch.tensor([0, 1, 0, 1]), np.array(["a"] * 4), 0.2, 0, "test")


@pytest.fixture
def bursts(tmp_path: Path) -> Path:
    """Thirty bursts of four images in two classes, and a table of them whose splits divide the burst 03."""
    rows = ["file,label,burst,split"]
    for number in range(30):
        for shot in range(4):
            name = f"{'cat' if number % 2 else 'dog'}/b{number:02}_{shot}.png"
            (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([number, shot]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name)
            split = "val" if number % 5 == 0 or (number == 3 and shot == 2) else "test" if number % 5 == 1 else "train"
            rows.append(f"{name},{name[:3]},{number:02},{split}")
    (tmp_path / "photos/all.csv").write_text("\n".join(rows))
    return tmp_path / "photos"


@pytest.mark.parametrize("more", [{}, {"folds": 3, "fold": 1}, {"split": "position"}, {"limit": 60}])
def test_a_pattern_on_file_names_keeps_bursts_whole(bursts: Path, more: dict[str, object]) -> None:
    data = prepare(image_folder(str(bursts), group_pattern=r"/(b\d+)_"), **{**KEYS, **more})  # type: ignore[arg-type]
    splits = [{Path(name).name[:3] for name in part.ids} for part in (data.train, data.val, data.test())]
    assert all(splits)
    assert [splits[0] & splits[1], splits[0] & splits[2], splits[1] & splits[2]] == [set(), set(), set()]


def test_a_group_that_the_table_divides_fails_the_audit(bursts: Path) -> None:
    def audited(**keys: str) -> tuple[Outcome, str]:
        data = prepare(table(str(bursts / "all.csv"), **keys), **KEYS)  # type: ignore[arg-type]
        found = data_audit(SimpleNamespace(data=data, num_classes=2, cfg=Settings.of({"dataset": {"limit": 0}})))
        return found.status, found.message

    status, said = audited()
    assert status == Outcome.FAIL
    assert "group 03 (train, val)" in said
    assert audited(split_column="none")[0] == audited(group_column="none")[0] == Outcome.PASS
