"""How Hydra finds and reads option files of users, `.yml` among them (`dlrun train experiment=mine`).

Private parts of Hydra: the list of places where it looks, and how it reads one file.
"""

from __future__ import annotations

import copy
import io
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult
from omegaconf import Container, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from dlrun.config.option_text import content
from dlrun.config.options import PRESETS, Options
from dlrun.config.own_options import as_option, as_preset, changes_default, refuse_unsafe
from dlrun.errors import UserError, first_line
from dlrun.folders.plain import refuse_growth

__all__ = ["Repository"]


@lru_cache(maxsize=512)
def _parsed(text: str, file: Path) -> Container:
    """Parse a file's text once: one command reads each file several times, a sweep for every trial.

    Raises UserError for what may come from somebody else and would take hours, and YAMLError with the line.
    """
    import yaml

    stream = io.StringIO(text)
    stream.name = str(file)  # which errors name
    try:
        found = yaml.load(stream, _loader())  # a SafeLoader
        if found is not None and not isinstance(found, (dict, list, str)):
            raise UserError(f"{file}: expected lines such as `key: value`")
        return OmegaConf.create({} if found is None else found)
    except RecursionError:
        raise UserError(f"{file}: lists or groups are too deep") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {first_line(error)}") from error


@cache
def _loader() -> Any:
    """The loader of OmegaConf for files that may grow without bound."""

    class Loader(get_yaml_loader()):  # type: ignore[misc]
        def get_single_node(self) -> Any:
            """Return the text as nodes. Raises UserError if they are too many, too deep or too large."""
            node = super().get_single_node()
            if node is not None:
                refuse_growth(node, self.name)
            return node

    return Loader


class Repository(ConfigRepository):
    """The places of options, of which those of users hold files as people write them."""

    def __init__(self, path: ConfigSearchPath, builtin: Path) -> None:
        self._builtin = builtin
        super().__init__(path)

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Open the places; called again when a command names more of them."""
        super().initialize_sources(config_search_path)
        for place, source in enumerate(self.sources):
            if source.scheme() == "file":
                builtin = Path(source.path) == self._builtin
                self.sources[place] = OwnFiles(source.provider, source.path, self, builtin)


class OwnFiles(FileConfigSource):
    """A folder of a user's options. In a clone that is the built-in one, where `dlrun init` writes as well."""

    def __init__(self, provider: str, path: str, repository: Repository, builtin: bool) -> None:
        super().__init__(provider, path)
        self._builtin = builtin
        self._repository = repository

    def _normalize_file_name(self, filename: str) -> str:  # type: ignore[override]
        if filename.endswith((".yaml", ".yml")):
            return filename
        other = Path(self.path) / f"{filename}.yml"
        return f"{filename}.{'yml' if other.is_file() and not other.with_suffix('.yaml').is_file() else 'yaml'}"

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a file and translate it. Raises UserError for a form that has no meaning, with what to write."""
        group, _, _ = config_path.rpartition("/")
        file = Path(self.path) / self._normalize_file_name(config_path)
        try:
            result = self._read(config_path, file)
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: expected text in UTF-8: {error.reason}; save the file as UTF-8") from error
        plain: Any = OmegaConf.to_container(result.config, resolve=False)
        if isinstance(plain, dict):
            refuse_unsafe(file, plain)
        package = result.header.get("package")
        if group == PRESETS and package in (None, "_global_"):
            result.header["package"] = "_global_"
            result.config = OmegaConf.create(as_preset(file, plain, self._groups()))
        elif group and not group.startswith("hydra") and package is None:
            if self._builtin and not changes_default(file, group, plain):
                return result
            below = self._later(config_path)
            result.config = OmegaConf.create(as_option(file, group, plain, below))
        return result

    def _read(self, config_path: str, file: Path) -> ConfigResult:
        try:
            text = content(file).decode()
        except FileNotFoundError:
            return super().load_config(config_path)  # its error names the file
        config, header = copy.deepcopy(_parsed(text, file)), self._get_header_dict(text[:512])
        return ConfigResult(provider=self.provider, path=f"{self.scheme()}://{self.path}", config=config, header=header)

    def _groups(self) -> list[str]:
        return Options([s.path for s in self._repository.sources if s.scheme() == "file"]).groups()

    def _later(self, config_path: str) -> dict[str, Any] | None:
        """The option of the same name in a later place."""
        sources = self._repository.sources
        for source in sources[sources.index(self) + 1 :]:
            if source.is_config(config_path):
                found: Any = OmegaConf.to_container(source.load_config(config_path).config, resolve=False)
                return dict(found)
        return None
