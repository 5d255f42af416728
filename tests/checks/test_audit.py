"""Copies, leaks, contradictions, blanks and unbalanced classes, planted in real files (D1, D2, D6)."""

from __future__ import annotations

import csv
import gc
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.checks.audit import class_balance, data_audit, data_duplicates
from dlrun.config.settings import Settings
from dlrun.data import Batches, prepare
from dlrun.data.audit import audit
from dlrun.data.files import image_folder
from dlrun.data.images import InMemory, Streamed
from dlrun.data.splits import HeldOut, Raw, Split
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders.run import claim
from dlrun.run.execute import execute
from dlrun.run.gate import check_only
from dlrun.training.experiment import build
from support.composed import composed
from support.photos import KEYS, MEMORY, photo, ready, root, stored, truncate

__all__ = ["root"]  # a fixture


def checked(check, data, **dataset):
    cfg = Settings.of({"dataset": {"limit": 0, "balance": data.balance, **dataset}})
    return check(SimpleNamespace(data=data, num_classes=len(data.classes), cfg=cfg, loss=torch.nn.Identity()))


def numbers(text: str) -> list[int]:
    """The numbers in a text, in their order."""
    return [int(number) for number in re.findall(r"\d+", text)]


def copy(root: Path, source: str, target: str) -> None:
    """The same pixels in another format, so that no two files are equal byte by byte."""
    Image.open(root / source).save((root / target).with_suffix(".bmp"))
    (root / target).unlink(missing_ok=True)


# ---- copies, leaks, contradictions


def kinds(found) -> Counter[tuple[str, str, str]]:
    return Counter((one.kind, one.split, one.other_split) for one in found.findings)


@pytest.mark.parametrize("memory_gb", MEMORY)
def test_a_clean_folder_has_no_findings(root, memory_gb):
    data = ready(root, memory_gb=memory_gb)
    assert audit(data).findings == []
    assert checked(data_audit, data).status == "pass"
    assert checked(data_duplicates, data).status == "pass"
    assert checked(class_balance, data).status == "pass"


def test_the_same_data_is_compared_once(root, monkeypatch):
    from dlrun.data import audit as module

    compared = []
    monkeypatch.setattr(module, "audit", lambda data: compared.append(1) or audit(data))
    data, other = ready(root), ready(root)
    assert data.audited is None
    checked(data_audit, data), checked(data_duplicates, data)
    assert (data.audit is data.audit is data.audited, len(compared)) == (True, 1)
    assert other.audit == data.audit  # other data, other comparison
    assert len(compared) == 2
    assert replace(data, balance=True).audited is None
    known = ref(data.audit)
    del data
    gc.collect()
    assert known() is None  # it goes with the data, so that a worker that continues with other data holds one


@pytest.mark.parametrize("memory_gb", MEMORY)
@pytest.mark.parametrize(
    ("earlier", "later", "kind"),
    [
        ("train", "train", "duplicate"),
        ("val", "val", "duplicate"),
        ("test", "test", "duplicate"),
        ("train", "val", "leak"),
        ("train", "test", "leak"),
        ("val", "test", "leak"),
    ],
)
@pytest.mark.parametrize("label", ["cat", "dog"])
def test_one_copy_in_every_pair_of_splits_is_found_once(root, earlier, later, kind, label, memory_gb):
    copy(root, f"{earlier}/cat/02.png", f"{later}/{label}/07.png")
    data = ready(root, memory_gb=memory_gb)
    found = audit(data)
    pair = (f"{later}/{label}/07.bmp", f"{earlier}/cat/02.png")
    expected = {(kind, *pair)} | ({("contradiction", *pair)} if label == "dog" else set())
    assert {(one.kind, one.id, one.other_id) for one in found.findings} == expected
    assert len(found.findings) == len(expected)
    assert (found.findings[0].label, found.findings[0].other_label) == (label, "cat")
    verdict = checked(data_duplicates, data)
    assert verdict.status == "warn"
    assert f"{pair[0]} = {pair[1]}" in verdict.message


def test_one_image_in_all_splits_is_a_leak_into_both_and_counted_once_a_pair(root):
    for target in ("train/cat/05.png", "val/cat/01.png", "test/dog/01.png", "test/dog/02.png"):
        copy(root, "train/cat/02.png", target)
    found = audit(ready(root))
    assert kinds(found) == {
        ("duplicate", "train", "train"): 1,
        ("leak", "val", "train"): 1,
        ("leak", "test", "train"): 2,
        ("leak", "test", "val"): 2,
        ("duplicate", "test", "test"): 1,
        ("contradiction", "test", "train"): 2,
    }
    assert found.of("leak", "test", "val")[0].other_id == "val/cat/01.bmp"


def test_pixels_decide_not_files_and_one_pixel_is_enough(root):
    pixels = np.array(Image.open(root / "train/cat/02.png"))
    Image.fromarray(pixels).save(root / "train/cat/03.png", compress_level=0)
    pixels[3, 4, 1] ^= 1
    Image.fromarray(pixels).save(root / "train/cat/04.png")
    found = audit(ready(root)).findings
    assert [(one.kind, one.id, one.other_id) for one in found] == [
        ("duplicate", "train/cat/03.png", "train/cat/02.png")
    ]


def test_what_only_resizing_made_alike_is_alike(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(8):
            photo(number + 100 * (name == "b"), (8, 8, 3)).save(tmp_path / name / f"{number}.png")
    pixels = np.array(photo(3, (8, 8, 3)))
    wide = np.concatenate([np.zeros((8, 4, 3), np.uint8), pixels, np.full((8, 4, 3), 9, np.uint8)], axis=1)
    Image.fromarray(wide).save(tmp_path / "b" / "5.png")  # the centre square is a/3.png
    data = prepare(image_folder(str(tmp_path), image_size=8), **KEYS)
    found = audit(data).of("contradiction")
    assert [{one.id, one.other_id} for one in found] == [{"a/3.png", "b/5.png"}]


def test_many_leaks_fail_and_few_warn(root):
    for number in range(3):
        copy(root, f"train/cat/{number:02}.png", f"val/cat/{number:02}.png")
    verdict = checked(data_duplicates, ready(root))
    assert verdict.status == "warn"
    assert (numbers(verdict.value)[0], "in val," in verdict.value) == (3, True)
    copy(root, "train/dog/04.png", "val/dog/04.png")
    verdict = checked(data_duplicates, ready(root))
    assert verdict.status == "fail"
    assert (numbers(verdict.value)[0], "in val," in verdict.value) == (4, True)
    assert "val/cat/00.bmp = train/cat/00.png" in verdict.message


@pytest.mark.parametrize(("leaked", "status"), [(0, "pass"), (5, "warn"), (6, "fail")])
def test_more_than_one_percent_of_a_large_split_fails(leaked, status):
    made = np.random.default_rng(1)
    x = made.integers(0, 256, (1500, 4, 4, 1), dtype=np.uint8)
    x[1000 : 1000 + leaked] = x[:leaked]

    def split(name, pixels):
        ids = [f"{name}/{number}" for number in range(len(pixels))]
        return Split(InMemory(torch.from_numpy(pixels)), torch.arange(len(pixels)) % 2, ids)

    raw = Raw(split("train", x[:1000]), lambda: split("test", x[1000:]), ["a", "b"])
    assert checked(data_duplicates, prepare(raw, **KEYS)).status == status


def test_few_copies_of_one_label_in_a_large_split_are_mentioned_only():
    x = np.random.default_rng(1).integers(0, 256, (300, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(300) % 2
    x[2], x[4] = x[0], x[1]
    split = Split(InMemory(torch.from_numpy(x)), torch.from_numpy(labels), [str(n) for n in range(300)])
    data = prepare(Raw(split, None, ["a", "b"]), **KEYS)
    apart = replace(
        data,
        train=split,
        val=replace(split.subset(torch.arange(6, 20)), images=InMemory(255 - split.images.pixels[6:20])),
    )
    apart = replace(apart, test=lambda: HeldOut(replace(apart.val, images=InMemory(apart.val.images.pixels // 2))))
    verdict = checked(data_duplicates, apart)
    assert verdict.status == "warn"  # 4 = 1 has two labels
    verdict = checked(data_duplicates, replace(apart, train=replace(split, labels=torch.zeros(300, dtype=torch.int64))))
    assert verdict.status == "pass"
    assert "2 copies" in verdict.value
    assert "2 = 0" in verdict.message


# ---- blanks, counts, balance


@pytest.mark.parametrize("memory_gb", MEMORY)
def test_blank_images_are_reported_as_blank_and_not_as_copies(root, memory_gb):
    blank = Image.new("RGB", (9, 8), (10, 20, 30))
    for name in ("train/cat/01.png", "train/dog/01.png", "val/cat/03.png", "test/dog/03.png"):
        blank.save(root / name)
    almost = np.array(blank)
    almost[0, 5] = (10, 20, 31)
    Image.fromarray(almost).save(root / "train/cat/06.png")
    data = ready(root, memory_gb=memory_gb)
    found = audit(data)
    assert [(one.kind, one.id) for one in found.findings] == [
        ("constant", name) for name in ("train/cat/01.png", "train/dog/01.png", "val/cat/03.png", "test/dog/03.png")
    ]
    verdict = checked(data_audit, data)
    assert (verdict.status, numbers(verdict.value)) == ("warn", [0, 4, 20, 20])
    assert "train/cat/01.png" in verdict.message
    assert checked(data_duplicates, data).status == "pass"


def test_a_split_of_blanks_fails(root):
    for path in root.glob("val/*/*"):
        Image.new("RGB", (9, 8)).save(path)
    assert checked(data_audit, ready(root)).status == "fail"


def test_dropped_samples_and_small_classes_are_reported(root):
    truncate(root / "train/cat/03.png")
    for number in range(3, 20):
        (root / "train" / "dog" / f"{number:02}.png").unlink()
    verdict = checked(data_audit, ready(root, on_bad="drop"))
    assert (verdict.status, numbers(verdict.value)) == ("warn", [1, 0, 3, 19])
    assert "bad: train/cat/03.png" in verdict.message
    assert " dog (3): " in verdict.message
    assert "dataset.limit" not in verdict.message  # all are there
    few = checked(data_audit, ready(root, on_bad="drop"), limit=22)
    assert "raise dataset.limit=22" in few.message


def test_uneven_classes_are_reported_until_they_are_balanced(root):
    for number in range(13, 20):
        (root / "train" / "dog" / f"{number:02}.png").unlink()
    verdict = checked(class_balance, ready(root))
    assert (verdict.status, verdict.value) == ("warn", "1.54 (cat 20, dog 13)")
    assert verdict.message.endswith("; try dataset.balance=true")
    assert checked(class_balance, ready(root, balance=True)).status == "pass"
    photo(999).save(root / "train" / "dog" / "13.png")
    assert checked(class_balance, ready(root)).status == "pass"  # 20 / 14 = 1.43


def test_balanced_batches_draw_all_classes_alike_and_every_sample_in_time():
    labels = torch.tensor([0] * 60 + [1] * 10 + [2] * 5)
    split = Split(InMemory(torch.zeros(75, 1, 1, 1, dtype=torch.uint8)), labels, [str(n) for n in range(75)])
    batches = Batches(split, 20, mean=[0.0], std=[1.0], shuffle=True, balance=True, seed=3)

    def drawn(epoch):
        return torch.cat([index for _, _, index in batches.epoch(epoch)])

    first = drawn(1)
    assert torch.bincount(labels[first]).tolist() == [25, 25, 25]
    times = torch.bincount(first, minlength=75)
    assert times[:60].max() == 1
    assert set(times[60:70].tolist()) == {2, 3}
    assert times[70:].tolist() == [5] * 5
    assert torch.equal(first, drawn(1))
    assert not torch.equal(first, drawn(2))
    seen = torch.stack([torch.bincount(drawn(epoch), minlength=75) for epoch in range(1, 25)]).sum(0)
    assert (seen > 0).all()


def test_balanced_epochs_share_the_odd_samples_fairly():
    split = Split(
        InMemory(torch.zeros(74, 1, 1, 1, dtype=torch.uint8)),
        torch.tensor([0] * 70 + [1] * 3 + [2]),
        [str(number) for number in range(74)],
    )
    batches = Batches(split, 10, mean=[0.0], std=[1.0], balance=True, seed=1)
    counts = torch.stack(
        [torch.bincount(torch.cat([y for _, y, _ in batches.epoch(number)]), minlength=3) for number in range(60)]
    )
    assert counts.sum(1).tolist() == [74] * 60
    assert set(counts.flatten().tolist()) == {24, 25}
    assert (counts == 24).sum(0).min() > 8  # a third of 60, give or take three standard deviations


# ---- together


def test_streamed_and_held_say_the_same(root):
    copy(root, "train/cat/02.png", "test/dog/01.png")
    copy(root, "train/cat/02.png", "val/cat/01.png")
    Image.new("RGB", (9, 8)).save(root / "train/dog/01.png")
    for name in ("train/dog/02.png", "test/cat/02.png"):
        truncate(root / name)
    held, streamed = (ready(root, on_bad="drop", memory_gb=memory) for memory in MEMORY)
    assert isinstance(streamed.test().split.images, Streamed)
    assert audit(held) == audit(streamed)
    assert held.dropped == streamed.dropped
    assert held.record(final=True) == streamed.record(final=True)
    assert held.record()["content_sha256"] is not None


def test_a_streamed_folder_is_decoded_once_before_training_and_test_once_more(root, monkeypatch):
    decoded: Counter[str] = Counter()
    decode = Streamed.decode

    def counting(self, number):
        decoded[self.files[number].relative_to(root).parts[0]] += 1
        return decode(self, number)

    monkeypatch.setattr(Streamed, "decode", counting)
    data = ready(root, memory_gb=0)
    assert decoded == {"train": 40, "val": 16}
    for _ in range(2):
        checked(data_audit, data)
        checked(data_duplicates, data)
        data.record(final=True)
    assert decoded == {"train": 40, "val": 16, "test": 16}


def test_content_hash_sees_pixels_labels_and_order(root):
    before = ready(root).record()["content_sha256"]
    assert ready(root).record()["content_sha256"] == before
    one, two = root / "train/cat/02.png", root / "train/dog/02.png"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    swapped = ready(root).record()
    assert swapped["mean"] == ready(root).record()["mean"]  # moments cannot see a swap
    assert swapped["content_sha256"] != before
    data = ready(root)
    other = replace(data, val=replace(data.val, labels=1 - data.val.labels))
    assert other.record()["content_sha256"] not in (data.record()["content_sha256"], before)


def test_balance_of_the_config_reaches_the_training_batches_alone():
    exp = build(composed("dataset.balance=true", "model=mlp", "trainer.threads=1", "trainer.device=cpu"))
    assert (exp.train.balance, exp.val.balance) == (True, False)
    assert exp.data.record()["balance"] is True


def test_labels_of_test_reach_nothing_before_the_test(tmp_path):
    seen = []
    for name in ("a", "b"):
        path = stored(tmp_path / f"{name}.npz")
        content = dict(np.load(path))
        if name == "b":
            content["y_test"] = content["y_test"][::-1].copy()
            np.savez(path, **content)
        exp = build(
            composed(
                *("dataset=arrays", f"dataset.path={path}", "model=mlp", "trainer.epochs=1"),
                *("trainer.threads=1", "trainer.device=cpu"),
            )
        )
        verdicts = [check(exp) for check in (data_audit, data_duplicates, class_balance)]
        batches = [torch.cat([y.float(), x.flatten()]) for x, y, _ in exp.train.epoch(1)]
        weights = torch.nn.utils.parameters_to_vector(exp.model.parameters())
        seen.append((verdicts, exp.data.record(), [*batches, weights.detach()]))
    (verdicts, record, tensors), (others, record_b, tensors_b) = seen
    assert verdicts == others
    assert record == record_b
    assert all(torch.equal(one, two) for one, two in zip(tensors, tensors_b, strict=True))


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("memory_gb", MEMORY)
@pytest.mark.parametrize("check", ["none", "default"])
def test_a_run_lists_what_it_dropped_and_found(root, tmp_path, capsys, monkeypatch, memory_gb, check):
    monkeypatch.chdir(tmp_path)  # receipts of other runs lie in outputs
    monkeypatch.setattr("dlrun.checks.runner.CHECKS", {"data_audit": data_audit, "data_duplicates": data_duplicates})
    copy(root, "train/cat/02.png", "test/dog/07.png")
    names = ["train/cat/03.png", "val/dog/02.png", "test/cat/01.png"]
    for name in names:
        truncate(root / name, "empty")
    cfg = composed(
        *("dataset=image_folder", f"dataset.root={root}", "dataset.on_bad=drop", "dataset.image_size=8"),
        *("model=mlp", "trainer.epochs=1", "trainer.threads=1", "trainer.device=cpu"),
        *(f"dataset.memory_gb={memory_gb}", f"check={check}"),
    )
    run = claim(str(tmp_path / "run"), "x")
    assert execute(cfg, run) == 0
    found = rows(run.path / "dropped.csv")
    assert [(row["id"], row["split"]) for row in found] == [(name, name.split("/")[0]) for name in names]
    assert all("file is empty" in row["reason"] for row in found)
    result = json.loads((run.path / "result.json").read_text())
    assert result["data"]["dropped"] == {"train": 1, "val": 1, "test": 1}
    assert (result["data"]["train"], result["data"]["val"], result["test_samples"]) == (39, 15, 15)
    said = capsys.readouterr().out
    assert all(name in said for name in names)
    if check == "none":
        assert not (run.path / "audit.csv").exists()
        return
    told = [
        (row["kind"], row["id"], row["label"], row["other_id"], row["other_label"])
        for row in rows(run.path / "audit.csv")
    ]
    pair = ("test/dog/07.bmp", "dog", "train/cat/02.png", "cat")
    assert told == [*(("bad", name, "", "", "") for name in names), ("contradiction", *pair), ("leak", *pair)]
    assert check_only(cfg, as_json=True) == 0
    printed = capsys.readouterr()
    assert all(name in printed.err for name in names)
    checked = rows(run.path / "checks.csv")
    assert [row["status"] for row in json.loads(printed.out)] == [row["status"] for row in checked]
    assert [row["status"] for row in checked] == ["warn", "warn"]
    assert numbers(checked[1]["value"]) == [1, 1, 1, 0, 0]
    assert "more than 3" in checked[1]["expected"]
    assert re.search(rf"\b5\b.*{re.escape(str(run.path / 'audit.csv'))}", said)


def test_a_refused_run_lists_all_that_is_bad(root, tmp_path):
    names = [f"train/cat/{number:02}.png" for number in range(12)]
    for name in names:
        truncate(root / name, "empty")
    cfg = composed(
        *(
            "dataset=image_folder",
            f"dataset.root={root}",
            "model=mlp",
            "trainer.threads=1",
            "trainer.device=cpu",
        )
    )
    run = claim(str(tmp_path / "run"), "x")
    with pytest.raises(UserError, match=r"12 of 40 .*audit\.csv$") as caught:
        execute(cfg, run)
    assert caught.value.code == 2
    found = rows(run.path / "audit.csv")
    assert [(row["kind"], row["split"], row["id"]) for row in found] == [("bad", "train", name) for name in names]
    assert reading.stored(run.path)["status"] == "failed"
