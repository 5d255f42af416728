"""Where dlrun reads messages of Hydra, or changes the process for it; everything is restored (`dlrun train …`).

No other module touches singletons or loggers of Hydra, or sets `sys.argv` or `os.environ` for it. Only this one and
hydra_files.py, which subclasses two of its classes, use private parts of Hydra.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.config.flags import Flags
from dlrun.config.options import STUDIES
from dlrun.config.schema import unknown
from dlrun.errors import UserError, first_line

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

__all__ = ["answer", "completing", "in_one_line", "opened"]

REFERENCES = 2000  # evaluations of ${…} in one config, half a second; the presets need ten


@contextmanager
def opened(builtin: Path, own: Sequence[Path], further: Sequence[Path]) -> Iterator[Hydra]:
    """Yield a Hydra over folders of options; the first of `own`, `builtin`, `further` that has an option wins.

    The public `initialize_config_dir` is not used: it sets the global Hydra, which another program in the process may
    have set already, and accepts further folders only from a plugin, which stays registered until the process ends.
    """
    from hydra import version
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery

    from dlrun.config.hydra_files import Repository

    path = create_config_search_path(str(builtin))
    for folder in own:
        path.prepend("dlrun-user", f"file://{folder}", anchor=SearchPathQuery(provider="main"))
    for folder in further:
        path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    with _own_state():
        version.setbase("1.3")
        loader = ConfigLoaderImpl(path)
        loader.repository = Repository(path, builtin)
        yield Hydra("train", loader)


@contextmanager
def _own_state() -> Iterator[None]:
    """Give Hydra its own global state, and restore that of the process.

    The state is three singletons (the version to be compatible with, the name of the job, the config that ${hydra:…}
    reads) and the resolvers of OmegaConf, of which Hydra replaces `now`, `hydra` and `python_version`. References are
    counted: an option of 30 lines, each with the one before twice, would take for ever.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton
    from hydra.core.utils import JobRuntime
    from hydra.version import VersionBase
    from omegaconf.base import Container
    from omegaconf.basecontainer import BaseContainer

    kinds: tuple[Any, ...] = (VersionBase, JobRuntime, HydraConfig)
    kept = {kind: Singleton._instances.pop(kind) for kind in kinds if kind in Singleton._instances}
    resolvers, evaluate = dict(BaseContainer._resolvers), Container.resolve_parse_tree
    Container.resolve_parse_tree = _counted(evaluate)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Container.resolve_parse_tree = evaluate  # type: ignore[method-assign]
        for kind in kinds:
            Singleton._instances.pop(kind, None)
        Singleton._instances.update(kept)
        BaseContainer._resolvers.clear()
        BaseContainer._resolvers.update(resolvers)


class _References:
    """How much a config may still refer to, in evaluations of ${…} and letters."""

    left = 0

    @classmethod
    def renew(cls) -> None:
        cls.left = REFERENCES


def _counted(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """OmegaConf's evaluation of one ${…} within _References."""
    from omegaconf.errors import InterpolationResolutionError

    def evaluated(self: Any, *args: Any, **more: Any) -> Any:
        value = evaluate(self, *args, **more)
        _References.left -= 1 + (len(value) // 64 if isinstance(value, str) else 0)
        if _References.left < 0:
            raise InterpolationResolutionError(f"more than {REFERENCES:,} references: values that repeat each other")
        return value

    return evaluated


def answer(hydra: Hydra, verb: str, root: str, flags: Flags, overrides: list[str]) -> str:
    """Return what Hydra prints for --help, --hydra-help, --cfg, --info or --shell-completion. Raises UserError.

    `hydra.main` is not used: it reads `sys.argv`, exits on an error unless $HYDRA_FULL_ERROR is set, and for --help
    builds the log handlers that a config names, which may be of any class.
    """
    asked = [flag for flag in ("--cfg", "--info", "--shell-completion", "--multirun", "--run") if flag in flags]
    text = io.StringIO()
    with redirect_stdout(text), redirect_stderr(io.StringIO()), _root_logger(), _called("dlrun"):
        if "--help" in flags:
            print(_help(hydra, root, [*overrides, f"hydra.job.name={verb}"], "--resolve" in flags))
        elif "--resolve" in flags and "--cfg" not in flags:
            raise UserError("--resolve: expected --cfg or --help with it")
        elif "--hydra-help" in flags:
            print(_help(hydra, None, overrides, False))
        elif len(asked) > 1:
            raise UserError(f"{' '.join(asked)}: expected only one of these flags")
        elif "--cfg" in flags:
            _show_config(hydra, root, flags, overrides)
        elif "--info" in flags:
            hydra.show_info(str(flags["--info"]), root, overrides)
        else:
            _complete(hydra, root, overrides)
    return text.getvalue()


def _help(hydra: Hydra, root: str | None, overrides: list[str], resolve: bool) -> str:
    """The text of --help, or without a root that of --hydra-help."""
    from hydra._internal.utils import get_args_parser
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    cfg = hydra.config_loader.load_configuration(root, overrides, RunMode.RUN)
    HydraConfig.instance().set_config(cfg)  # for ${hydra:…} in the template
    template = cfg.hydra.help if root else cfg.hydra.hydra_help
    shown = hydra.get_sanitized_cfg(cfg.copy(), "job") if root else hydra.get_sanitized_hydra_cfg(cfg)
    text: str = hydra.get_help(template, shown, get_args_parser(), resolve)
    # studies are files beside the options, but nothing that can be chosen
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(f"{STUDIES}: "))


def _show_config(hydra: Hydra, root: str, flags: Flags, overrides: list[str]) -> None:
    package = flags.get("--package")
    try:
        hydra.show_cfg(root, overrides, str(flags["--cfg"]), package, "--resolve" in flags)
    except SystemExit:
        raise UserError(f"--package {package}: no such key in the config; expected one such as optimizer") from None


def _complete(hydra: Hydra, root: str, words: list[str]) -> None:
    known = hydra.get_shell_to_plugin_map(hydra.config_loader)
    asked = [word for word in words if word.partition("=")[0] in ("install", "uninstall", "query")]
    if len(asked) != 1 or asked[0].partition("=")[2] not in known:
        raise UserError(f"-sc {' '.join(words)}: expected install=SHELL or uninstall=SHELL, one of {', '.join(known)}")
    hydra.shell_completion(root, asked)


@contextmanager
def _root_logger() -> Iterator[None]:
    """Restore the root logger: for --info Hydra adds a handler and sets its level to DEBUG."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@contextmanager
def _called(program: str) -> Iterator[None]:
    """Set the name of the program in help texts and the completion script, which Hydra takes from `sys.argv`."""
    kept, sys.argv = sys.argv, [program]
    try:
        yield
    finally:
        sys.argv = kept


@contextmanager
def completing(line: str) -> Iterator[None]:
    """Set the line to complete, which Hydra reads from $COMP_LINE."""
    kept = os.environ.get("COMP_LINE")
    os.environ["COMP_LINE"] = line
    try:
        yield
    finally:
        del os.environ["COMP_LINE"]
        if kept is not None:
            os.environ["COMP_LINE"] = kept


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn an error of Hydra, OmegaConf or YAML into a UserError: one line with what to type."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    _References.renew()
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(_sentence(error)) from error
    except RecursionError as error:
        raise UserError("conf/: options that start from themselves or each other; look at their defaults") from error


# what to write for the mistakes in YAML that are made most
_YAML = {
    "'\\t'": "; indent with spaces, not with tabs",
    "duplicate key": "; write all of its keys below one of them, or one as key.name: value",
    "another document": "; remove the line ---",
}


def _no_such_file(group: str, option: str) -> str:
    """The message for an option that a file chooses; presets that name a path have no group of that name."""
    from dlrun.config.options import Options, no_such_option

    names = Options().names(group)
    return str(no_such_option(f"{group}={option}", option, names)) if names else f"{group}={option}: no such option"


def _sentence(error: BaseException) -> str:
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if not str(error).strip() and error.__cause__ is not None:
        error = error.__cause__  # Hydra wraps OmegaConf's errors in an empty one
    first = first_line(error)
    if isinstance(error, OverrideParseException):
        how = "expected key=value or group=option; quote it for the shell: 'key=value'"
        return f"cannot read {error.override!r}: {how}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group:
            return _no_such_file(group, option)
        return f"{option}: no such config; create conf/{option}.yaml to add it"
    if isinstance(error, OmegaConfBaseException):
        key = str(error.full_key or "")
        return first if not key or key in first else f"{key}: {first}"
    # these two errors of Hydra have the key in their message only; if Hydra rewords them, the message is passed on
    if first.startswith("Could not override '"):
        return unknown(first.split("'")[1], ())
    if first.startswith("Multiple values for "):
        return f"{first.split()[3].rstrip('.')} already has an option; remove the +"
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        problem = getattr(error, "problem", None) or first
        problem += next((hint for sign, hint in _YAML.items() if sign in problem), "")
        return f"{mark.name}, line {mark.line + 1}: cannot read this YAML: {problem}"
    return first
