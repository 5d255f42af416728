"""Where the study of a sweep is: study.journal in its folder, or a database (`search.storage=postgresql://me@host/db`).

A password is used and forgotten: what is stored, shown or logged lacks it. Nothing here imports torch.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dlrun.errors import UserError, first_line
from dlrun.folders import sweep as sweep_folder

__all__ = ["KEY", "Storage", "named", "public", "typed", "word"]

KEY = "search.storage"
EXAMPLES = "postgresql://me@host/database or sqlite:///file.db"
# to its last @, since a password may contain one by mistake
SECRET = re.compile(r"^(?P<scheme>[\w+]+://)(?P<user>[^:@/?]*)(:(?P<password>.*))?(?P<rest>@[^@]*)$", re.DOTALL)
QUERY = re.compile(r"(?<=[?&])[^=&]*pass[^=&]*=[^&]*&?", re.IGNORECASE)


class _Held:
    """No lock of Optuna's, whose files a full disk would leave behind: this process holds that of the sweep."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@dataclass(frozen=True)
class Storage:
    """The study of a sweep: its journal, or the one called `name` in the database `url`, which may hold a password."""

    folder: Path
    url: str = field(default="", repr=False)
    name: str = "sweep"

    def __str__(self) -> str:
        """Where the study is, without a password."""
        return public(self.url) if self.url else str(sweep_folder.journal(self.folder))

    def open(self) -> Any:
        """Return the storage for Optuna. Raises UserError for a database that cannot be reached."""
        import optuna

        if not self.url:
            from optuna.storages.journal import JournalFileBackend

            held: Any = _Held()
            return optuna.storages.JournalStorage(JournalFileBackend(str(self), held))
        url = re.sub("^postgresql://", "postgresql+psycopg://", self.url) if find_spec("psycopg") else self.url
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except Exception as error:  # whatever SQLAlchemy, its drivers and Optuna raise
            raise UserError(f"{KEY}={self}: cannot open this database: {self.told(error)}") from None

    def told(self, error: BaseException) -> str:
        """Return the first line of an error of the database, without the password."""
        text = first_line(error.__cause__ or error)
        for secret in sorted(_secrets(self.url), key=len, reverse=True):
            text = text.replace(secret, "…")
        return text


def named(folder: Path) -> str:
    """Return a name for the study of a new sweep: databases hold those of many."""
    return f"{folder.name}-{secrets.token_hex(4)}"


def public(url: str) -> str:
    """Return the address of a database without its password."""
    if url.startswith("sqlite"):
        return url
    bare = QUERY.sub("", url).rstrip("?&")
    address, mark, query = bare.partition("?")
    found = SECRET.match(address)
    return f"{found['scheme']}{found['user']}{found['rest']}{mark}{query}" if found else bare


def _secrets(url: str) -> set[str]:
    found = SECRET.match(url.partition("?")[0])
    own = {found["password"]} if found and found["password"] else set()
    own |= {one.partition("=")[2].rstrip("&") for one in QUERY.findall(url)}
    return {text for word in own for text in (word, unquote(word)) if text}


def expected(url: str) -> None:
    """Raise UserError unless this is the address of a database that can be used here; it shows no password."""
    scheme = url.partition(":")[0].partition("+")[0]
    if "://" not in url or scheme not in ("postgresql", "sqlite"):
        raise UserError(f"{KEY}={public(url)[:60] if '@' not in url else '…'}: expected {EXAMPLES}")
    from sqlalchemy.engine import make_url

    try:
        password = make_url(url).password
    except Exception as error:
        raise UserError(f"{KEY}: expected {EXAMPLES}, found no such address ({type(error).__name__})") from None
    found = SECRET.match(url.partition("?")[0])
    if scheme != "sqlite" and unquote((found and found["password"]) or "") != (password or ""):
        raise UserError(f"{KEY}: in a password @ is written %40, / is %2F, : is %3A and ? is %3F")
    if scheme == "postgresql" and not (find_spec("psycopg") or find_spec("psycopg2")):
        raise UserError(f"{KEY}={public(url)}: its driver is not installed; type pip install 'dlrun[postgresql]'")


def typed(words: Sequence[str], config: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the address of the database of a sweep, "" without one, and the words without it; config has it in public.

    Raises UserError for one that cannot be used, or that a file sets: it says where results are sent.
    """
    others = [word for word in words if not word.lstrip("+").startswith(f"{KEY}=")]
    url = str(config["search"].get("storage") or "")
    if url and len(others) == len(words):
        raise UserError(f"{KEY}: only allowed on the command line, not in a file; type {KEY}=… there")
    if url:
        expected(url)
        config["search"]["storage"] = public(url)
    return url, others


def word(url: str) -> str:
    """Return what to type for a database."""
    return f"{KEY}={url}" if re.fullmatch(r"[\w:/.@+-]+", url) else f'{KEY}="{url}"'
