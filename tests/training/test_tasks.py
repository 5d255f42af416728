"""Several labels per image, a head for each over one trunk: scores, checks, resume, predictions, refusals (M11)."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dlrun.checks.heads import EACH, ONCE, judged
from dlrun.checks.runner import CHECKS
from dlrun.data.carving import carve
from dlrun.data.table import table
from dlrun.data.tasks import Tasks
from dlrun.errors import UserError
from dlrun.reports.score_tables import by_target
from dlrun.training import loop, tasks
from dlrun.training.experiment import Experiment, build
from dlrun.vocabulary import Outcome as Judged
from support.commands import Outcome
from support.composed import composed

QUIET = ("model=mlp", "model.width=8", "trainer.threads=1", "trainer.report=false", "trainer.batch_size=32")
DATA = ("dataset=table", "dataset.csv=t.csv", "dataset.images=images", "dataset.cache=none")
WORDS = (*DATA, "dataset.targets=[species,age_group]", *QUIET)
UNDECIDED = {"mixture"}
TWO = Tasks(("species", "age_group"), (("cat", "dog", "owl"), ("old", "young")))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose colour is the species and whose upper half is brighter if the animal is young."""
    top = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for n in range(120):
        pixels = draw.integers(0, 60, (8, 8, 3)).astype(np.uint8)
        pixels[:, :, n % 3] += 120
        pixels[:4] += np.uint8(70 * (n // 3 % 2))
        Image.fromarray(pixels).save(top / f"{n:03}.png")
    return top


@pytest.fixture
def animals(here: Path, photos: Path) -> Path:
    """A folder with their table, t.csv."""
    (here / "images").symlink_to(photos)
    rows = [f"{n:03},{TWO.classes[0][n % 3]},{TWO.classes[1][n // 3 % 2]}" for n in range(120)]
    (here / "t.csv").write_text("\n".join(["id,species,age_group", *rows]))
    return here


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def rows_of(file: Path) -> list[dict[str, str]]:
    return [*csv.DictReader(file.read_text().splitlines())]


def test_codes_stand_for_the_classes_of_every_task_and_for_no_logit() -> None:
    columns = np.array([[s, a] for s in range(3) for a in range(2)])
    codes = TWO.codes(columns)
    assert TWO.columns(codes).tolist() == columns.tolist()
    assert len(set(codes.tolist())) == 6
    assert int(codes.min()) == len(TWO.outputs) == 5
    assert TWO.word(int(codes[3])) == "dog, young"
    assert Tasks.of(TWO.record()) == TWO
    with pytest.raises(UserError, match="2\\^31"):
        Tasks(tuple(map(str, range(32))), (("a", "b"),) * 32)


@pytest.mark.parametrize(("loss", "chances"), [("cross_entropy", (math.log(3), math.log(2))), ("hinge", (2, 1))])
def test_chance_is_the_weighted_sum_of_those_of_the_heads(animals: Path, loss: str, chances: tuple[float, ...]) -> None:
    exp = build(composed(*WORDS, f"loss={loss}", "loss.weights=[1,0.5]"))
    expected = chances[0] + 0.5 * chances[1]
    y = exp.data.train.labels
    assert float(exp.loss(torch.zeros(len(y), 5), y)) == pytest.approx(expected, abs=1e-5)
    assert exp.loss.chance(5) == pytest.approx(expected)  # type: ignore[operator]
    species, age = exp.loss.each(torch.zeros(len(y), 5), y)  # type: ignore[operator]
    assert (float(species), float(age)) == pytest.approx(chances, abs=1e-5)


def test_every_class_of_every_task_is_in_train_and_val_and_other_images_move_none(animals: Path) -> None:
    def divided() -> tuple[Experiment, set[str]]:
        exp = build(composed(*WORDS))
        return exp, set(exp.data.val.ids)

    (exp, before), file = divided(), animals / "t.csv"
    for split in (exp.data.train, exp.data.val):
        assert all(min(counts) > 0 for counts in TWO.counts(split.labels))
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-9]))
    left = {Path(line.split(",")[0]).stem for line in lines[-9:]}
    assert {one for one in before if Path(one).stem not in left} == divided()[1]


def test_dividing_by_several_columns_keeps_every_class_in_train() -> None:
    for seed in range(50):
        labels = np.random.default_rng(seed).integers(0, 5, (14, 3))
        rest, chosen = carve(torch.from_numpy(labels), 0.5, seed, "val", [bytes([n]) for n in range(14)])
        assert sorted([*rest.tolist(), *chosen.tolist()]) == [*range(14)]
        for column in labels.T:
            assert {*column[rest].tolist()} == {*column.tolist()}


def test_scores_per_task_and_their_mean_in_metrics_result_and_compare(
    animals: Path, dlrun: Callable[..., Outcome]
) -> None:
    done = dlrun("train", *WORDS, "check=none", "trainer.epochs=2", "loss.weights=[1,0.5]", "run.dir=r")
    assert done.code == 0, done.err
    rows = rows_of(animals / "r/metrics.csv")
    for row in rows:
        values = {name: float(value or "nan") for name, value in row.items()}
        assert values["val_acc"] == pytest.approx((values["val_species_acc"] + values["val_age_group_acc"]) / 2)
        summed = values["val_species_loss"] + values["val_age_group_loss"] / 2
        assert values["val_loss"] == pytest.approx(summed, abs=1e-5)
    found = result(animals / "r")
    with np.load(animals / "r/predictions.npz") as arrays:
        assert "test_labels" not in arrays
        logits, targets = arrays["test_logits"], arrays["test_targets"]
    right = [logits[:, :3].argmax(1) == targets[:, 0], logits[:, 3:].argmax(1) == targets[:, 1]]
    assert found["test_species_acc"] == found["tasks"]["species"]["test_acc"] == pytest.approx(right[0].mean())
    assert found["test_age_group_acc"] == pytest.approx(right[1].mean())
    assert found["test_acc"] == pytest.approx(np.mean(right))
    for name in ("macro_f1", "auc", "ece"):
        each = [one[f"test_{name}"] for one in found["tasks"].values()]
        assert found[f"test_{name}"] == pytest.approx(sum(each) / 2)
    assert [row["class"] for row in rows_of(animals / "r/per_class.csv")] == TWO.outputs
    shown = dlrun("compare", "r", "--columns", "val_acc,test_age_group_acc")
    assert "test_age_group_acc" in shown.out
    assert by_target(found).count("age_group") == 1


def test_a_resumed_run_is_the_same_bit_for_bit(animals: Path, dlrun: Callable[..., Outcome]) -> None:
    words = ("train", *WORDS, "check=none", "trainer.epochs=4", "trainer.ema=0.9", "loss.weights=[1,2]")
    assert dlrun(*words, "run.dir=whole").code == 0
    assert dlrun(*words, "run.dir=parts", "trainer.stop_after=2").code == 0
    assert dlrun("resume", "parts").code == 0
    with np.load("whole/predictions.npz") as one, np.load("parts/predictions.npz") as other:
        for name in one.files:
            assert np.array_equal(one[name], other[name]), name
    states = [torch.load(f"{name}/checkpoints/last.pt", weights_only=True)["model"] for name in ("whole", "parts")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_counts_the_share_of_tasks_that_are_right(animals: Path, accumulate: int) -> None:
    exp = build(composed(*WORDS, f"trainer.accumulate={accumulate}", "optimizer.lr=1e-9", "model.norm=none"))
    x, y, index = next(exp.train.epoch(1))
    logits = exp.model.train()(x).detach()
    parts = zip(TWO.split(logits), TWO.columns(y).unbind(1), strict=True)
    hits = torch.stack([part.argmax(1) == label for part, label in parts]).double().mean(0)
    done = loop.step(exp, loop.Batch(x, y, index))
    assert float(done.correct) == pytest.approx(float(hits.sum()))
    assert float(done.loss) / len(y) == pytest.approx(float(exp.loss(logits, y)), abs=1e-5)


class Detached(nn.Module):
    """A network whose second head is fed a trunk that learns nothing from it."""

    def __init__(self, through: bool) -> None:
        super().__init__()
        self.trunk, self.through = nn.Linear(8 * 8 * 3, 16), through
        self.species, self.age = nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        middle = torch.relu(self.trunk(x.flatten(1)))
        return torch.cat([self.species(middle), self.age(middle if self.through else middle.detach())], 1)


def test_a_head_that_does_not_reach_the_trunk_fails_by_name(animals: Path) -> None:
    exp = build(composed(*WORDS))
    verdicts = [judged(CHECKS["reach"], replace(exp, model=Detached(through)), 60) for through in (True, False)]
    assert [one.status for one in verdicts] == [Judged.PASS, Judged.FAIL]
    assert verdicts[1].message.startswith("age_group: ")


def test_the_checks_know_every_head(animals: Path, dlrun: Callable[..., Outcome]) -> None:
    chosen = "labels,class_balance,loss,loss_terms,mixture,initial_loss,overfit"
    done = dlrun("check", *WORDS, "check.fresh=true", f"check.only=[{chosen}]", "--json")
    found = {row["check"]: row for row in json.loads(done.out)}
    assert done.code == 0
    assert {name for name, row in found.items() if row["status"] == Judged.FAIL} == set()
    assert found["initial_loss"]["expected"].split(";")[-1].split()[0] == f"{math.log(6):.3f}"
    for name in {"loss", "loss_terms", "overfit", "labels"}:
        assert found[name]["status"] == Judged.PASS
        assert "species" in found[name]["value"]
        assert "age_group" in found[name]["value"]
    assert {name for name in found if found[name]["value"] == "several targets"} == UNDECIDED
    assert CHECKS.keys() - {*EACH.split(), *ONCE.split()} == UNDECIDED


def test_predict_and_evaluate_answer_for_every_task(animals: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", *WORDS, "check=none", "trainer.epochs=3", "run.dir=r").code == 0
    assert dlrun("predict", "r", "images", "--out", "p.csv").code == 0
    rows = rows_of(animals / "p.csv")
    assert len(rows) == 120
    for row in rows[:20]:
        for name, classes in TWO.record().items():
            shares = [float(row[f"p_{name}={one}"]) for one in classes]
            assert sum(shares) == pytest.approx(1, abs=1e-5)
            assert row[name] == classes[int(np.argmax(shares))]
            assert float(row[f"{name}_confidence"]) == max(shares)
    assert dlrun("evaluate", "r", "--out", "own").code == 0
    own, trained = result(animals / "own"), result(animals / "r")
    assert own["largest_difference_from_stored_logits"] == 0
    for name in ("test_acc", "test_macro_f1", "test_auc"):
        assert own[name] == pytest.approx(trained[name])
        assert own["tasks"]["species"][name] == pytest.approx(trained["tasks"]["species"][name])
    log_loss = sum(one["test_loss"] for one in own["tasks"].values())
    assert own["test_loss"] == pytest.approx(log_loss) == pytest.approx(trained["test_loss"], abs=1e-4)
    # a table with the classes in another order, and one class missing
    text = "\n".join(["id,age_group,species", "000,old,cat", "003,young,cat", "002,old,owl"])
    (animals / "u.csv").write_text(text)
    done = dlrun("evaluate", "r", "u.csv", "--images", "images", "--out", "other")
    assert done.code == 0, done.err
    with np.load(animals / "other/predictions.npz") as arrays:
        assert arrays["test_targets"].tolist() == [[0, 0], [0, 1], [2, 0]]
    (animals / "u.csv").write_text(text.replace("owl", "owls"))
    done = dlrun("evaluate", "r", "u.csv", "--images", "images")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "'owls'" in done.err


WRONG = {  # what is typed, a change of the table, and what the message names
    "unknown column": ("dataset.targets=[species,colour]", "", "colour"),
    "one word": ("dataset.targets=species", "", "dataset.targets"),
    "too few weights": ("dataset.targets=[species,age_group] loss.weights=[1]", "", "loss.weights"),
    "a weight is missing": ("dataset.targets=[species,age_group] loss.weights={species:1}", "", "age_group"),
    "a weight too many": ("dataset.targets=[species,age_group] loss.weights={species:1,hue:2}", "", "hue"),
    "monitors no target": ("dataset.targets=[species,age_group] trainer.monitor=val_hue_acc", "", "val_species_acc"),
    "monitors a target of none": ("trainer.monitor=val_species_acc", "", "val_balanced_acc"),
    "a label is missing": ("dataset.targets=[species,age_group]", "005,owl,young:005,owl,", "005"),
    "a class alone": ("dataset.targets=[species,age_group]", "young:old", "age_group"),
}


def test_weights_of_the_targets_by_name(animals: Path) -> None:
    by_name = build(composed(*WORDS, "loss.weights={age_group: 0.5, species: 1}"))
    in_order = build(composed(*WORDS, "loss.weights=[1,0.5]"))
    _, y, _ = next(by_name.train.epoch(1))
    logits = torch.randn(len(y), 5, generator=torch.Generator().manual_seed(0))
    assert by_name.loss(logits, y) == in_order.loss(logits, y)
    assert by_name.loss(logits, y) != build(composed(*WORDS, "loss.weights=[0.5,1]")).loss(logits, y)


@pytest.mark.parametrize("column", ["val_age_group_acc", pytest.param("val_species_loss", marks=pytest.mark.slow)])
def test_one_target_decides_which_epoch_is_best(column: str, animals: Path, dlrun: Callable[..., Outcome]) -> None:
    words = ("check=none", "trainer.epochs=5", "optimizer.lr=0.05", f"trainer.monitor={column}", "run.dir=r")
    done = dlrun("train", *WORDS, *words)
    assert done.code == 0, done.err
    with open("r/metrics.csv", newline="") as file:
        values = [float(row[column]) for row in csv.DictReader(file)]
    result = json.loads((animals / "r/result.json").read_text())
    best = min(values) if column.endswith("loss") else max(values)
    assert values[result["best_epoch"] - 1] == best
    assert result["monitor"] == column


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(case: str, animals: Path, dlrun: Callable[..., Outcome]) -> None:
    typed, change, named = WRONG[case]
    if change:
        file = animals / "t.csv"
        file.write_text(file.read_text().replace(*change.split(":")))
    done = dlrun("train", *DATA, *QUIET, "check=none", "run.dir=r", *typed.split())
    assert done.code == 2
    assert named in done.err
    assert done.err.count("\n") == 1


COLUMNS: dict[str, dict[str, Any]] = {
    "dataset.label_column=species": {"targets": ["species"]},
    "species is named twice": {"targets": ["species", "species"]},
    "dataset.label_column": {"targets": ["species", "age_group"], "label_column": "species"},
    "val_balanced_acc": {"targets": ["species", "balanced"]},
}


@pytest.mark.parametrize("named", COLUMNS)
def test_columns_that_cannot_be_targets(named: str, animals: Path) -> None:
    file = animals / "t.csv"
    first, *rows = file.read_text().splitlines()
    file.write_text("\n".join([f"{first},balanced", *(f"{row},old" for row in rows)]))
    with pytest.raises(UserError, match=named):
        table("t.csv", "images", **COLUMNS[named])


UNFIT = ("loss.weights=[1,0]", "loss.weights=[1]", "loss.weight=balanced", "objective=mixup", "objective=adversarial")
UNFIT += ("model.output_bias=frequency", "dataset.balance=true")


@pytest.mark.parametrize("word", UNFIT)
def test_what_needs_one_label_is_refused(word: str) -> None:
    cfg = composed(word)
    data = SimpleNamespace(tasks=TWO, balance=cfg.dataset["balance"])
    with pytest.raises(UserError, match=word.partition("=")[0]):
        tasks.must_suit(cfg, data)  # type: ignore[arg-type]


def test_weights_need_targets() -> None:
    with pytest.raises(UserError, match=r"dataset\.targets"):
        tasks.must_suit(composed("loss.weights=[1,1]"), SimpleNamespace(tasks=None))  # type: ignore[arg-type]


def test_rows_without_a_label_are_omitted_if_asked(animals: Path) -> None:
    file = animals / "t.csv"
    file.write_text(file.read_text().replace("005,owl,young", "005,owl,NaN"))
    exp = build(composed(*WORDS, "dataset.on_bad=drop"))
    assert [(Path(one.id).stem, "age_group" in one.reason) for one in exp.data.dropped] == [("005", True)]


def test_what_knows_one_label_per_image_refuses_the_run(animals: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", *WORDS, "check=none", "trainer.epochs=2", "trainer.keep=all", "run.dir=r").code == 0
    commands = (
        *("ensemble r r", "ensemble r --members checkpoints", "export r --to torch_export"),
        *("predict r images --like t.csv", "evaluate r --adversarial 2"),
        *(("suspects r",) if find_spec("cleanlab") else ()),  # an extra
    )
    for command in commands:
        done = dlrun(*command.split())
        assert (done.code, done.err.count("\n")) == (2, 1), (command, done.err)
        assert "species" in done.err or "targets" in done.err, (command, done.err)
