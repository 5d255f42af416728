"""`dlrun study NAME`: a question of the essays as a sweep, with rules that can come out "no"."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dlrun.analysis import claims
from dlrun.analysis import study as found
from dlrun.analysis.claims import AGREES, DOES_NOT, UNDECIDED, Setting
from dlrun.analysis.sweeps import read as trials_of
from dlrun.commands import study as command
from dlrun.config import studies
from dlrun.config.compose import Composer, composer
from dlrun.errors import UserError
from dlrun.reports import study_report
from dlrun.search import space
from dlrun.search.space import Axis
from dlrun.vocabulary import Exit
from support.commands import Outcome
from support.instant import instantly
from support.moods import QUICK
from support.stored import write
from support.swept import trial

NAMES = "learning_rate batch_size kernel_width weight_decay initialisation activation depth_skips optimizer schedule"
NAMES += " momentum dropout augmentation averaging ensemble_size subset_size"


def test_every_study_of_the_issue_is_there() -> None:
    assert set(studies.listed()) == set(NAMES.split())


def shapes(made: Composer, study: studies.Study) -> tuple[list[Axis], list[str]]:
    axes, fixed = space.read(made, command._words(study, []))
    return [a for a in axes if a.name != "seed"], fixed


def test_the_rules_of_a_study_name_values_that_it_runs(here: Path) -> None:
    with composer({}, []) as made:
        for name in NAMES.split():
            study = studies.load(name)
            axes, _ = shapes(made, study)
            points = [space.grid(axes, n) for n in range(space.size(axes))] if axes else []
            words = [[a.word(point[a.key]) for a in axes] for point in points]
            names = {" ".join(one) if len(one) > 1 else one[0].partition("=")[2] for one in words}
            names = {text.replace("True", "true").replace("False", "false") for text in names}
            asked = {str(rule[key]) for rule in study.rules for key in ("value", "than") if key in rule}
            assert asked | {study.control} <= (names or set(map(str, study.combine))), name
            assert study.seeds > 1  # else nothing is decidable


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES.split())
def test_every_point_of_a_study_composes(here: Path, name: str) -> None:
    with composer({}, []) as made:
        axes, fixed = shapes(made, studies.load(name))
        space.check(made, axes, fixed, True)


def settings(**values: tuple[float, ...]) -> list[Setting]:
    return [Setting(name, ensembles=[{"val_acc": v, "val_loss": v} for v in found]) for name, found in values.items()]


LOW, HIGH, NEAR = (0.50, 0.51, 0.49), (0.90, 0.91, 0.89), (0.505, 0.515, 0.495)
PAIR = {"value": "a", "than": "b", "of": "val_acc"}


@pytest.mark.parametrize(
    ("rule", "values", "outcome"),
    [
        ({"kind": "worse_than", **PAIR}, {"a": LOW, "b": HIGH}, AGREES),
        ({"kind": "worse_than", **PAIR}, {"a": HIGH, "b": LOW}, DOES_NOT),
        ({"kind": "worse_than", **PAIR}, {"a": LOW, "b": NEAR}, UNDECIDED),
        ({"kind": "worse_than", **PAIR, "by": 0.6}, {"a": LOW, "b": HIGH}, DOES_NOT),
        ({"kind": "worse_than", **PAIR, "of": "val_loss"}, {"a": HIGH, "b": LOW}, AGREES),
        ({"kind": "worse_than", **PAIR}, {"a": (0.5,), "b": (0.9,)}, UNDECIDED),  # one seed: no noise estimate
        ({"kind": "worse_than", **PAIR}, {"a": LOW, "c": HIGH}, UNDECIDED),  # not run
        ({"kind": "gain_between", **PAIR, "low": 0.3, "high": 0.5}, {"a": HIGH, "b": LOW}, AGREES),
        ({"kind": "gain_between", **PAIR, "low": 0.1, "high": 0.2}, {"a": HIGH, "b": LOW}, DOES_NOT),
        ({"kind": "gain_between", **PAIR, "low": 0.02, "high": 0.2}, {"a": NEAR, "b": LOW}, UNDECIDED),
        ({"kind": "ratio_at_least", **PAIR, "ratio": 1.5}, {"a": HIGH, "b": LOW}, AGREES),
        ({"kind": "ratio_at_least", **PAIR, "ratio": 1.5}, {"a": NEAR, "b": LOW}, DOES_NOT),
        ({"kind": "ratio_at_most", **PAIR, "ratio": 1.5}, {"a": HIGH, "b": LOW}, DOES_NOT),
        ({"kind": "ratio_at_most", **PAIR, "ratio": 1.0}, {"a": NEAR, "b": LOW}, UNDECIDED),
        ({"kind": "no_difference", **PAIR, "within": 0.1}, {"a": NEAR, "b": LOW}, AGREES),
        ({"kind": "no_difference", **PAIR, "within": 0.1}, {"a": HIGH, "b": LOW}, DOES_NOT),
        ({"kind": "no_difference", **PAIR, "within": 0.01}, {"a": NEAR, "b": LOW}, UNDECIDED),
        ({"kind": "near", "of": "val_acc", "value": "a", "number": 0.5, "within": 0.03}, {"a": LOW}, AGREES),
        ({"kind": "near", "of": "val_acc", "value": "a", "number": 0.5, "within": 0.02}, {"a": HIGH}, DOES_NOT),
        ({"kind": "best_inside", "of": "val_acc"}, {"a": LOW, "b": HIGH, "c": NEAR}, AGREES),
        ({"kind": "best_inside", "of": "val_acc"}, {"a": HIGH, "b": LOW, "c": NEAR}, DOES_NOT),
        ({"kind": "best_inside", "of": "val_acc"}, {"a": LOW, "b": NEAR, "c": LOW}, UNDECIDED),
        ({"kind": "best_inside", "of": "val_loss"}, {"a": HIGH, "b": LOW, "c": HIGH}, AGREES),
    ],
)
def test_a_rule_comes_out_yes_no_or_not_decidable(
    rule: Mapping[str, Any], values: dict[str, tuple[float, ...]], outcome: str
) -> None:
    assert claims.judge(rule, settings(**values)).outcome == outcome


def test_the_loss_of_chance_follows_from_the_classes() -> None:
    rule = {"kind": "near", "of": "val_loss", "value": "a", "number": "chance_loss", "within": 0.01}
    assert claims.judge(rule, settings(a=(2.30, 2.303, 2.304)), classes=10).outcome == AGREES
    assert claims.judge(rule, settings(a=(2.30, 2.303, 2.304)), classes=100).outcome == DOES_NOT
    assert claims.judge(rule, settings(a=(2.30, 2.303, 2.304))).outcome == UNDECIDED


def seeds(name: str, scores: tuple[float, ...], diverged: int = 0) -> Setting:
    """A setting of runs, some of which diverged."""
    done = [(Path("nowhere"), {"status": "completed", "val_acc": score}) for score in scores]
    return Setting(name, [*done, *[(Path("nowhere"), {"status": "diverged"})] * diverged])


WORSE = {"kind": "worse_than", **PAIR}
INSIDE = {"kind": "best_inside", "of": "val_acc"}


@pytest.mark.parametrize(
    ("rule", "values", "outcome"),
    [
        (WORSE, [seeds("a", LOW, 1), seeds("b", HIGH)], AGREES),  # a is still worse with the seed that it lost
        (WORSE, [seeds("a", HIGH, 1), seeds("b", LOW)], UNDECIDED),
        (WORSE, [seeds("a", LOW), seeds("b", HIGH, 1)], UNDECIDED),
        (WORSE, [seeds("a", HIGH), seeds("b", LOW, 1)], DOES_NOT),
        (WORSE, [seeds("a", LOW, 1), seeds("b", HIGH, 1)], UNDECIDED),
        ({**WORSE, "kind": "no_difference", "within": 0.1}, [seeds("a", LOW, 1), seeds("b", NEAR)], UNDECIDED),
        ({**WORSE, "kind": "gain_between", "low": 0.3, "high": 0.5}, [seeds("a", HIGH, 1), seeds("b", LOW)], UNDECIDED),
        ({**WORSE, "kind": "ratio_at_least", "ratio": 1.5}, [seeds("a", HIGH), seeds("b", LOW, 1)], UNDECIDED),
        (
            {"kind": "near", "of": "val_acc", "value": "a", "number": 0.5, "within": 0.1},
            [seeds("a", LOW, 1)],
            UNDECIDED,
        ),
        (INSIDE, [seeds("a", LOW), seeds("b", HIGH, 1), seeds("c", LOW)], UNDECIDED),
        (INSIDE, [seeds("a", LOW, 1), seeds("b", HIGH), seeds("c", LOW)], AGREES),
        (INSIDE, [seeds("a", LOW), seeds("b", NEAR), seeds("c", HIGH, 1)], UNDECIDED),
    ],
)
def test_seeds_that_diverged_count_against_their_value(
    rule: Mapping[str, Any], values: list[Setting], outcome: str
) -> None:
    judged = claims.judge(rule, values)
    assert judged.outcome == outcome
    assert "1 of 4 seeds of" in judged.said


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([seeds("a", (), 3), seeds("b", HIGH), seeds("c", (), 3)], AGREES),
        ([seeds("a", LOW), seeds("b", HIGH), seeds("c", (), 3)], AGREES),
        ([seeds("a", HIGH), seeds("b", LOW), seeds("c", (), 3)], DOES_NOT),
        ([seeds("a", HIGH), seeds("b", (), 3), seeds("c", (), 3)], DOES_NOT),  # it is best at an end
        ([seeds("a", LOW), seeds("b", NEAR), seeds("c", (), 3)], UNDECIDED),
        ([seeds("a", ()), seeds("b", HIGH), seeds("c", (), 3)], UNDECIDED),  # runs that failed say nothing
        ([seeds("a", (), 3), seeds("b", (), 3), seeds("c", (), 3)], UNDECIDED),
    ],
)
def test_the_best_is_inside_of_ends_that_diverged(values: list[Setting], outcome: str) -> None:
    judged = claims.judge(INSIDE, values)
    assert (judged.outcome, "nan" in judged.said, "inf" in judged.said) == (outcome, False, False)


def test_near_is_undecided_within_its_noise() -> None:
    rule = {"kind": "near", "of": "val_acc", "value": "a", "number": 0.5, "within": 0.05}
    assert claims.judge(rule, settings(a=(0.3, 0.5, 0.7))).outcome == UNDECIDED


def seen(*values: Setting) -> str:
    study = {"score": "val_acc", "essay": "e"}
    there = found.Found(study, ["k"], list(values), [])
    return found.sentences(there, found.rows(there))[0]


def test_ties_are_named_together_and_lost_seeds_are_behind() -> None:
    assert seen(seeds("a", HIGH), seeds("b", HIGH)).startswith("val_acc with k a and b is the same, 0.9000")
    said = seen(seeds("a", HIGH), seeds("b", HIGH), seeds("c", LOW), seeds("d", (0.99, 0.98), 1), seeds("e", (), 3))
    assert "best with k a and b, 0.9000" in said
    assert "worst with d, 0.9850" in said
    assert "1 of its seeds" in said
    assert "with e diverged" in said
    assert seen(seeds("a", HIGH)).startswith("val_acc with k a is 0.9")


RATES = ("0.001", "0.1", "10")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A study of learning rates, of which the highest diverged; each with two seeds."""
    folder = tmp_path / "s"
    for rate, scores in zip(RATES, ((0.4, 0.42), (0.9, 0.92), None), strict=True):
        for k, seed in enumerate((1, 2)):
            words = {"optimizer__lr": rate, "seed": seed}
            trial(folder, scores[k], **words) if scores else trial(folder, 0.1, "diverged", **words)
    study = {**studies.load("learning_rate").record(), "values": [f"optimizer.lr={','.join(RATES)}"]}
    study["rules"] = [
        {"kind": "best_inside", "of": "val_acc"},
        {"kind": "worse_than", "value": "10", "than": "0.1", "of": "val_loss@best"},
        {"kind": "worse_than", "value": "0.001", "than": "0.1", "of": "val_loss@last", "than_of": "val_loss@first"},
    ]
    axes = [{"key": "optimizer.lr", "words": list(RATES)}, {"key": "seed", "words": ["1", "2"]}]
    plan = {"fixed": [], "axes": axes, "search": {"metric": "val_acc"}, "purpose": {"study": study}}
    rounds = [{"stage": 1, "first": 0, "new": 6, "axes": axes}]
    write(folder / "sweep.yaml", yaml.safe_dump({**plan, "rounds": rounds}))
    return folder


def test_a_study_is_judged_from_its_folder_and_drawn(stored: Path) -> None:
    trials = trials_of(stored)
    seen = found.read(stored, trials)
    assert isinstance(seen, found.Found)
    assert [j.outcome for j in seen.judged][:2] == [AGREES, AGREES]  # a rate that diverged is worse
    assert (seen.keys, [s.name for s in seen.settings]) == (["optimizer.lr"], list(RATES))
    table = found.rows(seen)
    assert [row["rest"] for row in table] == ["", "", "2 diverged"]
    assert table[1]["val_acc"] == pytest.approx(0.91)
    html = study_report.section(stored, trials)
    assert (stored / "plots/study.png").stat().st_size > 10_000
    assert html.count("<li>") == 3
    seen.judged[1].outcome = DOES_NOT
    assert claims.overall(seen.judged) == DOES_NOT
    assert "does not agree" in found.sentences(seen, table)[1]


def test_ensembles_of_each_size_are_votes_of_the_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    one = Setting("")
    for k in range(5):
        path = tmp_path / str(k)
        path.mkdir()
        logits = rng.normal(size=(300, 3)) + 1.2 * np.eye(3)[labels]
        np.savez(path / "predictions.npz", test_logits=logits, test_labels=labels)
        one.runs.append((path, {"status": "completed"}))
    single, five, six = found._ensembles([one], [1, 5, 6])
    assert (len(single.ensembles), len(five.ensembles), len(six.ensembles)) == (5, 5, 0)
    assert len({e["test_acc"] for e in five.ensembles}) == 1  # all five vote each time
    gain = claims.judge({"kind": "gain_between", "of": "test_acc", "value": "5", "than": "1", "low": 0.02, "high": 0.5},
                       [single, five])  # fmt: skip
    assert gain.outcome == AGREES


WORDS = ("optimizer.lr=0.01,0.1", "seed=1,2", *QUICK, "model.width=4", "hydra.launcher.workers=1", "sweep.dir=s")


def test_a_study_is_a_sweep_and_typed_words_win(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = instantly(monkeypatch, lambda config: float(0.5 + config["optimizer"]["lr"] + 0.001 * config["seed"]))
    outcome = dlrun("study", "learning_rate", *WORDS)
    assert outcome.code == Exit.FINE, outcome.err
    assert [(job.config["optimizer"]["lr"], job.config["seed"]) for job in ran.jobs] == [
        (0.01, 1),
        (0.01, 2),
        (0.1, 1),
        (0.1, 2),
    ]
    assert {job.config["trainer"]["epochs"] for job in ran.jobs} == {1}
    assert {job.config["scheduler"]["_target_"].rpartition(".")[2] for job in ran.jobs} == {"constant"}
    assert UNDECIDED in outcome.out  # 0.0001 was not run
    assert dlrun("resume", "s").code == Exit.FINE
    assert len(ran.jobs) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learning_rate", "ensemble_size"])
def test_a_real_study(here: Path, dlrun: Callable[..., Outcome], name: str) -> None:
    words = [w for w in WORDS if "optimizer.lr" not in w and w not in ("trainer.report=false", "seed=1,2")]
    outcome = dlrun("study", name, *words)
    assert outcome.code == Exit.FINE, outcome.err
    assert "<h2>Study</h2>" in (here / "s/report.html").read_text()


GOOD = "# mine\nquestion: q\nessay: e\nvalues: ['optimizer.lr=0.1,0.2']\nrules: [{kind: best_inside, of: val_acc}]\n"


def test_people_add_their_own(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write(here / "conf/study/mine.yaml", GOOD)
    write(here / "conf/study/momentum.yaml", GOOD.replace("question: q", "question: ours"))
    assert studies.load("mine").values == ("optimizer.lr=0.1,0.2",)
    assert studies.load("momentum").question == "ours"
    said = dlrun("study", "--help")
    assert (said.code, "mine" in said.out, "learning_rate" in said.out) == (Exit.FINE, True, True)
    write(here / "conf/study/broken.yaml", "question: [\n")
    write(here / "conf/study/lacking.yaml", "question: q\n")
    said = dlrun("study", "--help")
    lines = [line for line in said.out.splitlines() if line.startswith(("  broken", "  lacking", "  mine"))]
    assert (said.code, len(lines)) == (Exit.FINE, 3)
    assert "broken.yaml" in lines[0]
    assert "lacking.yaml" in lines[1]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("words: ['trust=[os]']", "trust"),
        ("words: [model._target_=os.system]", "_target_"),
        ("words: ['hydra.launcher.setup=[touch x]']", "hydra.launcher.setup"),
        ("words: ['hydra.searchpath=[file:///tmp]']", "hydra.searchpath"),
        ("words: ['dataset.root=${oc.env:HOME}']", "dataset.root"),
        ("words: [run.dir=/tmp/x]", "run.dir"),
        ("words: [sweep.dir=/tmp/x]", "sweep.dir"),
        ("command: rm", "command"),
        ("seeds: 0", "seeds"),
        ("words: nothing", "words"),
        ("combine: [9]", "combine"),
        ("combine: [1]", "values"),
        ("rules: [{kind: import, of: os}]", "import"),
        ("rules: [{kind: worse_than, of: val_acc, value: 1}]", "than"),
        ("rules: [{kind: best_inside, of: val_acc@never}]", "val_acc@never"),
        ("rules: [{kind: near, of: val_acc, value: 1, within: .inf, number: 1}]", "within"),
        ("rules: []", "rules"),
    ],
)
def test_a_study_of_a_folder_is_data_alone(here: Path, dlrun: Callable[..., Outcome], text: str, named: str) -> None:
    """It adds no trust, code, folder or command, and a malformed one is one line that names file and key."""
    lines = [line for line in GOOD.splitlines() if line.partition(":")[0] != text.partition(":")[0]]
    write(here / "conf/study/bad.yaml", "\n".join([*lines, text]) + "\n")
    outcome = dlrun("study", "bad")
    assert (outcome.code, outcome.err.count("\n")) == (Exit.USAGE, 1), outcome.err
    assert named in outcome.err
    assert "bad.yaml" in outcome.err
    with pytest.raises(UserError):
        studies.load("bad")
    assert not (here / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "learning_rate"),
        (("learning_rat",), "learning_rate"),
        (("learning_rate", "momentum"), "2"),
        (("learning_rate", "optimizer.lr=loguniform:0.1:1"), "optimizer.lr"),
        (("learning_rate", "optimizer.lrr=1"), "optimizer.lr"),
        (("ensemble_size", "optimizer.lr=0.1,0.2"), "optimizer.lr"),
        (("ensemble_size", "seed=3"), "expected several seeds"),
        (("ensemble_size", "dataset=table", "dataset.csv=t.csv", "dataset.targets=[a,b]"), "dataset.targets=[a,b]"),
        (("../optimizer/sgd",), "sgd"),
        (("learning_rate", "study=momentum"), "dlrun study momentum"),
    ],
)
def test_wrong_input_is_one_line(here: Path, dlrun: Callable[..., Outcome], words: tuple[str, ...], named: str) -> None:
    write(here / "t.csv", "image,a,b,split\nx.png,1,1,train\ny.png,0,0,train\n")
    outcome = dlrun("study", *words)
    assert (outcome.code, outcome.err.count("\n"), named in outcome.err) == (Exit.USAGE, 1, True), outcome.err


def test_means_of_nothing_are_unknown() -> None:
    assert claims.judge({"kind": "best_inside", "of": "val_acc"}, settings(a=(), b=())).outcome == UNDECIDED
    assert math.isnan(claims._measure(Path("nowhere"), {}, "val_loss@last"))


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ({"kind": "gain_between", **PAIR, "low": 0.01, "high": 0.2}, {"a": (0.6, 0.5, 0.55), "b": LOW}),
        ({"kind": "ratio_at_least", **PAIR, "ratio": 1.05}, {"a": (0.6, 0.5, 0.55), "b": LOW}),
        ({"kind": "best_inside", "of": "val_acc"}, {"a": HIGH, "b": (0.6, 1.0, 0.9), "c": LOW}),
    ],
)
def test_what_is_within_the_noise_of_its_own_values_is_undecided(
    rule: Mapping[str, Any], values: dict[str, tuple[float, ...]]
) -> None:
    assert claims.judge(rule, settings(**values)).outcome == UNDECIDED


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.update(rounds=[]),
        lambda plan: plan["rounds"][0].update(new=1_000_000),
        lambda plan: plan["purpose"]["study"].update(score="rest"),
        lambda plan: plan["purpose"]["study"].update(combine=[0]),
        lambda plan: plan["rounds"][0]["axes"][0].update(key="rest"),
        lambda plan: plan["purpose"].update(study="x"),
    ],
    ids=["rounds", "trials", "score", "combine", "key", "text"],
)
def test_the_study_of_a_damaged_or_foreign_sweep_is_not_judged_and_says_why(
    stored: Path, change: Callable[[Any], None]
) -> None:
    plan = yaml.safe_load((stored / "sweep.yaml").read_text())
    change(plan)
    write(stored / "sweep.yaml", yaml.safe_dump(plan))
    said = found.read(stored, trials_of(stored))
    assert isinstance(said, str)  # why, in one line
    assert "sweep.yaml" in said
    assert "\n" not in said
    assert said[1:].split(":")[0] in study_report.section(stored, trials_of(stored))


def test_votes_of_several_targets_are_refused_in_words(stored: Path) -> None:
    plan = yaml.safe_load((stored / "sweep.yaml").read_text())
    plan["purpose"]["study"].update(combine=[1, 2])
    plan["rounds"][0] |= {"new": 2, "axes": plan["rounds"][0]["axes"][1:]}
    write(stored / "sweep.yaml", yaml.safe_dump(plan))
    trials = trials_of(stored)
    trials.entries[0].result["data"] = {"tasks": {"species": [], "age": []}}  # type: ignore[index]
    said = found.read(stored, trials)
    assert isinstance(said, str)
    assert "species, age" in said


def test_a_study_with_one_value_typed_is_drawn(stored: Path) -> None:
    plan = yaml.safe_load((stored / "sweep.yaml").read_text())
    plan["rounds"][0] |= {"new": 2, "axes": plan["rounds"][0]["axes"][1:]}  # the seeds
    write(stored / "sweep.yaml", yaml.safe_dump(plan))
    assert study_report.section(stored, trials_of(stored)).count("<li>") == 3
