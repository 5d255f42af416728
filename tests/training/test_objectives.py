"""What an objective gets, a `Batch`, and what follows if accuracy means nothing under it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dlrun.data.batches import Batch
from dlrun.folders import reading
from dlrun.models.adversarial import Attack
from dlrun.objectives import Distill, Supervised
from dlrun.training import checkpoint, loop
from dlrun.training.experiment import build
from support.commands import TINY, Outcome
from support.composed import SMALL, alter, composed

MIXED = """
import torch

class Mixup:
    train_acc_valid = {valid}

    def __call__(self, model, loss, batch):
        order = torch.randperm(len(batch), generator=batch.generator)
        share = 0.5 + 0.5 * float(torch.rand((), generator=batch.generator))
        logits = model(share * batch.x + (1 - share) * batch.x[order])
        return share * loss(logits, batch.y) + (1 - share) * loss(logits, batch.y[order]), logits
"""


def batch(**changes: object) -> Batch:
    made = {"x": torch.randn(6, 1, 2, 2), "y": torch.arange(6), "index": torch.arange(6) * 10}
    return Batch(**{**made, "epoch": 3, "step": 7, "seed": 1, **changes})  # type: ignore[arg-type]


# --- the batch


def test_draws_follow_from_seed_epoch_and_step_and_touch_no_global_state() -> None:
    first, again = (torch.rand(5, generator=batch().generator) for _ in range(2))
    assert torch.equal(first, again)
    for other in ({"epoch": 4}, {"step": 8}, {"seed": 2}, {"part": 1}):
        assert not torch.equal(first, torch.rand(5, generator=batch(**other).generator))
    made, before = batch(), torch.get_rng_state()
    torch.rand(5, generator=made.generator)
    assert made.generator is made.generator  # draws go on within a step
    assert torch.equal(before, torch.get_rng_state())


def test_no_generator_is_made_unless_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = build(composed(*SMALL, "trainer.accumulate=2"))
    x, y, index = next(exp.train.epoch(1))
    made: list[object] = []
    monkeypatch.setattr(torch, "Generator", lambda *words: made.append(words))
    loop.step(exp, Batch(x, y, index, epoch=1))
    assert made == []


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_are_the_batch_in_order_and_start_their_draws_anew(count: int) -> None:
    whole = batch(other=batch(index=None, seed=5))
    torch.rand(3, generator=whole.generator)
    parts, again = whole.parts(count), whole.parts(count)
    assert len(parts) == count
    assert torch.equal(torch.cat([p.x for p in parts]), whole.x)
    assert torch.equal(torch.cat([p.y for p in parts]), whole.y)
    assert torch.equal(torch.cat([p.index for p in parts if p.index is not None]), torch.arange(6) * 10)
    assert {(p.epoch, p.step, p.seed) for p in parts} == {(3, 7, 1)}
    assert all(p.other is not None and p.other.index is None and len(p.other) == len(p) for p in parts)
    draws = [torch.rand(4, generator=p.generator).tolist() for p in parts]
    assert draws == [torch.rand(4, generator=p.generator).tolist() for p in again]
    assert len({tuple(d) for d in draws}) == count


def test_training_hands_an_objective_all_that_it_may_need() -> None:
    exp = build(composed(*SMALL, "seed=4", "trainer.batch_size=30", "trainer.accumulate=2"))
    seen: list[Batch] = []

    class Watching(Supervised):
        def __call__(self, model: torch.nn.Module, loss: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
            seen.append(batch)
            return super().__call__(model, loss, batch)

    alter(exp, objective=Watching())
    from dlrun.console import Screen
    from dlrun.training.checkpoint import State
    from dlrun.training.diagnostics import Watch

    loop.train_epoch(exp, 2, State(epoch=1), Screen(None, quiet=True), Watch(exp))
    assert [(b.epoch, b.step, b.part, b.seed) for b in seen] == [(2, s, p, 4) for s in range(4) for p in range(2)]
    numbers = torch.cat([b.index for b in seen if b.index is not None])
    assert sorted(numbers.tolist()) == list(range(len(exp.data.train)))
    assert torch.equal(torch.cat([b.y for b in seen]), exp.data.train.labels[numbers])


def test_a_second_evaluation_of_a_batch_draws_the_same() -> None:
    exp = build(composed(*SMALL, "optimizer=lbfgs", "trainer.batch_size=60"))
    draws: list[float] = []

    class Drawing(Supervised):
        def __call__(self, model: torch.nn.Module, loss: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
            draws.append(float(torch.rand((), generator=batch.generator)))
            return super().__call__(model, loss, batch)

    alter(exp, objective=Drawing())
    x, y, index = next(exp.train.epoch(1))
    loop.step(exp, Batch(x, y, index, epoch=1))
    assert len(draws) > 2
    assert len(set(draws)) == 1


def test_a_step_is_sums_over_samples_by_name() -> None:
    exp = build(composed(*SMALL, "regularizer=l2", "optimizer=sgd", "trainer.clip_norm=1e-3"))
    x, y, _ = next(exp.train.epoch(1))
    exp.model.train()
    logits = exp.model(x)
    loss, penalty = exp.loss(logits, y), exp.penalty.penalty(exp.model)
    (loss + penalty).backward()
    norm = torch.stack([p.grad.norm() for p in exp.model.parameters() if p.grad is not None]).norm()
    found = loop.step(exp, Batch(x, y))
    assert found._fields == ("loss", "correct", "penalty", "grad_norm")
    assert all(part.shape == () for part in found)
    expected = (loss * len(y), (logits.argmax(1) == y).sum(), penalty * len(y), norm * len(y))
    assert [float(part) for part in found] == pytest.approx([float(part.detach()) for part in expected], rel=1e-5)


# --- accuracy that means nothing


def mixup(folder: Path, valid: bool) -> tuple[str, ...]:
    """Plant an objective of one's own; the words that choose it."""
    (folder / "blurry.py").write_text(MIXED.format(valid=valid))
    option = folder / "conf" / "objective" / "mixup.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("# Mixes images: objective=mixup.\n_target_: blurry.Mixup\n")
    return ("objective=mixup", "trust=[blurry]")


@pytest.fixture
def own(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to import from, and nothing imported from it before or after."""
    import sys

    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "blurry", raising=False)
    return here


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("valid", "verdict"), [(False, False), *[(True, True), (None, True)]])
def test_verdicts_on_train_acc_are_given_only_if_it_is_valid(
    own: Path, dlrun: Callable[..., Outcome], valid: bool | None, verdict: bool
) -> None:
    words = () if valid is None else mixup(own, valid)  # None: supervised
    few = [w for w in TINY if not w.startswith("trainer.epochs")]
    # a rate that learns nothing: `flat` compares train_acc with always naming the largest class
    done = dlrun("train", *few, *words, "trainer.epochs=4", "optimizer.lr=1e-8", "run.dir=run")
    assert done.code == 0, done.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["train_acc_valid"] is (valid is not False)
    assert ("flat" in {v["name"] for v in result["verdicts"]}) is verdict
    assert ("flat:" in done.out) is verdict
    # and drawn again from the files alone
    judged = reading.stored(Path("run"))
    del judged["verdicts"]
    Path("run/result.json").write_text(json.dumps(judged))
    assert dlrun("report", "run").code == 0
    assert ("flat: train accuracy" in Path("run/report.html").read_text()) is verdict


def test_an_objective_that_draws_resumes_bit_for_bit(own: Path, dlrun: Callable[..., Outcome]) -> None:
    words = (*(w for w in TINY if not w.startswith("trainer.epochs")), *mixup(own, False), "trainer.epochs=3")
    assert dlrun("train", *words, "run.dir=whole").code == 0
    assert dlrun("train", *words, "trainer.stop_after=1", "run.dir=halves").code == 0
    assert dlrun("resume", "halves", "trust=[blurry]").code == 0
    ours, theirs = (torch.load(f"{d}/checkpoints/last.pt", weights_only=True)["model"] for d in ("halves", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_objective_of_ones_own_is_typed_without_a_file(own: Path, dlrun: Callable[..., Outcome]) -> None:
    (own / "blurry.py").write_text(MIXED.format(valid=False))
    done = dlrun("train", *TINY, "objective._target_=blurry.Mixup", "trust=[blurry]", "run.dir=run")
    assert done.code == 0, done.err
    assert json.loads(Path("run/result.json").read_text())["train_acc_valid"] is False
    done = dlrun("train", *TINY, "objective._target_=blurry.Mixup", "objective.mixup=0.2", "trust=[blurry]")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "blurry.Mixup" in done.err


def test_accuracy_is_valid_under_what_learns_from_the_images_themselves() -> None:
    assert Supervised.train_acc_valid
    assert Distill.train_acc_valid
    exp = build(composed(*SMALL))
    assert exp.train_acc_valid
    alter(exp, objective=lambda model, loss, batch: (loss(model(batch.x), batch.y), model(batch.x)))
    assert exp.train_acc_valid  # one that does not say otherwise


# --- adversarial images (D9)


def test_the_loss_is_that_of_originals_and_changed_images_in_the_asked_shares() -> None:
    exp = build(composed(*SMALL, "objective=adversarial", "objective.originals=0.25", "objective.epsilon=20"))
    exp.model.eval()  # so that batch norm does not join both kinds
    x, y, index = next(exp.train.epoch(1))
    made = Batch(x, y, index, epoch=1, seed=1)
    value, logits = exp.objective(exp.model, exp.loss, made)
    changed = exp.objective.attack(exp.model, exp.loss, x, y)
    assert torch.allclose(logits, exp.model(x), atol=1e-5)
    parts = exp.loss(exp.model(x), y), exp.loss(exp.model(changed), y)
    assert float((parts[1] - parts[0]).detach()) > 0
    assert float(value.detach()) == pytest.approx(float((0.25 * parts[0] + 0.75 * parts[1]).detach()), rel=1e-5)
    reach = 20 / 255 * 255 / torch.tensor(exp.data.std).view(1, -1, 1, 1)
    assert ((changed - x).abs() <= reach * 1.0001).all()


def test_adversarial_images_never_reach_validation_or_test(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(self: Attack, model: object, loss: object, x: torch.Tensor, *others: object) -> torch.Tensor:
        return torch.zeros_like(x)  # images of nothing

    words = (*TINY, "objective=adversarial", "dataset.limit=300", "trainer.eval_batch_size=256", "run.dir=run")
    with monkeypatch.context() as patched:
        patched.setattr(Attack, "__call__", poison)
        assert dlrun("train", *words).code == 0
    stored = reading.arrays(Path("run"), "predictions")
    exp = build(composed("dataset.limit=300", "check=none", "model.width=4", "trainer.threads=1"))
    exp.model.load_state_dict(checkpoint.load(Path("run/checkpoints/best.pt"))["model"])
    for name, split in (("val", exp.data.val), ("test", exp.data.test().split)):
        found = loop.predict(exp, exp.batches(split))
        assert torch.equal(found.logits.float(), torch.from_numpy(stored[f"{name}_logits"]))
