"""Hydra at work: search path, composing a config, and Hydra's errors in one line each (`dlrun train …`).

The built-in conf/ is at the top of a checkout and inside a wheel; a user's ./conf and $DLRUN_CONF win over it.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlrun.config import UserError, flatten, validate

__all__ = ["builtin_conf", "checked", "finished", "in_one_line", "loader", "run", "schema_of"]


def builtin_conf() -> Path:
    """Return the folder of the built-in options: the checkout's in an editable install, else the wheel's."""
    here = Path(__file__).resolve().parent
    checkout = here.parent / "conf"
    for folder in (checkout if (here.parent / "pyproject.toml").is_file() else here / "conf", here / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError("the built-in configs (conf/train.yaml) are missing: this installation is broken; reinstall dlrun")


def run(verb: str, argv: list[str], task: Callable[[Any], int]) -> int:
    """Compose conf/train.yaml with `argv`, hand the config to `task`, and return its exit code.

    Raises UserError for everything that is wrong with the command or the config.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing a traceback and exiting
    _register()
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    codes: list[int] = []
    failures: list[BaseException] = []

    def job(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import open_dict

        # kept here and raised outside, since Hydra prints a line of its own for an exception inside a job
        try:
            with open_dict(cfg):
                cfg.hydra = HydraConfig.get()
            codes.append(task(checked(cfg)))
        except Exception as error:
            failures.append(error)

    sys.argv = [sys.argv[0], *argv]
    if not any(a in ("--info", "-i", "-sc", "--shell-completion") for a in argv):
        sys.argv.append(f"hydra.job.name={verb}")
    _swept.clear()
    try:
        hydra.main(config_path=str(builtin_conf()), config_name="train", version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise in_one_line(error) from error
    if failures:
        raise failures[0]
    return max(codes + _swept, default=0)


_swept: list[int] = []  # exit codes of sweeps: Hydra drops what a sweeper returns


def finished(code: int) -> None:
    """Note the exit code of a sweep, for `run` to return."""
    _swept.append(code)


def _register() -> None:
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class DlrunSearchPath(SearchPathPlugin):  # type: ignore[misc]
        def manipulate_search_path(self, search_path: Any) -> None:
            from hydra.core.config_search_path import SearchPathQuery

            for folder in ("conf", os.environ.get("DLRUN_CONF")):
                path = Path(folder).expanduser().resolve() if folder else None
                if path is not None and path.is_dir() and path != builtin_conf():
                    search_path.prepend("dlrun-user", f"file://{path}", anchor=SearchPathQuery(provider="main"))

    plugins = str(Path(__file__).resolve().parent / "_plugins")
    if plugins not in sys.path:
        sys.path.append(plugins)
    Plugins.instance().register(DlrunSearchPath)


def loader() -> Any:
    """Return Hydra's config loader of the running program."""
    from hydra.core.global_hydra import GlobalHydra

    return GlobalHydra.instance().config_loader()


def checked(cfg: Any) -> Any:
    """Return a composed config, validated and resolved, without Hydra's own part.

    Raises UserError naming the first key that is unknown, of a wrong type or out of range.
    """
    from omegaconf import OmegaConf

    hydra_cfg = cfg.hydra
    overrides = [str(o) for o in hydra_cfg.overrides.task]
    choices = {str(k): v for k, v in hydra_cfg.runtime.choices.items()}
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except Exception as error:
        raise in_one_line(error) from error
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    added = {o.split("=")[0].lstrip("+") for o in overrides if o.startswith("+")}
    validate(plain, schema_of(choices), added=added)
    from dlrun.targets import check_targets

    check_targets(plain, list(plain["trust"]))
    plain["choices"] = {k: v for k, v in choices.items() if not k.startswith("hydra/")}
    return OmegaConf.create(plain)


def schema_of(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults of a choice of options: the schema that values are held against.

    The experiment preset is left out: it sets values, so its own keys and types are checked as well.
    """
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    groups = {k: v for k, v in choices.items() if not k.startswith("hydra/") and k != "experiment"}
    chosen = [f"{group}={'null' if option is None else option}" for group, option in groups.items()]
    cfg = loader().load_configuration("train", chosen, run_mode=RunMode.RUN)
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    return {str(k): v for k, v in plain.items()}


def in_one_line(error: BaseException) -> UserError:
    """Turn Hydra's and OmegaConf's errors into a sentence that says what to type."""
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
    from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

    key = getattr(error, "full_key", None) or ""
    first = str(error).strip().split("\n")[0]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        options = [str(o) for o in (error.options or [])]
        if group and options:
            near = difflib.get_close_matches(option, options, 3, 0.4)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            return UserError(f"{group}={option}: no such option; {hint}options: {', '.join(sorted(options))}")
        return UserError(first)
    if isinstance(error, OverrideParseException):
        return UserError(f"cannot read the override {error.override!r}: {first}; quote it for the shell: 'key=value'")
    if isinstance(error, ConfigCompositionException) and first.startswith("Could not override '"):
        return _unknown_key(first.split("'")[1])
    if isinstance(error, MissingMandatoryValue):
        return UserError(f"{key} is missing; type {key}=VALUE")
    if isinstance(error, InterpolationResolutionError):
        return UserError(f"{key}: {first}")
    return UserError(first)


def _unknown_key(key: str) -> UserError:
    words = [a for a in sys.argv[1:] if "=" in a and "." not in a.split("=")[0]]
    try:
        repository = loader()
        groups = {a.split("=")[0]: a.split("=")[1] for a in words if "," not in a}
        known = [g for g in groups if repository.get_group_options(g)]
        names = list(flatten(schema_of({g: groups[g] for g in known})))
    except Exception:
        # the suggestion is a courtesy: the error that led here is the one to tell
        names = []
    return UserError(unknown(key, names))


def unknown(key: str, names: list[str]) -> str:
    """Say that `key` is unknown, with the nearest of `names`: by spelling, or by its last part."""
    from dlrun.config import near_keys

    near = near_keys(key, names)
    hint = f"did you mean {' or '.join(near)}?" if near else f"`+{key}=…` adds a key of your own"
    return f"{key}: no such key; {hint}"
