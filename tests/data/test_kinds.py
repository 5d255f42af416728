"""Where the kinds of input are that people have: files, layouts, tables, arrays, units, as tables of cases.

| part | table | what each row gives |
|---|---|---|
| decoding | support/pixels.py FILES | the pixels of a file, through every door |
| splits of folders | data/test_layout.py LAYOUTS, REFUSED | the number of images in each split, or one line |
| listing | data/test_accounting.py READ, REFUSED | images and what is left out, or one line |
| tables of labels | data/test_table.py UNDERSTOOD, REFUSED, BAD | the label of each image, or one line |
| arrays | data/test_arrays.py ACCEPTED, REFUSED | classes, labels and pixels, or one line |
| units | inference/test_units.py KINDS, STRANGE | the same prediction in other units, or one line |

`inference/test_exact.py` holds predict to the logits of the evaluation over the files and arrays.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from support.pixels import FILES

TESTS = Path(__file__).resolve().parents[1]
TABLES = {  # in this file: its tables, and the fewest rows of all of them
    "data/test_layout.py": (("LAYOUTS", "REFUSED"), 25),
    "data/test_accounting.py": (("READ", "REFUSED"), 20),
    "data/test_table.py": (("UNDERSTOOD", "REFUSED", "BAD"), 40),
    "data/test_arrays.py": (("ACCEPTED", "REFUSED"), 80),
    "inference/test_units.py": (("KINDS", "STRANGE"), 8),
}


def rows(file: str, names: tuple[str, ...]) -> int:
    """How many rows the tables of a file have, which are dicts written out."""
    found = {}
    for node in ast.parse((TESTS / file).read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Dict):
            found[target.id] = len(value.keys)
    return sum(found[name] for name in names)


@pytest.mark.parametrize("file", TABLES)
def test_each_part_has_its_kinds(file: str) -> None:
    names, fewest = TABLES[file]
    assert rows(file, names) >= fewest
    for name in names:
        assert f"{file} " in (__doc__ or "")
        assert name in (__doc__ or "")


def test_there_are_twice_as_many_kinds_as_promised() -> None:
    assert len(FILES) >= 60
    assert len(FILES) + sum(rows(file, names) for file, (names, _) in TABLES.items()) >= 240
