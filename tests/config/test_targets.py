"""The allowlist: a `_target_` outside it is refused by name, wherever it stands, and nothing of it runs."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlrun.config.targets import THEIRS, check_targets, instantiate
from dlrun.errors import UserError
from support.commands import Outcome, without_torch
from support.stored import write

FOREIGN = [
    "os.system",
    "builtins.eval",
    "builtins.open",
    "subprocess.Popen",
    "shutil.copy",
    "pandas.read_pickle",
    "torch.load",
    "torch.hub.load",
    "torch.utils.collect_env.run",
    "torch.nn.modules.os.system",
    "torch.nn.modules.module.functools.partial",
    "torch.optim.lr_scheduler.types.FunctionType",
    "torch.optim.lr_scheduler.LambdaLR",
    "torch.optim.Adam.register_step_post_hook",
    "torch.optim.sgd.SGD",
    "torchvision.models.resnet18",
    "dlrun.models.torchvision.torch.load",
    "dlrun.models.torchvision.pickle",
    "dlrun.models.torchvision.pickle.loads",
    "dlrun.models.torchvision._load",
    "dlrun.models.layers.dataclass",
    "dlrun.models.os.system",
    "dlrun.models.missing.Net",
    "dlrun.data.datasets.fcntl.flock",
    "dlrun.data.datasets.contextmanager",
    "dlrun.losses.nn.Module",
    "dlrun.folders.run.write_atomic",
    "dlrun.cli.main",
    "hydra.utils.get_method",
    "marker.Net",
    "markers.Net",
]
ODD = [
    "eval",
    ".os.system",
    "os..system",
    "os.system()",
    "os system",
    "",
    " torch.optim.SGD",
    3,
    True,
    ["os.system"],
]
ODD += [{"_target_": "os.system"}, "${oc.env:EVIL}", "torch.optim.SGD\n"]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_names_are_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=r"refused") as told:
        check_targets({"model": {"_target_": name}}, ["mark"])
    assert f"model._target_={name}" in str(told.value)


@pytest.mark.parametrize("name", ODD, ids=repr)
def test_odd_names_are_refused(name: Any) -> None:
    with pytest.raises(UserError, match=r"expected .*torch\.optim\.SGD"):
        check_targets({"model": {"_target_": name}}, [])


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model": {"deep": {"er": {"_target_": "os.system"}}}}, "model.deep.er._target_"),
        ({"model": {"parts": [1, {"_target_": "os.system"}]}}, "model.parts.1._target_"),
        ({"model": {"parts": [[{"_target_": "os.system"}]]}}, "model.parts.0.0._target_"),
        ({"scheduler": {"_target_": "os.system", "_partial_": True}}, "scheduler._target_"),
        ({"x": {"_target_": "torch.optim.SGD", "y": {"_target_": "os.system"}}}, "x.y._target_"),
        ({"_target_": "os.system"}, "_target_"),
    ],
)
def test_refused_wherever_it_stands(config: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as told:
        check_targets(config, [])
    assert str(told.value).startswith(f"{key}=os.system: refused")


def test_everything_on_the_list_is_there() -> None:
    import torch

    for name, expected in THEIRS.items():
        check_targets({"x": {"_target_": name}}, [])
        owner: Any = torch
        for part in name.split(".")[1:]:
            owner = getattr(owner, part, None)
        # the list may be ahead of the torch that is installed
        assert owner is None or owner.__qualname__ == expected


def test_near_names_are_offered() -> None:
    for wrong, right in (
        ("torch.optim.Addam", "torch.optim.Adam"),
        ("dlrun.models.cnn.CNNN", "dlrun.models.cnn.CNN"),
    ):
        with pytest.raises(UserError, match=f"did you mean {right}"):
            check_targets({"model": {"_target_": wrong}}, [])


MARKER = "open('touched', 'w')\nimport os\nfrom torch.nn import Linear\nclass Net: pass\n"


@pytest.fixture
def marked(here: Path) -> Path:
    write(here / "marker.py", MARKER)
    return here


# words of `dlrun train`, each leading out of the allowlist; EVIL=marker.Net
COMMANDS = [
    ("model=custom", "model._target_=marker.Net"),
    ("model=custom", "model._target_=${oc.env:EVIL}"),
    ("model=custom", "model._target_=marker.Net", "trust=[mark,marke,marker2]"),
    ("model._target_=torch.nn.modules.os.system",),
    ("model._target_=dlrun.models.torchvision.torch.load",),
    ("optimizer._target_=builtins.eval",),
    ("loss._target_=torch.utils.collect_env.run",),
    ("dataset._target_=pandas.read_pickle",),
    ("scheduler._target_=marker.Net",),
    ("augment._target_=marker.Net",),
    ("objective._target_=marker.Net",),
    ("regularizer._target_=marker.Net",),
    ("+model.activation_fn._target_=marker.Net",),
    ("+model.parts=[{_target_:marker.Net}]",),
    ("-m", "model._target_=dlrun.models.cnn.CNN,marker.Net"),
]


def test_train_refuses_before_anything_is_imported(marked: Path) -> None:
    env = {"EVIL": "marker.Net", "PYTHONPATH": str(marked)}
    outcomes = without_torch([("train", *words) for words in COMMANDS], marked, **env)
    for words, outcome in zip(COMMANDS, outcomes, strict=True):
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), words
        assert "refused" in outcome.err, words
    assert sorted(p.name for p in marked.iterdir()) == ["marker.py"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The config of a run, as it is stored."""

    from dlrun.config.compose import compose

    return compose("check=none", "trainer.epochs=1").plain


STRANGERS = {
    "!!python/object/apply:os.system [touch touched]\n": "not readable YAML",
    "seed: !!python/name:os.system\n": "not readable YAML",
    "- a list\n": "expected keys and values",
    "": "expected keys and values",
    "seed: 1\n": "dataset is missing",
    "seed: [1\n": "not readable YAML",
}


def test_resume_refuses_a_strangers_run(marked: Path, stored: dict[str, Any]) -> None:
    evil = {"model": {"_target_": "marker.Net"}, "trust": ["marker"]}
    nested = {"loss": {**stored["loss"], "inner": {"_target_": "marker.Net", "_partial_": True}}}
    changed = {
        "trusting": ({**stored, **evil}, "model._target_=marker.Net: refused"),
        "nested": ({**stored, **nested}, "loss.inner._target_=marker.Net: refused"),
        "open": ({**stored, "seed": "${oc.env:HOME}"}, "open/config.yaml: seed="),
        "hidden": ({**stored, "model": "${oc.decode:'{_target_: marker.Net}'}"}, "hidden/config.yaml: model="),
        "range": ({**stored, "seed": -1}, "seed=-1: expected"),
        "type": ({**stored, "trainer": {**stored["trainer"], "epochs": "x"}}, "trainer.epochs=x: expected"),
    }
    texts = {name: (yaml.safe_dump(plain), says) for name, (plain, says) in changed.items()}
    texts |= {f"text{i}": pair for i, pair in enumerate(STRANGERS.items())}
    for name, (text, _) in texts.items():
        write(marked / name / "config.yaml", text)
    env = {"PYTHONPATH": str(marked)}
    outcomes = without_torch([("resume", name) for name in texts], marked, **env)
    for (name, (_, says)), outcome in zip(texts.items(), outcomes, strict=True):
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), (name, outcome)
        assert says in outcome.err
        assert f"{name}/config.yaml" in outcome.err
    assert not (marked / "touched").exists()


def test_trust_admits_a_package_and_nothing_else(here: Path) -> None:
    write(
        here / "mine_a" / "__init__.py",
        "import os\nfrom torch.nn import Linear\nfrom mine_a.net import Net\n",
    )
    write(here / "mine_a" / "net.py", "class Net:\n    def __init__(self, num_classes): self.n = num_classes\n")
    for name in ("mine_a.Net", "mine_a.net.Net"):
        made = instantiate({"_target_": name}, ["mine_a"], "model", num_classes=7, image_size=8)
        assert made.n == 7
    bound = instantiate({"_target_": "mine_a.Net", "_partial_": True}, ["mine_a"], "model")
    assert isinstance(bound, functools.partial)
    for name in ("mine_a.os.system", "mine_a.Linear", "mine_a.net.mine_a.os.system"):
        with pytest.raises(UserError, match=r"refused|no such class"):
            instantiate({"_target_": name}, ["mine_a"], "model")
    for trust in ([], ["mine"], ["mine_a.other"]):
        with pytest.raises(UserError, match=r"type trust=\[mine_a\]"):
            instantiate({"_target_": "mine_a.Net"}, trust, "model")


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"_target_": "mine_c.Gone"}, r"model\._target_=mine_c\.Gone: no such class$"),
        ({"_target_": "mine_c.Nett"}, r"mine_c\.Nett: .*\bmine_c\.Net\?"),
        ({"_target_": "mine_d.Net"}, r"mine_d\.Net: .*\bpackage mine_d\b"),
        ({"_target_": "mine_c.Net", "widht": 3}, r"model\.widht: mine_c\.Net .*\bmodel\.width\?"),
        ({"_target_": "mine_c.Net", "width": -1}, r"model: mine_c\.Net .*: width below zero"),
        ({"_target_": "mine_c.Plain", "widht": 3}, r"conf/model/NAME\.yaml with _target_: mine_c\.Plain"),
        ({"_target_": "mine_broken.Net"}, r"mine_broken\.Net: .*'not_installed_at_all'"),
        ({"_target_": "mine_syntax.Net"}, r"mine_syntax\.Net: .*SyntaxError"),
    ],
)
def test_mistakes_around_ones_own_class(here: Path, node: dict[str, Any], says: str) -> None:
    body = "        if width < 0: raise ValueError('width below zero')\n"
    write(here / "mine_c.py", "class Net:\n    def __init__(self, width=1):\n" + body)
    with open(here / "mine_c.py", "a") as file:
        file.write("from torch import nn\nclass Plain(nn.Module):\n    pass\n")
    write(here / "mine_broken.py", "import not_installed_at_all\n")
    write(here / "mine_syntax.py", "def\n")
    with pytest.raises(UserError, match=says) as told:
        instantiate(node, ["mine_c", "mine_d", "mine_broken", "mine_syntax"], "model")
    assert "\n" not in str(told.value)


NET = """from torch import nn
class Net(nn.Sequential):
    def __init__(self, in_channels, image_size, num_classes, width=4):
        super().__init__(nn.Flatten(), nn.Linear(in_channels * image_size**2, width), nn.ReLU(),
                         nn.Linear(width, num_classes))
"""


@pytest.mark.slow
def test_console_script_finds_a_model_in_its_folder_and_resume_wants_trust_again(
    here: Path, dlrun: Callable[..., Outcome]
) -> None:
    script = str(Path(sys.executable).with_name("dlrun"))
    write(here / "mynet.py", NET)
    words = ("model=custom", "model._target_=mynet.Net", "+model.width=3", "trust=[mynet]", "run.dir=run")
    words += ("trainer.epochs=1", "dataset.limit=100", "check=none", "trainer.threads=1", "trainer.report=false")
    made = subprocess.run([script, "train", *words], capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    result = here / "run" / "result.json"
    result.write_text(result.read_text().replace('"completed"', '"interrupted"'))
    refused = dlrun("resume", "run")
    assert refused.code == 2
    assert "type trust=[mynet]" in refused.err
    assert dlrun("resume", "run", "trust=[mynet]").code == 0


def test_help_builds_no_log_handler_that_a_config_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dlrun import cli

    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "cnn.yaml").write_text(
        "# @package _global_\n"
        "hydra:\n"
        "  hydra_logging:\n"
        "    version: 1\n"
        "    handlers: {x: {class: logging.FileHandler, filename: made.log}}\n"
        "    root: {handlers: [x]}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dlrun", "train", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    capsys.readouterr()
    assert not (tmp_path / "made.log").exists()
