"""Mixup and cutmix against torchvision's, their labels in every loss, and in a run (R3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from dlrun.data.batches import Batch, Mix
from dlrun.data.mixing import Mixing, cut, faded
from dlrun.errors import UserError
from dlrun.losses import CrossEntropy, Focal
from dlrun.objectives import Distill, Supervised
from dlrun.training import loop
from dlrun.training.experiment import build
from dlrun.training.objective import must_fit, prepared
from support.commands import Outcome
from support.composed import SMALL, composed

SIZE = 9, 14


def batch(count: int = 12, **more: object) -> Batch:
    made = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 3, *SIZE, generator=made), torch.arange(count) % 4
    return Batch(x, y, **{"index": torch.arange(count) * 7, "epoch": 2, "seed": 5, **more})  # type: ignore[arg-type]


def test_images_and_labels_are_torchvisions() -> None:
    given = batch()
    for lam in (0.0, 0.31, 0.8, 1.0):
        kept = torch.full((12,), lam)
        mixup = v2.MixUp(num_classes=4)
        expected = mixup.transform(given.x, {"labels": given.y, "batch_size": 12, "lam": lam})
        torch.testing.assert_close(faded(given.x, kept, given.x), expected)
        target = replace(given, mix=Mix(given.y.roll(1), None, kept, 4)).target
        labels = mixup.transform(given.y, {"labels": given.y, "batch_size": 12, "lam": lam})
        torch.testing.assert_close(target, labels)
        for across, down in ((0.0, 0.5), (0.5, 0.99), (0.2, 0.1)):
            (height, width), half = SIZE, 0.5 * (1 - lam) ** 0.5
            x, y, w, h = int(across * width), int(down * height), int(half * width), int(half * height)
            box = max(x - w, 0), max(y - h, 0), min(x + w, width), min(y + h, height)
            area = (box[2] - box[0]) * (box[3] - box[1])
            places = torch.full((12,), across), torch.full((12,), down)
            found, left = cut(given.x, kept, places)
            theirs = v2.CutMix(num_classes=4).transform(
                given.x, {"labels": given.y, "batch_size": 12, "box": box, "lam_adjusted": 0.5}
            )
            assert torch.equal(found, theirs)
            torch.testing.assert_close(left, torch.full((12,), 1 - area / (height * width)))


def test_the_share_of_a_label_is_that_of_its_pixels_and_each_image_has_its_own() -> None:
    count = 2000
    same = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, *SIZE)
    given = Batch(same, torch.zeros(count, dtype=torch.int64), torch.arange(count), seed=3)
    made = Mixing(0.0, 1.0, 1.0, 2)(given)
    assert made.mix is not None
    torch.testing.assert_close(made.mix.share, (made.x == same).float().mean((1, 2, 3)))
    assert len(made.mix.share.unique()) > 40
    faded_ = Mixing(0.2, 0.0, 1.0, 2)(given)
    assert faded_.mix is not None
    share = faded_.mix.share  # by the mean and variance of Beta(0.2, 0.2)
    assert abs(float(share.mean()) - 0.5) < 0.04
    assert abs(float(share.var()) - 0.25 / 1.4) < 0.01
    both = Mixing(0.2, 1.0, 0.6, 2)(given)
    assert both.mix is not None
    whole = (both.x == same).flatten(1)
    mixed = ~whole.all(1)
    assert 0.5 < float(mixed.float().mean()) < 0.6  # a rectangle may be empty
    patched = float((mixed & whole.any(1)).float().mean())
    assert 0.2 < patched < 0.31


def test_what_is_mixed_depends_on_seed_epoch_and_sample_alone() -> None:
    mixing, whole = Mixing(0.4, 1.0, 1.0, 4), batch()
    expected = mixing(whole).mix
    assert expected is not None
    for part in whole.parts(3):
        found = mixing(part).mix
        assert found is not None
        torch.testing.assert_close(found.share, expected.share[torch.isin(whole.index, part.index)])
    for other in ({"epoch": 3}, {"seed": 6}):
        changed = mixing(batch(**other)).mix
        assert changed is not None
        assert not torch.equal(changed.share, expected.share)


@pytest.mark.parametrize(
    "loss", [CrossEntropy(), CrossEntropy(0.1), Focal(), CrossEntropy(0.1, [1, 2, 3, 9]), Focal(1.5, [4, 1, 1, 1])]
)
def test_a_mixed_image_counts_as_two_samples(loss: nn.Module) -> None:
    logits = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    for weight in (None, torch.linspace(0.1, 2, 12)):
        mixed = Mixing(0.4, 1.0, 0.9, 4)(batch(weight=weight))
        assert mixed.mix is not None
        kept = Mixing(0.4, 1.0, 0.9, 4)(batch()).mix.share  # type: ignore[union-attr]
        own = torch.ones(12) if weight is None else weight
        both = torch.cat([kept * own, (1 - kept) * own.roll(1)])
        expected = loss(logits.repeat(2, 1), torch.cat([mixed.y, mixed.mix.y]), both)
        torch.testing.assert_close(loss(logits, mixed.target, mixed.weight), expected)
        hard = nn.functional.one_hot(mixed.y, 4).float()
        torch.testing.assert_close(loss(logits, hard, weight), loss(logits, mixed.y, weight))


WORDS = (*SMALL[:3], "trainer.threads=1", "model=mlp", "model.width=8", "model.norm=none", "objective=cutmix")


@pytest.mark.parametrize(
    "words",
    [("optimizer=sgd",), ("loss.weight=[1,2,3,4,5,6,7,8,9,10]", "loss=focal", "optimizer=sgd")],
)
def test_parts_of_a_batch_have_the_gradient_of_the_whole(words: tuple[str, ...]) -> None:
    found = []
    for parts in (1, 3):
        exp = build(composed(*WORDS, "objective.mixup=0.3", f"trainer.accumulate={parts}", *words))
        x, y, index = next(exp.train.epoch(1))
        weight = torch.linspace(0.5, 2, len(y))
        loop.step(exp, Batch(x, y, index, epoch=1, seed=1, weight=weight))
        found.append(nn.utils.parameters_to_vector(exp.model.parameters()).detach())
    torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=1e-4)
    plain = build(composed(*WORDS, "objective=supervised", *words))
    loop.step(plain, Batch(x, y, index, epoch=1, seed=1, weight=weight))
    assert not torch.allclose(found[0], nn.utils.parameters_to_vector(plain.model.parameters()), atol=1e-4)


def test_a_teacher_is_followed_in_the_shares_of_the_labels() -> None:
    made: Distill = Distill.__new__(Distill)
    made.temperature, made.alpha, made.mixing = 2.0, 1.0, Mixing(0.5, 0.0, 1.0, 4)
    made.targets = torch.randn(80, 4, generator=torch.Generator().manual_seed(2)).log_softmax(1)
    given, logits = batch(), torch.zeros(12, 4, requires_grad=True)
    mixed = prepared(made, given)
    value, _ = made(lambda x: logits, CrossEntropy(), mixed)  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(value, logits)

    def soft(index: Tensor) -> Tensor:
        return (made.targets[index] / 2).softmax(1)

    share = mixed.mix.share[:, None]  # type: ignore[union-attr]
    teacher = share * soft(given.index) + (1 - share) * soft(given.index.roll(1))  # type: ignore[arg-type, union-attr]
    torch.testing.assert_close(slope, 2 * (0.25 - teacher) / 12)


def test_accuracy_on_mixed_images_does_not_count() -> None:
    assert Supervised().train_acc_valid
    assert not Supervised(cutmix=1.0).train_acc_valid
    assert not Supervised(mixup=1.0).on_features


def test_a_loss_that_takes_no_shares_is_refused_in_a_line(dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("train", "objective=mixup", "check=none", "dataset.limit=60", "loss=hinge")
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("dlrun: objective.mixup=0.2 ")
    assert outcome.err.count("\n") == 1
    must_fit(Supervised(mixup=1.0), nn.CrossEntropyLoss(), 3, torch.device("cpu"))
    must_fit(Supervised(), nn.MultiMarginLoss(), 3, torch.device("cpu"))
    with pytest.raises(UserError, match=r"^objective\.mixup=1 .*MultiMarginLoss"):
        must_fit(Supervised(mixup=1.0), nn.MultiMarginLoss(), 3, torch.device("cpu"))


def test_a_run_with_everything_on_resumes_bit_for_bit(dlrun: Callable[..., Outcome], here: Path) -> None:
    words = (
        "train",
        *(word for word in SMALL if word != "check=none"),
        "augment=resized_crop",
        "augment.crop=6",
        "augment.noise=0.05",
        "augment.randaugment=1",
    )
    words += (
        "objective=cutmix",
        "objective.mixup=0.3",
        "trainer.ema=0.9",
        "trainer.accumulate=2",
        "dataset.balance=true",
    )
    words += ("check.only=[mixture,inputs,overfit]", "trainer.diagnostics=false")
    done = dlrun(*words, "run.dir=whole")
    assert done.code == 0, done.err
    rows = [row.split(",")[:2] for row in (here / "whole" / "checks.csv").read_text().splitlines()[1:]]
    assert {status for _, status in rows} == {"pass"}, rows
    assert dlrun(*words, "run.dir=parts", "trainer.stop_after=1").code == 0
    assert dlrun("resume", "parts").code == 0
    whole, parts = (
        torch.load(here / name / "checkpoints" / "last.pt", weights_only=True) for name in ("whole", "parts")
    )
    for key in ("model", "ema"):
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())
