"""The command line: verbs, flags, completion, the user's own configs, start-up, and the wheel."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun import __version__, cli
from dlrun.cli import VERBS
from dlrun.config.compose import builtin_conf, compose
from dlrun.config.flags import split
from dlrun.errors import UserError
from support.commands import TINY, Outcome
from support.stored import write

SCRIPT = str(Path(sys.executable).with_name("dlrun"))


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_names_every_verb(dlrun: Callable[..., Outcome], word: str) -> None:
    outcome = dlrun(word)
    assert (outcome.code, outcome.err) == (0, "")
    for verb, what in VERBS.items():
        assert f"  {verb:<14}{what}\n" in outcome.out


def test_without_a_verb_the_usage_is_the_answer_and_an_error(dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun()
    assert outcome.code == 2
    assert outcome.out.startswith("usage: dlrun <verb>")


def test_torch_is_asked_for_large_pages_unless_a_user_says_otherwise(
    dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert dlrun("compare", "--help").code == 0
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    assert dlrun("compare", "--help").code == 0
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"


def test_a_million_objects_that_stay_cost_no_search_for_unreachable_ones(dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("compare", "--help").code == 0
    before = gc.get_stats()[2]["collections"]
    kept: list[list[int]] = [[] for _ in range(500_000)]
    assert gc.get_stats()[2]["collections"] - before <= 1
    assert len(kept) == 500_000


def test_version(dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("--version").out == f"dlrun {__version__}\n"


def test_module_is_the_same_program(here: Path) -> None:
    answers = [
        subprocess.run([*program, "train", "model=resnt18"], capture_output=True, text=True, timeout=60)
        for program in ([SCRIPT], [sys.executable, "-m", "dlrun"])
    ]
    assert answers[0].returncode == answers[1].returncode == 2
    assert answers[0].stderr == answers[1].stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
@pytest.mark.parametrize("words", [["list"], ["--help"], ["predict", "--help"], ["train", "--cfg", "job"], ["init"]])
def test_output_that_cannot_be_written_is_one_line(here: Path, words: list[str]) -> None:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "dlrun", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("dlrun: ")


def test_an_error_has_its_code_if_nobody_can_read_it(here: Path) -> None:
    command = f"{sys.executable} -m dlrun nosuch 2>&-; echo $?; {sys.executable} -m dlrun list >&-; echo $?"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["2", "0"], done.stderr
    head = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m dlrun compare --help | true"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert head.stderr == ""


@pytest.mark.parametrize(
    ("error", "code", "named"),
    [
        (PermissionError(13, "Permission denied", "a/b.csv"), 2, "a/b.csv"),
        (OSError(28, "No space left on device"), 1, "No space"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, named: str
) -> None:
    def refuse(argv: list[str]) -> int:
        raise error

    from dlrun.commands import list as listing

    monkeypatch.setattr(listing, "main", refuse)
    monkeypatch.setattr(cli, "_discard", lambda stream: None)
    outcome = dlrun("list")
    assert (outcome.code, outcome.err.count("\n")) == (code, 1)
    assert named in outcome.err
    monkeypatch.setattr(sys, "argv", ["dlrun", "list", "--debug"])
    with pytest.raises(type(error)):
        cli.main()


def test_a_bug_keeps_its_traceback(dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.commands import list as listing

    monkeypatch.setattr(listing, "main", lambda argv: [][1])
    monkeypatch.setattr(sys, "argv", ["dlrun", "list"])
    with pytest.raises(IndexError):
        cli.main()


@pytest.mark.parametrize("verb", ["train", "check"])
def test_help_of_a_verb_lists_groups_and_keys(dlrun: Callable[..., Outcome], verb: str) -> None:
    outcome = dlrun(verb, "--help", "model=mlp")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"== dlrun {verb} ==")
    lines = outcome.out.splitlines()
    others = ("hydra", "study")  # `dlrun study --help` lists the studies
    for folder in sorted(p for p in builtin_conf().iterdir() if p.name not in others and any(p.glob("*.yaml"))):
        assert f"{folder.name}: {', '.join(sorted(f.stem for f in folder.glob('*.yaml')))}" in lines
    assert not [line for line in lines if line.startswith("study: ")]
    assert "  _target_: dlrun.models.mlp.MLP" in lines  # the keys of the options asked for
    assert "$DLRUN_CONF" in outcome.out


@pytest.mark.parametrize("verb", ["resume", "compare", "report"])
def test_help_of_the_others(dlrun: Callable[..., Outcome], verb: str) -> None:
    outcome = dlrun(verb, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"usage: dlrun {verb}")


def test_hydras_flags_work_through_the_verbs(dlrun: Callable[..., Outcome]) -> None:
    shown = dlrun("train", "optimizer=sgd", "--cfg", "job", "optimizer.lr=0.5", "--package=optimizer")
    assert shown.code == 0
    assert "_target_: torch.optim.SGD\nlr: 0.5\n" in shown.out
    assert "epochs: ${trainer.epochs}" in dlrun("train", "-c", "job").out
    assert "${" not in dlrun("train", "--cfg=job", "--resolve").out
    assert "== Flags ==" in dlrun("train", "--hydra-help").out


def test_the_config_of_a_preset_shows_what_the_run_uses(dlrun: Callable[..., Outcome]) -> None:
    words = ("train", "experiment=cifar10_speedrun", "--cfg", "job", "--package=optimizer")
    assert "sgd_momentum" in dlrun(*words).out
    shown = dlrun(*words, "optimizer=adam", "optimizer.lr=0.01")
    assert (shown.code, shown.err) == (0, "")
    assert "torch.optim.Adam\n" in shown.out
    assert "lr: 0.01\n" in shown.out
    assert "sgd_momentum" not in shown.out


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("trainer.epochs=-1", "trainer.epochs=-1: expected"),
        ("optimizer.lr=abc", "optimizer.lr=abc: expected"),
        ("dataset=image_folder", "dataset.root is missing"),
    ],
)
def test_a_config_that_training_refuses_is_shown_and_the_reason_said(
    word: str, line: str, dlrun: Callable[..., Outcome]
) -> None:
    shown, trained = dlrun("train", word, "--cfg", "job"), dlrun("train", word)
    assert (shown.code, shown.err) == (trained.code, trained.err)
    assert (shown.code, shown.err.startswith(f"dlrun: {line}"), shown.err.count("\n")) == (2, True, 1)
    assert "trainer:\n" in shown.out
    assert dlrun("train", word, "--cfg", "hydra").code == 0
    assert (done := dlrun("train", "search.trials=3", "--cfg", "job")).code == 0, done  # which cannot be typed with -m


def test_explaining_refuses_in_one_line_and_bears_a_closed_pipe(here: Path, dlrun: Callable[..., Outcome]) -> None:
    refused = dlrun("train", "--cfg", "job", "optimizer.lrr=1")
    assert (refused.code, refused.err) == (
        2,
        "dlrun: optimizer.lrr: no such key; `dlrun train --help` lists the keys\n",
    )
    info = subprocess.run([SCRIPT, "train", "--info", "searchpath"], capture_output=True, text=True, timeout=60)
    assert f"file://{builtin_conf()}" in info.stdout
    command = f"{sys.executable} -m dlrun train --info defaults-tree | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_flags_and_overrides_in_any_order() -> None:
    assert split(["seed=1,2", "-m", "optimizer=adam"]) == (
        {"--multirun": None},
        ["seed=1,2", "optimizer=adam"],
    )
    assert split(["-c", "job", "a=1", "--package", "model", "b=2"]) == (
        {"--cfg": "job", "--package": "model"},
        ["a=1", "b=2"],
    )
    assert split(["--info", "a=1"]) == ({"--info": "all"}, ["a=1"])
    assert split(["--info", "searchpath", "~a"]) == ({"--info": "searchpath"}, ["~a"])
    assert split(["-cd=conf", "-cn", "mine"]) == ({"--config-dir": "conf", "--config-name": "mine"}, [])
    for wrong in (
        ["--help=3"],
        ["--config-dir"],
        ["-x"],
        ["--config-path", "conf"],
        ["--experimental-rerun=x"],
    ):
        with pytest.raises(UserError):
            split(wrong)


def test_own_folders_add_and_override(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adam = "_target_: torch.optim.Adam\nlr: {}\n"
    write(here / "conf/optimizer/adam.yaml", adam.format(0.5))
    write(here / "elsewhere/optimizer/adam.yaml", adam.format(0.25))
    write(here / "elsewhere/optimizer/mine.yaml", adam.format(0.125))
    assert compose().optimizer["lr"] == 0.5
    monkeypatch.setenv("DLRUN_CONF", str(here / "elsewhere"))
    assert compose().optimizer["lr"] == 0.5  # ./conf wins over $DLRUN_CONF …
    assert compose("optimizer=mine").optimizer["lr"] == 0.125
    (here / "conf/optimizer/adam.yaml").unlink()
    assert compose().optimizer["lr"] == 0.25  # … which wins over the built-in one
    assert compose("optimizer=sgd").optimizer["lr"] == 0.1


def test_config_dir_and_searchpath_add(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write(here / "more/optimizer/mine.yaml", "_target_: torch.optim.Adam\nlr: abc\n")
    for words in (("--config-dir", "more"), ("hydra.searchpath=[file://more]",)):
        outcome = dlrun("train", *words, "optimizer=mine", "seed=x")  # gets as far as the seed
        assert outcome.err.startswith("dlrun: seed=x: expected"), outcome.err
        assert "lr: abc" in dlrun("train", *words, "optimizer=mine", "--cfg", "job").out
    assert "no such option" in dlrun("train", "optimizer=mine").err  # not remembered


def test_a_root_config_of_ones_own(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write(
        here / "conf/mine.yaml",
        "defaults:\n  - train\n  - override model: mlp\n  - _self_\nseed: 7\nmodel: {dpth: 1}\n",
    )
    outcome = dlrun("train", "--config-name", "mine")
    assert re.match(r"dlrun: model\.dpth: .*\bmodel\.depth\b", outcome.err)
    write(here / "conf/mine.yaml", "defaults:\n  - train\n  - _self_\nseed: seven\n")
    assert dlrun("train", "--config-name=mine").err.startswith("dlrun: seed=seven: expected")


def complete(
    dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, line: str, point: int | None = None
) -> list[str]:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line) if point is None else point))
    outcome = dlrun("-sc", "query=bash")
    assert outcome.err == ""
    return outcome.out.split()


def test_completion_answers(dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(line: str, point: int | None = None) -> list[str]:
        return complete(dlrun, monkeypatch, line, point)

    assert ask("dlrun ") == list(VERBS)
    assert ask("dlrun tr") == list(VERBS)  # the shell keeps those that fit
    assert ask("dlrun train") == list(VERBS)
    assert {"model=", "optimizer=", "seed=", "trainer."} <= set(ask("dlrun train "))
    assert ask("dlrun train model=resnet1") == ["model=resnet18"]
    assert ask("dlrun check optimizer.lr") == ["optimizer.lr="]
    assert "model.width=" in ask("dlrun train -m model=mlp model.")
    assert ask("dlrun train model=resnet1 seed=3", point=25) == ["model=resnet18"]
    assert ask("dlrun resume ") == []  # files, which the shell completes by itself
    assert ask("dlrun train model=nope trainer.ep") == []
    assert ask("dlrun check --explain over") == ask("dlrun check --explain=over") == ["overfit"]


def test_completion_in_a_real_bash(here: Path) -> None:
    script = """
    eval "$(dlrun -sc install=bash)"
    COMP_LINE="dlrun $1"; COMP_POINT=${#COMP_LINE}
    COMP_WORDS=($COMP_LINE); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    hydra_bash_completion
    echo "${COMPREPLY[@]}"
    """
    env = {**os.environ, "PATH": f"{Path(SCRIPT).parent}:{os.environ['PATH']}"}
    for line, answer in {"tra": "train", "train model=resnet1": "model=resnet18"}.items():
        done = subprocess.run(["bash", "-c", script, "bash", line], capture_output=True, text=True, env=env, timeout=60)
        assert (done.stdout.strip(), done.stderr) == (answer, "")


IMPORTED = """
import json, sys
sys.argv = ["dlrun", *sys.argv[1:]]
from dlrun import cli
try:
    cli.main()
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], {"torch", "hydra", "omegaconf", "rich", "numpy", "yaml", "pathlib", "argparse"}),
        (["compare", "--help"], {"torch", "hydra", "omegaconf", "rich", "numpy"}),
        (["compare"], {"torch", "hydra", "omegaconf", "numpy", "pandas"}),
        (["resume", "nowhere"], {"torch", "hydra", "omegaconf"}),
        (["train", "--help"], {"torch", "numpy"}),
    ],
)
def test_answers_without_heavy_imports(here: Path, words: list[str], absent: set[str]) -> None:
    write(here / "outputs/runs/a/config.yaml", "seed: 1\n")
    write(here / "outputs/runs/a/result.json", json.dumps({"status": "completed", "val_acc": 0.5, "config": {}}))
    done = subprocess.run([sys.executable, "-c", IMPORTED, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    imported = set(json.loads(done.stderr.splitlines()[-1]))
    assert absent & imported == set()


def test_check_checks_and_makes_no_run(here: Path, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("check", "dataset.limit=100", "model.width=8", "trainer.threads=1", "check.only=[initial_loss]")
    assert outcome.code == 0, outcome.err
    assert "initial_loss" in outcome.out
    assert not (here / "outputs/runs").exists()


def test_train_then_resume_then_compare(here: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", *TINY).code == 0
    assert dlrun("train", "run.dir=outputs/runs/mine", "seed=2", *TINY).code == 0
    again = dlrun("train", "run.dir=outputs/runs/mine", *TINY)
    assert again.code == 2
    assert re.search(r"outputs/runs/mine\b.*\bcompleted\b.*`dlrun resume outputs/runs/mine`", again.err)
    resumed = dlrun("resume", "outputs/latest")
    assert (resumed.code, len(resumed.out.splitlines())) == (0, 1)
    assert resumed.out.startswith("outputs/latest is complete")
    table = dlrun("compare").out.splitlines()
    assert {"run", "status", "verdicts", "seed"} <= set(table[0].split())
    assert any(re.fullmatch(r"2 runs; .* outputs/compare\.csv", line) for line in table)


@pytest.mark.slow
def test_wheel_works_from_any_folder(tmp_path: Path) -> None:
    root = builtin_conf().parent
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(root)]
    subprocess.run(built, check=True, timeout=300)
    [wheel] = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    for file in builtin_conf().rglob("*.yaml"):
        assert f"dlrun/conf/{file.relative_to(builtin_conf())}" in inside
    assert not [name for name in inside if name.startswith(("tests/", "outputs/", "conf/"))]
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=300)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(site)}

    def call(*words: str) -> str:
        command = [sys.executable, "-m", "dlrun", *words]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"file://{site}/dlrun/conf" in call("train", "--info", "searchpath")
    assert "test accuracy" in call("train", *TINY)
    assert "1 run;" in call("compare")
