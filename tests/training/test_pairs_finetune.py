"""Every two options of fine-tuning together: they train, and continue after a kill with the same bits (M3, O7, D3).

To add an option, add a line to OPTIONS; what excludes another is in REFUSED. `{run}` is an earlier run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dlrun.config.settings import Settings
from dlrun.console import Screen
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders.run import Run, claim, reopen
from dlrun.run.execute import execute
from dlrun.training import checkpoint, loop
from dlrun.training.diagnostics import Watch
from dlrun.training.experiment import Experiment, build
from dlrun.training.shared_data import SharedData
from support.commands import Outcome
from support.composed import composed

BASE = (
    "dataset.limit=60", "model.width=2", "trainer.batch_size=20", "trainer.epochs=2", "trainer.threads=1", "check=none",
    "trainer.report=false", "trainer.diagnostics=false",
)  # fmt: skip
CHECKED = (
    "dataset.limit=400", "model.width=8", "trainer.batch_size=20", "trainer.epochs=3", "trainer.threads=1",
    "check.budget=120",
)  # fmt: skip
OPTIONS = {
    "start_from": ("trainer.start_from={run}",),
    "normalize": ("dataset.normalize=[[0.4],[0.3]]",),
    "ema": ("trainer.ema=0.9",),
    "accumulate": ("trainer.accumulate=2",),
    "distill": ("objective=distill", "objective.teacher={run}"),
    "consistent": ("objective=distill", "objective.teacher={run}", "objective.consistent=true"),
    "output_bias": ("model.output_bias=frequency",),
    "freeze": ("model.freeze=backbone", "model.unfreeze_at=2"),
    "layer_decay": ("optimizer.layer_decay=0.75",),
    "sam": ("optimizer.sam=0.05",),
    "lookahead": ("optimizer.lookahead=2",),
    "swa": ("trainer.swa=0.9",),
    "head_lr": ("optimizer.head_lr=2x", "model.hold_norms=all"),
    "augment": (
        *("augment=resized_crop", "augment.crop=6", "augment.eval_crop=7", "augment.repeats=2", "augment.erase=0.5"),
        *("augment.trivialaugment=true", "augment.randaugment=1", "augment.magnitude_std=0.5", "augment.augmix=3"),
        *("augment.flip=alternating", "augment.flip_vertical=true", "augment.equalize=0.2", "augment.solarize=0.2"),
    ),
    "mixing": ("objective=mixup", "objective.cutmix=1"),
    "adversarial": ("objective=adversarial", "objective.steps=2", "objective.originals=0.3"),
    "pseudo_label": ("objective=pseudo_label", "objective.unlabelled={run}/../new.npy", "objective.threshold=0.12"),
    "fixmatch": ("objective=fixmatch", "objective.unlabelled={run}/../new.npy", "objective.threshold=0.12"),
    "denoise": ("objective=denoise",),
    "auto_crop": ("augment=crop_flip", "augment.crop=auto"),
    "residual": (
        *("model=resnet20", "model.blocks=[1,1]", "model.stochastic_depth=0.3", "model.se_ratio=0.25"),
        *("model.stem=half", "model.antialias=true", "model.shortcut=pooled", "model.zero_init_residual=true"),
    ),
    "blur": ("model.pool=blur", "model.se_ratio=0.5"),
    "checkpointing": ("model.checkpointing=true",),
    "dropout": ("regularizer.dropout_per_layer={{stage2: 0.2}}", "regularizer.label_smoothing=0.1"),
    "bce": ("loss=bce",),
    "fp16": ("trainer.precision=fp16",),
    "schedule": ("scheduler=flat_cosine", "scheduler.warmup_steps=2"),
    "radam": ("optimizer=radam",),
    "lion": ("optimizer=lion",),
    "lamb": ("optimizer=lamb",),
    "adan": ("optimizer=adan",),
}
FURTHER = {"lion", "lamb", "adan"}  # optimizers of an extra
OBJECTIVES = {"distill", "consistent", "adversarial", "pseudo_label", "fixmatch", "denoise"}
CLASSES = ("model", "optimizer", "scheduler")  # sections whose options have keys of their own
ONE_OF = (OBJECTIVES, {"residual", "blur"}, {"radam", *FURTHER})  # a run has one of each
REFUSED: dict[frozenset[str], str] = {  # and the key that the message names
    frozenset(("ema", "swa")): "trainer.swa",
    frozenset(("start_from", "residual")): "trainer.start_from",
    frozenset(("start_from", "blur")): "trainer.start_from",
    frozenset(("denoise", "mixing")): r"objective\.(mixup|cutmix)",
    frozenset(("denoise", "lookahead")): "optimizer.lookahead",
    frozenset(("denoise", "output_bias")): "model.output_bias",
}
DATA = SharedData(share=False)  # read once for all pairs
PAIRS = [pair for pair in combinations(OPTIONS, 2) if not any({*pair} <= group for group in ONE_OF)]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier") / "run"
    noise = np.random.default_rng(0).integers(0, 241, (30, 8, 8, 1))
    np.save(folder.parent / "new.npy", noise.astype(np.uint8))  # images without labels
    assert execute(composed(*BASE), claim(str(folder), ""), quiet=True) == 0
    return folder


@cache
def single(earlier: Path, name: str = "") -> dict[str, Any]:
    return composed(*BASE, *(word.format(run=earlier) for word in OPTIONS.get(name, ()))).plain


def settings(earlier: Path, *names: str) -> Settings:
    """The settings of some options together, without composing each combination."""
    usual = single(earlier)
    made = dict(usual)
    for name in names:
        for section, node in single(earlier, name).items():
            if not isinstance(node, dict):
                made[section] = node if node != usual[section] else made[section]
                continue
            mine, old = made[section], usual[section]
            if section in CLASSES and node["_target_"] != old["_target_"]:  # keys of its own
                mine = {key: value for key, value in mine.items() if key in node}
            made[section] = {**mine, **{k: v for k, v in node.items() if k not in old or old[k] != v}}
    if "denoise" in names:  # it has no keys of mixing that could be off
        off = {"mixup": 0.0, "cutmix": 0.0, "mix_share": 1.0}.items()
        made = {**made, "objective": dict(made["objective"].items() - off)}
    return Settings.of(made)


def epoch(exp: Experiment, number: int, state: checkpoint.State) -> None:
    row = loop.train_epoch(exp, number, state, Screen(quiet=True), Watch(exp))
    exp.scheduler.end_epoch(row["train_loss"])
    state.epoch, state.best = number, {"epoch": number, "value": 0.0, "val_loss": None}


def tensors(exp: Experiment) -> dict[str, Tensor]:
    found = {f"model.{name}": value for name, value in exp.model.state_dict().items()}
    if exp.average is not None:
        found |= {f"ema.{name}": value for name, value in exp.average.state_dict().items()}
    return {name: value.detach().clone() for name, value in found.items()}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("pair", PAIRS, ids=map("-".join, PAIRS))
def test_a_killed_run_of_two_options_continues_with_the_same_bits(
    pair: tuple[str, str], earlier: Path, tmp_path: Path
) -> None:
    if FURTHER & {*pair}:
        pytest.importorskip("pytorch_optimizer", reason="the extra optimizers is not installed")
    cfg, refusal = settings(earlier, *pair), REFUSED.get(frozenset(pair))
    if refusal is not None:
        with pytest.raises(UserError, match=refusal):
            build(cfg)
        return
    exp, state, run = build(cfg, DATA), checkpoint.State(), Run(tmp_path, "")
    before = tensors(exp)
    epoch(exp, 1, state)
    run.checkpoints.mkdir()
    checkpoint.write(run, checkpoint.snapshot(exp, state), is_best=True)
    run.write_config(exp.cfg.plain)
    epoch(exp, 2, state)
    whole = tensors(exp)
    assert any(not torch.equal(value, before[name]) for name, value in whole.items())
    again = build(Settings.of(reading.config(tmp_path) | {"trust": []}), DATA, begun=True)
    state = checkpoint.restore(run, again)
    epoch(again, 2, state)
    run.release()
    for name, value in tensors(again).items():
        assert torch.equal(value, whole[name]), name


@pytest.fixture(scope="module")
def finished(earlier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that starts from another one, which is gone, with other classes, an average and teacher."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    cfg = settings(earlier, "start_from", "ema", "normalize")
    assert execute(cfg, claim(str(folder), ""), quiet=True) == 0
    return folder


def test_what_was_loaded_is_listed_and_recorded(finished: Path, earlier: Path) -> None:
    from dlrun.models.weights_file import digest

    lines = (finished / "weights.csv").read_text().splitlines()
    names = set(checkpoint.load(earlier / "checkpoints/best.pt")["model"])
    assert {line.partition(",")[0] for line in lines[1:]} == names
    assert all(",loaded," in line for line in lines[1:])
    record = reading.stored(finished)["started_from"]
    assert record["sha256"] == digest(earlier / "checkpoints/best.pt")
    assert (record["loaded"], record["new"], record["left"], record["head"]) == (len(names), 0, 0, "loaded")
    assert str(earlier) in (finished / "log.txt").read_text()


def test_the_first_weights_are_those_of_the_run(earlier: Path) -> None:
    theirs = checkpoint.load(earlier / "checkpoints/best.pt")["model"]
    exp = build(settings(earlier, "start_from", "ema"))
    assert all(torch.equal(value, theirs[name]) for name, value in exp.model.state_dict().items())
    assert exp.average is not None
    assert all(torch.equal(value, theirs[name]) for name, value in exp.average.state_dict().items())


def test_classes_are_matched_by_name(earlier: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 17, (60, 8, 8, 1)).astype(np.uint8) * 15
    np.savez(tmp_path / "a.npz", x=x, y=np.array(["7", "other", "3"])[np.arange(60) % 3])
    words = ("dataset=arrays", f"dataset.path={tmp_path / 'a.npz'}", f"trainer.start_from={earlier}")
    exp = build(composed(*BASE, *words))
    theirs = checkpoint.load(earlier / "checkpoints/best.pt")["model"]
    head = [name for name in theirs if theirs[name].shape[:1] == (10,)]
    own = exp.model.state_dict()
    assert exp.data.classes == ["3", "7", "other"]
    assert head
    for name in head:
        assert torch.equal(own[name][:2], theirs[name][[3, 7]])
    assert exp.start is not None
    assert exp.start.head == "partly loaded"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("model.width=4",), r"stage1\..*\[2, .*\[4, "),
        (("model=mlp", "model.width=4"), "stage1"),
        (("model=torchvision", "model.name=squeezenet1_1", "model.weights=true"), r"model\.weights"),
    ],
)
def test_weights_of_another_network_are_refused(earlier: Path, words: tuple[str, ...], named: str) -> None:
    width = () if "torchvision" not in words[0] else ("~",)
    base = [word for word in BASE if not width or not word.startswith("model.width")]
    with pytest.raises(UserError, match=rf"trainer\.start_from=.*{named}"):
        build(composed(*base, *words, f"trainer.start_from={earlier}"))


def test_a_folder_or_file_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.start_from=nowhere"):
        composed(*BASE, "trainer.start_from=nowhere")
    with pytest.raises(UserError, match=r"trainer\.start_from="):  # a folder of something else
        build(composed(*BASE, f"trainer.start_from={tmp_path}"))
    (tmp_path / "a.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"trainer\.start_from=.*a\.pt"):
        build(composed(*BASE, f"trainer.start_from={tmp_path / 'a.pt'}"))


def test_checks_know_that_weights_were_loaded(earlier: Path) -> None:
    from dlrun.checks.receipts import setup
    from dlrun.checks.runner import CHECKS
    from dlrun.checks.sandbox import no_trace
    from dlrun.models.weights_file import digest

    fresh, exp = (build(settings(earlier, *names), DATA) for names in ((), ("start_from",)))
    for one in (fresh, exp):
        with torch.no_grad():
            one.model.get_submodule("head").weight.mul_(50)  # a classifier that is sure of itself
    with no_trace():
        found = {name: [CHECKS[name](one).status for one in (fresh, exp)] for name in ("initial_loss", "batch_norm")}
    assert found == {"initial_loss": ["fail", "pass"], "batch_norm": ["warn", "pass"]}
    assert (setup(fresh)["weights"], setup(exp)["weights"]) == ("", digest(earlier / "checkpoints/best.pt"))


def test_evaluate_and_ensembles_need_no_source(
    earlier: Path, finished: Path, dlrun: Callable[..., Outcome], here: Path
) -> None:
    hidden = earlier.with_name("hidden")
    earlier.rename(hidden)
    try:
        for words in (
            ("ensemble", str(finished), str(hidden), "--out", "both"),  # members of different mean and std
            ("evaluate", "both"),
        ):
            done = dlrun(*words)
            assert done.code == 0, (words, done.err)
    finally:
        hidden.rename(earlier)


def test_a_run_resumes_although_its_source_is_gone(earlier: Path, tmp_path: Path) -> None:
    cfg = settings(earlier, "start_from")
    assert execute(cfg.changed(trainer={"stop_after": 1}), claim(str(tmp_path / "run"), ""), quiet=True) == 0
    hidden = earlier.with_name("hidden")
    earlier.rename(hidden)
    try:
        stored = Settings.of(reading.config(tmp_path / "run") | {"trust": []}).changed(trainer={"stop_after": 0})
        assert execute(stored, reopen(str(tmp_path / "run")), resuming=True, quiet=True) == 0
    finally:
        hidden.rename(earlier)
    assert reading.stored(tmp_path / "run")["started_from"]["head"] == "loaded"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about its own internals
@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_is_checked_and_its_sweep_votes_teaches_predicts_and_is_exported(
    name: str, earlier: Path, dlrun: Callable[..., Outcome], here: Path
) -> None:
    if name in FURTHER:
        pytest.importorskip("pytorch_optimizer", reason="the extra optimizers is not installed")

    def ran(*words: str) -> None:
        done = dlrun(*words)
        assert done.code == 0, (words, done.out, done.err)

    option = [word.format(run=earlier) for word in OPTIONS[name]]
    ran("train", *BASE, *option, "-m", "seed=1,2", "sweep.dir=s")
    if name not in ("start_from", "distill", "consistent"):  # from so narrow a network, or so few images
        done = dlrun("check", *CHECKED, *option)
        failed = [line for line in done.out.splitlines() if " fail " in line]
        assert [("batch_norm" in line, "model.hold_norms" in line) for line in failed] == (
            [(True, True)] if name == "head_lr" else []  # it holds the norms of a new network
        ), failed
    if name == "denoise":  # it has no classes
        return
    ran("ensemble", "s", "--out", "e")
    new = str(earlier.parent / "new.npy")
    probabilities = {}
    for model in ("s/0000", "s/0001", "e"):
        ran("predict", model, new, "--out", "said.csv", "--force")
        probabilities[model] = np.loadtxt("said.csv", delimiter=",", skiprows=1, usecols=range(3, 13))
    votes = (probabilities["s/0000"] + probabilities["s/0001"]) / 2
    np.testing.assert_allclose(probabilities["e"], votes, atol=1e-5)
    ran("train", *BASE, "objective=distill", "objective.teacher=e", "run.dir=student")
    ran("export", "s/0000", "--to", "torch_export", "--out", "m.pt2")
