"""`dlrun evaluate`: the stored logits to the last bit, scikit-learn's scores, classes by name, what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from dlrun import load
from dlrun.data.arrays import arrays as arrays_of
from dlrun.ensembles.votes import softmax
from dlrun.errors import UserError
from dlrun.inference import labelled
from support.commands import Outcome

# 64 channels and 32 pixels: bf16 where the processor has it
WORDS = (
    "dataset=image_folder", "dataset.root=photos", "dataset.image_size=32", "model=cnn", "model.width=16",
    "model.depth=3", "check=none", "trainer.epochs=2", "trainer.threads=1", "trainer.report=false",
    "trainer.eval_batch_size=16", "trainer.diagnostics=false", "trainer.keep=last",
)  # fmt: skip
NAMES = ("ant", "bee", "cow")


def picture(path: Path, kind: int, seed: int) -> None:
    """A noisy photo of one of three kinds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(90 + 20 * kind, 60, (40, 36, 3))
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in train/ and test/ (11 images per class: 33 are two batches and one more), two runs on them."""
    from dlrun.folders.run import claim
    from dlrun.run.execute import execute
    from support.composed import composed

    top, before = tmp_path_factory.mktemp("evaluated"), os.getcwd()
    os.chdir(top)
    try:
        for kind, name in enumerate(NAMES):
            for k in range(14):
                picture(top / f"photos/train/{name}/{k:02}.png", kind, 100 * kind + k)
            for k in range(11):
                picture(top / f"photos/test/{name}/{k:02}.png", kind, 1000 + 100 * kind + k)
        for seed in (1, 2):
            assert execute(composed(*WORDS, f"seed={seed}"), claim(f"run{seed}", "test"), quiet=True) == 0
    finally:
        os.chdir(before)
    return top


@pytest.fixture
def work(made: Path, here: Path) -> Path:
    """A copy of them to be in."""
    shutil.copytree(made, here, dirs_exist_ok=True)
    return here


def arrays(folder: str) -> dict[str, Any]:
    with np.load(f"{folder}/predictions.npz") as found:
        return dict(found)


def rows(file: str) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize("words", [(), ("photos",), ("photos/test",)])
def test_on_its_own_test_images_a_run_gives_the_stored_logits(
    words: tuple[str, ...], work: Path, dlrun: Callable[..., Outcome]
) -> None:
    done = dlrun("evaluate", "run1", *words, "--out", "e")
    assert done.code == 0, done.err
    np.testing.assert_array_equal(arrays("e")["test_logits"], arrays("run1")["test_logits"])
    result, run = (json.loads((work / name / "result.json").read_text()) for name in ("e", "run1"))
    for name in ("acc", "macro_f1", "kappa", "auc", "ece", "mcc"):
        assert result[f"test_{name}"] == run[f"test_{name}"]
    assert result.get("largest_difference_from_stored_logits") == (None if words else 0.0)
    assert result["seen"] == {}


def test_an_ensemble_gives_what_it_stored(work: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("ensemble", "run1", "run2", "--out", "votes").code == 0
    assert dlrun("evaluate", "votes", "photos", "--out", "e").code == 0
    np.testing.assert_array_equal(arrays("e")["test_logits"], arrays("votes")["test_logits"])
    result, votes = (json.loads((work / name / "result.json").read_text()) for name in ("e", "votes"))
    for name in ("acc", "loss", "balanced_acc", "auc", "ece"):
        assert result[f"test_{name}"] == pytest.approx(votes[f"test_{name}"], abs=1e-12)


def test_files_scores_and_page_of_an_evaluation(work: Path, dlrun: Callable[..., Outcome]) -> None:
    """Other classes' order, one class missing, a broken file, images that the run was trained on."""
    shutil.copytree("photos/train/cow", "mixed/cow")
    shutil.copytree("photos/test/ant", "mixed/ant")
    Path("mixed/ant/broken.png").write_bytes(b"none")
    done = dlrun("evaluate", "run1", "mixed", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    folder = result["folder"]
    assert Path(folder).parent == Path("outputs/evaluations")
    found = arrays(folder)
    y, p = found["test_labels"], found["test_logits"].argmax(1)
    assert result["test_samples"] == len(y) == 25
    assert {*found["test_ids"][y == 2].tolist()} == {f"cow/{k:02}.png" for k in range(14)}
    assert list(result["omitted"]) == ["mixed/ant/broken.png"]
    seen = result["seen"]
    assert seen["train"] + seen["val"] == 14
    assert result["test_balanced_acc"] == pytest.approx(metrics.balanced_accuracy_score(y, p))
    assert result["test_macro_f1"] == pytest.approx(metrics.f1_score(y, p, average="macro", zero_division=0))
    shares = softmax(found["test_logits"])
    assert result["test_loss"] == pytest.approx(metrics.log_loss(y, shares, labels=range(3)))
    table = metrics.confusion_matrix(y, p, labels=range(3))
    assert [[int(row[name]) for name in NAMES] for row in rows(f"{folder}/confusion.csv")] == table.tolist()
    each = {row["class"]: row for row in rows(f"{folder}/per_class.csv")}
    assert [each[name]["n"] for name in NAMES] == ["11", "0", "14"]
    assert sum(int(row["n"]) for row in rows(f"{folder}/calibration.csv")) == 25
    assert len(rows(f"{folder}/errors.csv")) == 25
    page = Path(f"{folder}/report.html").read_text()
    assert f"{result['test_macro_f1']:.4f}" in page
    assert "'bee'" in page or "&#x27;bee&#x27;" in page  # the class without an image
    assert "broken.png" in page
    assert page.count("<figcaption><b>") == (y != p).sum()  # the gallery of errors
    Path(f"{folder}/report.html").unlink()
    assert dlrun("report", folder).code == 0
    assert Path(f"{folder}/report.html").read_text() == page


def test_a_table_and_arrays_have_the_scores_of_the_folder(work: Path, dlrun: Callable[..., Outcome]) -> None:
    files = sorted(Path("photos/test").rglob("*.png"))
    lines = ["image,label", *(f"{f.relative_to('photos/test')},{f.parent.name}" for f in files)]
    Path("labels.csv").write_text("\n".join(lines) + "\n")
    Path("gone.csv").write_text("\n".join([*lines, "nowhere.png,ant"]) + "\n")
    done = dlrun("evaluate", "run1", "gone.csv", "--images", "photos/test")
    assert (done.code, "nowhere.png" in done.err, "on_bad" in done.err) == (2, True, False)
    for words in (("labels.csv", "--images", "photos/test", "--out", "t"), ("photos/test", "--out", "f")):
        done = dlrun("evaluate", "run1", *words)
        assert done.code == 0, done.err
    np.testing.assert_array_equal(arrays("t")["test_logits"], arrays("f")["test_logits"])
    words = ("dataset=digits", "dataset.limit=60", "model=mlp", "model.width=4", *WORDS[6:])
    assert dlrun("train", *words[:4], *(w for w in words[4:] if not w.startswith("model")), "run.dir=d").code == 0
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = x.reshape(-1, 8, 8)[y < 3][:40], y[y < 3][:40]
    np.savez("x.npz", x=x.astype(np.float32), y=y)
    np.savez("scaled.npz", x=np.zeros((4, 9, 9), np.float32), y=np.arange(4))
    done = dlrun("evaluate", "d", "x.npz", "--out", "a")
    assert done.code == 0, done.err
    assert json.loads(Path("a/result.json").read_text())["test_samples"] == 40
    assert (arrays("a")["test_labels"] == y).all()
    np.savez("far.npz", x=x[:4], y=np.arange(4) + 9)
    done = dlrun("evaluate", "d", "far.npz")
    assert (done.code, "far.npz" in done.err, "label 12" in done.err, done.err.count("\n")) == (2, True, True, 1)
    done = dlrun("evaluate", "d", "scaled.npz")
    assert (done.code, "scaled.npz" in done.err, "9×9" in done.err, done.err.count("\n")) == (2, True, True, 1)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("nowhere",), "nowhere"),
        (("photos", "--split", "val"), "--split test"),
        (("photos/test", "--split", "val"), "--split"),
        (("other",), "'ants' 'ant'"),
        (("photos", "--out", "run1"), "--out"),
        (("photos", "--images", "x"), "--images"),
        (("photos/test/ant",), "<class>"),
        (("photos/test/ant/00.png",), "dlrun predict"),
        (("--split", "test"), "--split"),
        (("photos", "--device", "gpu"), "--device"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_line(
    words: tuple[str, ...], named: str, work: Path, dlrun: Callable[..., Outcome]
) -> None:
    shutil.copytree("photos/test/ant", "other/ants")
    done = dlrun("evaluate", "run1", *words)
    assert (done.code, named in done.err, done.err.count("\n")) == (2, True, 1), done.err
    assert not Path("outputs/evaluations").exists()


def test_a_folder_with_test_alone_is_that_split(work: Path, dlrun: Callable[..., Outcome]) -> None:
    shutil.rmtree("photos/train")
    assert dlrun("evaluate", "run1", "photos", "--out", "e").code == 0
    np.testing.assert_array_equal(arrays("e")["test_logits"], arrays("run1")["test_logits"])
    for file in Path("photos").rglob("*.png"):
        file.write_bytes(b"none")
    done = dlrun("evaluate", "run1", "photos", "--out", "none")
    assert (done.code, "00.png" in done.err) == (1, True)
    assert not Path("none").exists()


# --- under attack


def test_accuracy_under_attack_falls_and_the_images_that_fool_the_model_are_kept(
    work: Path, dlrun: Callable[..., Outcome]
) -> None:
    done = dlrun("evaluate", "run1", "--adversarial", "60,1", "--out", "e", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    sizes, right = zip(*((row["epsilon"], row["accuracy"]) for row in found["adversarial"]), strict=True)
    assert sizes == (0, 1, 60)
    assert right[0] == found["test_acc"]
    assert right[0] >= right[1] > right[2]
    assert [float(row["accuracy"]) for row in rows("e/adversarial.csv")] == [*right]
    with np.load("e/adversarial.npz") as file:
        kept = dict(file)
    assert kept["x"].dtype == np.uint8
    assert len(kept["x"]) == sum(np.load("e/predictions.npz")["test_logits"].argmax(1) == arrays("e")["test_labels"])
    change = kept["x"].astype(int) - kept["original"]
    assert 30 < np.abs(change).max() <= 60
    assert (kept["predicted"] != kept["y"]).all()
    assert list(kept["loss"]) == sorted(kept["loss"], reverse=True)
    classes, _ = load("run1").predict(kept["x"])  # they fool the model as they are stored
    assert classes == [NAMES[k] for k in kept["predicted"]]
    assert Path("e/plots/adversarial.png").stat().st_size > 1000
    assert Path("e/plots/fooled.png").stat().st_size > 1000


def test_images_made_of_a_test_split_say_so_when_a_model_trains_on_them(
    work: Path, dlrun: Callable[..., Outcome]
) -> None:
    assert dlrun("evaluate", "run1", "--adversarial", "60", "--out", "e").code == 0
    with np.load("e/adversarial.npz", allow_pickle=False) as file:
        kept = dict(file)
    assert list(kept["origin"]) == ["run1", "", "test"]
    kept["y"] = np.arange(len(kept["x"])) % 2  # as if the model erred on every class
    np.savez("e/adversarial.npz", **kept)
    words = ("dataset=arrays", "dataset.path=e/adversarial.npz", "check=none", "trainer.epochs=1", "model=mlp")
    words = (*words, "trainer.report=false", "trainer.threads=1", "run.dir=again")
    done = dlrun("train", *words)
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if "e/adversarial.npz" in line and "test split" in line]
    assert "run1" in line
    np.save("x_test.npy", kept["original"][::2])
    np.save("y_test.npy", kept["y"][::2])
    own = ("dataset.x_test=x_test.npy", "dataset.y_test=y_test.npy")
    refused = dlrun("train", *words[:-1], *own, "run.dir=leak")
    assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
    assert f"{len(kept['original'][::2])} of" in refused.err
    pool = ("objective=pseudo_label", "objective.unlabelled=e/adversarial.npz", *words[2:-1], "run.dir=pool")
    refused = dlrun("train", *WORDS[:3], *pool)  # with the same test split
    assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
    assert "of test" in refused.err
    np.savez("e/adversarial.npz", **{**kept, "origin": np.array(["run1", "", "train"])})
    read = arrays_of("e/adversarial.npz", x_test="x_test.npy", y_test="y_test.npy")  # the file alone decides
    assert not any("adversarial.npz: its" in line for line in read.notes)


def test_an_ensemble_is_attacked_as_a_whole(work: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("ensemble", "run1", "run2", "--out", "both").code == 0
    done = dlrun("evaluate", "both", "--adversarial", "30", "--out", "e", "--json")
    found = json.loads(done.out)
    assert found["adversarial"][0]["accuracy"] == found["test_acc"]
    assert found["adversarial"][1]["accuracy"] < found["test_acc"]


@pytest.mark.parametrize("words", ["x", "0", "1,-2", "", "300", "nan", "1,,2"])
def test_wrong_sizes_of_an_attack_are_refused_in_one_line(
    work: Path, dlrun: Callable[..., Outcome], words: str
) -> None:
    done = dlrun("evaluate", "run1", "--adversarial", words, "--out", "e")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--adversarial" in done.err
    assert not Path("e").exists()


@pytest.mark.parametrize("classes", [range(1, 6), (0, 2, 5, 7, 9), range(5)])
def test_numbers_may_be_missing_among_labels_whose_classes_the_run_knows(
    classes: Sequence[int], tmp_path: Path
) -> None:
    known = [str(number) for number in classes]
    predictor: Any = SimpleNamespace(classes=known, tasks=None, shape=(3, 3, 1), path=Path("run"), members=())
    given = np.array([int(known[k]) for k in (0, 3, 0)])
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 3, 3), np.uint8), y=given)
    found = labelled.read(predictor, tmp_path / "x.npz", "", None)
    assert found.labels.tolist() == [0, 3, 0]
    assert found.notes[-1] == f"no image of 3 of 5 classes: '{known[1]}', '{known[2]}', '{known[4]}'"
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 3, 3), np.uint8), y=[int(known[0]), 11, int(known[0])])
    with pytest.raises(UserError, match="11"):
        labelled.read(predictor, tmp_path / "x.npz", "", None)
