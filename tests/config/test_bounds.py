"""Option files and `--from` that would take hours or read this machine: one line that names the file, exit 2."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.config.compose import compose, composer
from dlrun.errors import UserError
from support.commands import Outcome
from support.hostile import change
from support.stored import write

GROWS = ["a0: &a0 [x, x]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 40))]
MERGES = ["a0: &a0 {x: 1}", *(f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}" for k in range(1, 40))]
TEXTS = {
    "aliases": "\n".join(GROWS),
    "merges": "\n".join(MERGES),
    "itself": "width: &a [*a]",
    "itself as keys": "width: &a {b: *a}",
    "an integer": f"width: 1{'0' * 400}",
    "a long integer": f"width: {'9' * 100_000}",
    "minutes": f"width: 1{':59' * 10_000}",
    "depth": "width: " + "[" * 400,
    "closed depth": "width: " + "[" * 100 + "]" * 100,
    "a number": "3",
    "a long file": "# " + "x" * (2 << 20),
}
REFERENCES = {
    "text": ["a0: xxxxxxxx", *(f"a{k}: ${{.a{k - 1}}}${{.a{k - 1}}}" for k in range(1, 40))],
    "keys": ["a0: {x: 1}", *(f"a{k}: {{x: '${{..a{k - 1}}}', y: '${{..a{k - 1}}}'}}" for k in range(1, 40))],
}
ROUTES = [
    ("model/bad.yaml", "train model=bad"),
    ("experiment/bad.yml", "train experiment=bad"),
    ("train.yaml", "check"),
    ("r.yaml", "train -cn r --cfg job"),
    ("from.yaml", "train --from conf/from.yaml"),
    ("config.yaml", "train --from conf"),
    ("model/bad.yaml", "train -m model=bad,cnn"),
    ("model/cnn.yaml", "train --help"),
]


@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
def test_a_file_that_would_take_hours(here: Path, dlrun: Callable[..., Outcome], text: str) -> None:
    for file, words in ROUTES[:1] + ROUTES[4:5]:
        write(here / "conf" / file, text + "\n")
        done = dlrun(*words.split())
        assert (done.code, done.err.count("\n")) == (2, 1), words
        assert file in done.err


@pytest.mark.parametrize(("file", "words"), ROUTES, ids=[words for _, words in ROUTES])
def test_every_reader_of_options(here: Path, dlrun: Callable[..., Outcome], file: str, words: str) -> None:
    write(here / "conf" / file, TEXTS["merges"])
    done = dlrun(*words.split())
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert file in done.err


@pytest.mark.parametrize("lines", REFERENCES.values(), ids=list(REFERENCES))
def test_references_that_repeat_each_other(here: Path, dlrun: Callable[..., Outcome], lines: list[str]) -> None:
    write(here / "conf/model/bad.yaml", "\n".join(["defaults: [cnn]", *lines]))
    done = dlrun("train", "model=bad")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "model.a" in done.err


@pytest.mark.parametrize("words", ["train model=bad", "explain model=bad", "check", "train --from conf/model/bad.yaml"])
def test_what_is_no_file_is_not_waited_for(here: Path, dlrun: Callable[..., Outcome], words: str) -> None:
    (here / "conf/model").mkdir(parents=True)
    for name in ("bad", "cnn"):
        os.mkfifo(here / f"conf/model/{name}.yaml")
    done = dlrun(*words.split())
    assert (done.code, done.err.count("\n")) == (2, 1)


def test_a_number_in_place_of_an_option(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write(here / "conf/experiment/bad.yaml", "model: 0.5\n")
    with pytest.raises(UserError, match=r"^model=0\.5"):
        compose("experiment=bad", "model=mlp")
    assert "model: 0.5" in dlrun("train", "experiment=bad", "model=mlp", "--cfg", "job").out  # as it is, unchecked


def test_links_and_merges_of_a_user_are_read(here: Path) -> None:
    write(here / "mine.yaml", "defaults: [cnn]\nwidth: 8\n")
    (here / "conf/model").mkdir(parents=True)
    (here / "conf/model/mine.yaml").symlink_to(here / "mine.yaml")
    write(here / "conf/experiment/two.yaml", "trainer: {<<: {epochs: 3}}\n")
    found = compose("model=mine", "experiment=two").plain
    assert (found["model"]["width"], found["trainer"]["epochs"]) == (8, 3)


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SECRET", "from-the-environment")
    return "from-the-environment"


READS = {
    "a value": {"seed": "${oc.env:SECRET}"},
    "a note of the model": {"model": {"norm": "x ${oc.env:SECRET}"}},
    "by another key": {"run": {"name": "SECRET"}, "model": {"norm": "${oc.env:${run.name}}"}},
    "a list": {"model": {"widths": ["${oc.env:SECRET}"]}},
    "a function in parts": {"model": {"norm": "${oc.${run.name}:SECRET}"}},
    "decoded": {"model": {"norm": "${oc.decode:'${oc.env:SECRET}'}"}},
    "a key": {"model": {"norm=${oc.env:SECRET}": 1}},
}


@pytest.mark.parametrize("keys", READS.values(), ids=list(READS))
@pytest.mark.parametrize("run", [True, False], ids=["of a run", "a file"])
def test_what_is_repeated_reads_no_environment(
    here: Path, dlrun: Callable[..., Outcome], secret: str, keys: dict[str, object], run: bool
) -> None:
    write(here / "theirs/config.yaml", "{}\n")
    change(here / "theirs/config.yaml", **keys, **({"choices": {"model": "cnn"}} if run else {}))
    done = dlrun("train", "--from", "theirs", "--cfg", "job", "--resolve")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert secret not in done.out + done.err
    assert not (here / "outputs").exists()


def test_a_file_may_name_its_own_keys(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write(here / "mine.yaml", "trainer: {epochs: 7}\nscheduler: {epochs: '${trainer.epochs}'}\n")
    done = dlrun("train", "--from", "mine.yaml", "--cfg", "job", "--resolve")
    assert done.code == 0, done.err
    assert done.out.count("epochs: 7") == 2


def test_options_of_a_person_read_their_environment(here: Path, secret: str) -> None:
    write(here / "conf/experiment/mine.yaml", "run: {note: '${oc.env:SECRET}'}\n")
    assert compose("experiment=mine").plain["run"]["note"] == secret
    assert compose("run.note=${oc.env:SECRET}").plain["run"]["note"] == secret


def test_only_typed_words_read_the_environment(here: Path, secret: str) -> None:
    typed = ["run.note=${oc.env:SECRET},b", "run.name='${oc.env:SECRET}'"]
    with composer({}, typed) as made:
        assert made.parse(["run.note=${oc.env:SECRET}", "run.name='${oc.env:SECRET}'"])  # one of several values
        for word in ("run.tags=[${oc.env:SECRET}]", "+x.y=${oc.env:SECRET}", "run.note=${oc.env:HOME}"):
            with pytest.raises(UserError, match=r"^[^\n]*typed"):
                made.parse([word])
