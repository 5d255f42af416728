"""Text of stored files as plain values: JSON, YAML and CSV, bounded in size, depth and expansion (every verb).

A file of a run may come from somebody else. What dlrun writes has no integers beyond 64 bits, no dates, no merges and
no aliases that grow; a file that has them is refused in one line, before it takes hours or memory. Nothing here imports
torch.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from dlrun.folders.opener import Unreadable, read_text

__all__ = ["json_of", "mapping", "refuse_growth", "rows_of", "yaml_of"]

DIGITS = 18  # of an integer: those of 64 bits, whose sums and products with others stay finite as floats
ZEROS, ZEROED = b"0" * (DIGITS + 1), bytes.maketrans(b"123456789", b"000000000")
RUN = re.compile(rb"0+")
DEPTH = 64  # of lists and groups in each other
NODES = 200_000  # values of a YAML file, those of aliases counted as often as they stand there
FIELD = 16 << 20  # letters in a field of a CSV file: names and JSON of one sample


def _integer(text: str) -> int:
    if len(text) > DIGITS + 1:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _has_long(text: bytes) -> bool:
    """Whether more digits than those of an integer of dlrun stand together elsewhere than after a point."""
    zeros, place = text.translate(ZEROED), 0
    while (place := zeros.find(ZEROS, place)) >= 0:
        if zeros[place - 1 : place] != b".":  # the first of its digits, since those after a point are skipped
            return True
        digits = RUN.match(zeros, place)
        place = digits.end() if digits else len(zeros)
    return False


def json_of(text: bytes, file: Path | str) -> Any:
    """Return the value of a JSON text. Raises Unreadable."""
    try:
        # a hook for every integer would take a tenth of the time of a table of thousands of runs
        return json.loads(text.decode(), parse_int=_integer if _has_long(text) else None)
    except RecursionError:
        raise Unreadable(file, "lists or groups are too deep") from None
    except ValueError as error:  # also UnicodeDecodeError
        raise Unreadable(file, f"not readable JSON: {' '.join(str(error).split())[:160]}") from None


def mapping(folder: Path | str, name: str) -> dict[str, Any]:
    """Return the keys and values of a YAML file in a folder. Raises Unreadable, and FileNotFoundError."""
    file = Path(folder, name)
    found = yaml_of(read_text(folder, name), file)
    if not isinstance(found, dict):
        raise Unreadable(file, f"expected keys and values, found {type(found).__name__}")
    return found


def yaml_of(text: str, file: Path | str) -> Any:
    """Return the value of a YAML text: plain values, lists and groups whose keys are names or numbers.

    Raises Unreadable.
    """
    import yaml

    try:
        found = yaml.load(text, _loader())  # a SafeLoader
    except RecursionError:
        raise Unreadable(file, "lists or groups are too deep") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        why = " ".join(str(error).split("\n  in ")[0].split())
        raise Unreadable(file, f"not readable YAML: {why[:200]}") from None
    _bounded(found, file)
    return found


@cache
def _loader() -> Any:
    """PyYAML's SafeLoader without merges, which grow without bound, without dates, sets and bytes."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def flatten_mapping(self, node: Any) -> None:
            """Refuse `<<`: lists of merges that contain merges double at each level."""
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    raise yaml.constructor.ConstructorError(None, None, "found a merge (<<)", key.start_mark)

        def construct_yaml_int(self, node: Any) -> int:
            """Refuse integers beyond 64 bits."""
            if len(node.value) > DIGITS + 1:
                text = f"an integer of {len(node.value)} digits"
                raise yaml.constructor.ConstructorError(None, None, text, node.start_mark)
            return int(super().construct_yaml_int(node))

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    for tag in ("timestamp", "binary", "set", "omap", "pairs"):
        Loader.add_constructor(f"tag:yaml.org,2002:{tag}", yaml.SafeLoader.construct_undefined)
    # a date without a tag is text, as it was when it was written
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def _bounded(found: Any, file: Path | str) -> None:
    """Raise Unreadable if aliases make a value huge or endless, or if a key is neither a name nor a number."""
    left, level = NODES, [found]
    for _ in range(DEPTH):
        inner: list[Any] = []
        for node in level:
            if type(node) is dict:
                if not all(isinstance(key, (str, int)) for key in node):
                    raise Unreadable(file, "expected names as keys")
                inner += node.values()
            elif type(node) is list:
                inner += node
            left -= 1
            if len(inner) > left:
                raise Unreadable(file, f"more than {NODES:,} values, with those that aliases (*) repeat")
        if not inner:
            return
        level = inner
    raise Unreadable(file, f"lists or groups more than {DEPTH} deep, or one that contains itself")


def refuse_growth(node: Any, file: Path | str) -> None:
    """Raise Unreadable for a node of PyYAML whose aliases make it huge or endless, that is deep, or has huge integers.

    For readers with a loader of their own: values need not be built first, and merges (<<) grow as aliases do.
    """
    known: dict[int, int] = {}

    def size(one: Any, depth: int) -> int:
        if id(one) in known:
            return known[id(one)]
        if depth > DEPTH:
            raise Unreadable(file, f"lists or groups more than {DEPTH} deep, or one that contains itself")
        if isinstance(one.value, str):
            if one.tag == "tag:yaml.org,2002:int" and len(one.value) > DIGITS + 1:
                line = one.start_mark.line + 1
                raise Unreadable(file, f"line {line}: an integer of {len(one.value)} digits")
            return 1
        inner = [part for pair in one.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(one)] = found = 1 + sum(size(part, depth + 1) for part in inner)
        if found > NODES:
            raise Unreadable(file, f"more than {NODES:,} values, with those that aliases (*) repeat")
        return found

    size(node, 0)


def rows_of(text: str, file: Path | str) -> list[dict[str, str]]:
    """Return the rows of a CSV text by column; cells beyond the header are ignored, missing ones are empty.

    Raises Unreadable.
    """
    if "\0" in text:
        raise Unreadable(file, "not readable CSV: it contains NUL bytes")
    before = csv.field_size_limit(min(FIELD, sys.maxsize))
    try:
        lines = csv.reader(io.StringIO(text, newline=""))
        names = next(lines, [])
        width = len(names)
        if len(set(names)) < width:
            raise Unreadable(file, "not readable CSV: two columns of one name")
        return [dict(zip(names, row + [""] * (width - len(row)), strict=False)) for row in lines if row]
    except csv.Error as error:
        raise Unreadable(file, f"not readable CSV: {error}") from None
    finally:
        csv.field_size_limit(before)
