"""Stored files made wrong in the ways that people, disks and attackers find: for tests/hostile/test_fuzz.py.

`mutated` takes the bytes of a file and a random source and returns other bytes; what it returns depends on nothing
else.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import yaml

from dlrun.data.packs import SIZE
from dlrun.data.tar_lists import BEGINNING

__all__ = ["HOSTILE", "mutated", "special"]

# values that stand where another was expected
HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), [], {}, [[]], [None], {"": None}, [1, "a", None], ["x"] * 1000),
    *({"a": {"b": {"c": []}}}, "", " ", "nan", "1", "1e999", "x" * 300, "x" * 100_000, "2020-01-01"),
    *[
        "a\x1b[31mb",
        "\x9b2J",
        "a\u202eb",
        "�",
        "a\x00b",
        "a\nb",
        "=1+1",
        "@x",
        "[bold]x[/bold]",
        "javascript:alert(1)",
        "$\\frac{$",
        "%s%n",
    ],
    *["<script>alert(1)</script>", "${oc.env:HOME}", "../../../etc/passwd", "/dev/zero"],
]
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast
LETTERS = "abcdefghij"
# nine levels, each nine times the one before: 387 million values, or pairs
ALIASES = "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(LETTERS))
MERGES = "".join(f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in pairwise(LETTERS))
TEXTS = (
    *("a: &a [*a]\n", "a: &a {b: *a}\n", "!!python/object/apply:os.system [true]\n", "a: 2020-01-01\n", '"text"', "3"),
    *("{" * 5000, "[" * 100_000, "- " * 5000, f"a: &a [x,x,x,x,x,x,x,x,x]\n{ALIASES}", f"a: &a {{x: 1}}\n{MERGES}"),
    *("a: !!binary aGk=\n", "? [a, b]\n: c\n", "a: 1" + "0" * 5000 + "\n", "%YAML 9.9\n---\na: b\n", "null", "[]"),
    *("\ufeff{}", "{}", "\0", "a,b\n1\n1,2,3\n", '"' + "x" * 200_000, ",\n,\n"),
)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits, bytes and pieces changed, lost, doubled and moved."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(7):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                out[at:at] = rng.choice(
                    (b"\xff", b"\xc3", b"\0", b"\x80\x81", b"\r", b"\n", b",", b":", b"-", b"#", b"9")
                )
            case 2:
                del out[at : at + rng.choice((1, 2, 10, 100))]
            case 3:
                out[at:at] = out[at : at + rng.choice((1, 10, 100, 1000))]
            case 4:
                end = rng.randrange(len(out) + 1)
                out[at:at] = out[end : end + 50]
            case 5:
                out[at : at + 4] = rng.randbytes(4)
            case _:
                del out[rng.randrange(len(out) + 1) :]
    return bytes(out)


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in items for place in _places(value, (*path, key)))]


def _values(found: Any, rng: random.Random) -> Any:
    """One to three values replaced, lost, renamed or exchanged."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *way, last = rng.choice(_places(found)[1:] or [(None,)])
        if last is None or not isinstance(found, (dict, list)):
            return copy.deepcopy(rng.choice(HOSTILE))
        node = found
        for key in way:
            node = node[key]
        match rng.randrange(6):
            case 0:
                del node[last]
            case 1 if isinstance(node, dict):
                node[rng.choice(("x", "", "a.b", "é", "<b>", "a" * 300))] = node.pop(last)
            case 2:
                node[last] = [node[last]]
            case 3:
                node[last] = {"a": node[last]}
            case _:
                node[last] = copy.deepcopy(rng.choice(HOSTILE))  # it may be changed next
    return found


def _json(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(_values(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def _yaml(data: bytes, rng: random.Random) -> bytes:
    found = _values(copy.deepcopy(_loaded(data)), rng)
    return yaml.dump(found, Dumper=DUMPER, allow_unicode=True).encode("utf-8", "surrogatepass")


@lru_cache
def _loaded(data: bytes) -> Any:
    return yaml.load(data, yaml.SafeLoader)


def _lines(data: bytes, rng: random.Random) -> bytes:
    """A journal: one line of JSON changed, lost, doubled, cut or exchanged."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
        case 2:
            lines[at] = _bytes(lines[at], rng)
        case 3:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case _:
            if lines[at]:
                lines[at] = _json(lines[at], rng)
    return b"\n".join(lines)


def _members(data: bytes, rng: random.Random) -> bytes:
    """The list of a tar with other values, for which its line has the right digest: of a writer who means harm."""
    head, *lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    text = _json(lines[at][BEGINNING:-1], rng)
    lines[at] = lines[at][: 2 * SIZE + 1] + blake2b(text, digest_size=SIZE).hexdigest().encode() + b" " + text + b"\n"
    return head + b"".join(lines)


def _csv(data: bytes, rng: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(data.decode(errors="replace"), newline=""))) or [[""]]
    for _ in range(rng.choice((1, 1, 2))):
        row = rng.choice(rows)
        at = rng.randrange(len(row) + 1)
        match rng.randrange(8):
            case 0:
                del row[at:]
            case 1:
                row.insert(at, rng.choice(("x", "", "1")))
            case 2:
                rows.append([*row])
            case 3:
                for one in rows:
                    del one[at : at + 1]
            case 4:
                rows[0][:] = [rng.choice(rows[0] or [""]) for _ in rows[0]]
            case 5 if len(rows) > 1:
                rows.remove(row)
            case _:
                value = rng.choice(HOSTILE)
                row[at : at + 1] = (
                    [str(value) if abs(value) < 10**18 else "9" * 400] if isinstance(value, int) else [str(value)]
                )
        rows = rows or [[""]]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def _array(value: Any, rng: random.Random) -> Any:
    changes: list[Callable[[], Any]] = [
        lambda: value[:0],
        lambda: value[: len(value) // 2],
        lambda: value[None],
        lambda: value.reshape(-1),
        lambda: value.astype(str),
        lambda: np.concatenate([value, value]),
        lambda: np.full_like(value, -1) if value.dtype.kind in "if" else value,
        lambda: np.full(value.shape, 10**6),
        lambda: np.full(value.shape, np.nan),
        lambda: np.full(value.shape, np.inf, np.float16),
        lambda: np.full(value.shape, "\x1b[2J<b>\u202e" * 40),
        lambda: np.full(value.shape, 1j),
        lambda: np.zeros(value.shape, bool),
        lambda: np.array(rng.choice([5, 2.5, "a"])),
        lambda: np.zeros((0, 0)),
        lambda: value.astype(np.uint8) if value.dtype.kind in "iuf" else value,
        lambda: value[..., None],
        lambda: np.moveaxis(value, -1, 0),
    ]
    with np.errstate(all="ignore"):
        return rng.choice(changes)()


@lru_cache
def _bomb(name: str, size: int) -> bytes:
    """An array that is packed a thousand times smaller than it is."""
    out = io.BytesIO()
    np.savez_compressed(out, **{name: np.zeros(size, np.uint8)})
    return out.getvalue()


def _npz(data: bytes, rng: random.Random) -> bytes:
    """Arrays of other shapes and types, lost, renamed; pickles, lying headers, bombs."""
    with np.load(io.BytesIO(data)) as found:
        arrays = dict(found)
    name = rng.choice(sorted(arrays))
    out = io.BytesIO()
    match rng.randrange(9):
        case 0:
            del arrays[name]
        case 1:
            arrays[rng.choice(("x", "../x", "a/b", "é" * 300))] = arrays.pop(name)
        case 2:
            arrays[name] = np.array([{"a": 1}], dtype=object)
        case 3:  # a header that claims 10**13 numbers
            np.savez(out, **arrays)
            return out.getvalue().replace(b"'shape': (", b"'shape': (9999999999999,", 1)
        case 4:
            return _bomb(name, rng.choice((1000, 30_000_000)))
        case 5:  # a central directory that claims 2**32 bytes
            np.savez(out, **arrays)
            whole = bytearray(out.getvalue())
            at = whole.find(b"PK\x01\x02")
            whole[at + 24 : at + 28] = struct.pack("<I", 0xFFFFFFF0)
            return bytes(whole)
        case 6:
            with zipfile.ZipFile(out, "w") as archive:
                archive.writestr("a.npy", rng.randbytes(100))
            return out.getvalue()
        case _:
            arrays[name] = _array(arrays[name], rng)
    np.savez(out, allow_pickle=True, **arrays)
    return out.getvalue()


def _pt(data: bytes, rng: random.Random) -> bytes:
    """A checkpoint with values exchanged; what lies about the optimizer's state is tests/faults' part."""
    import torch

    found = torch.load(io.BytesIO(data), weights_only=True)
    for key in ("optimizer", "scheduler"):
        found.pop(key) if rng.random() < 0.05 else None
    key = rng.choice([k for k in found if k not in ("optimizer", "scheduler")])
    if key == "model" and rng.random() < 0.8:
        name = rng.choice(sorted(found[key]))
        weight = found[key][name]
        found[key][name] = rng.choice(
            (weight.reshape(-1)[:0], weight.reshape(-1), weight.double(), weight.float() * float("nan"), 3, None)
        )
    else:
        found[key] = rng.choice([v for v in HOSTILE if not isinstance(v, str) or "\ud800" not in v])
    out = io.BytesIO()
    torch.save(found, out)
    return out.getvalue()


def _text(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(TEXTS).encode("utf-8", "surrogatepass")


KINDS: dict[str, list[Callable[[bytes, random.Random], bytes]]] = {
    ".json": [_json, _json, _json, _bytes, _text],
    ".yaml": [_yaml, _yaml, _yaml, _bytes, _text],
    ".csv": [_csv, _csv, _csv, _bytes, _text],
    ".npz": [_npz, _npz, _npz, _bytes],
    ".pt": [_pt, _bytes],
    ".members": [_members, _members, _members, _members, _bytes, _text],
    ".journal": [_lines, _lines, _lines, _bytes, _text],
}


def mutated(name: str, data: bytes, rng: random.Random) -> bytes:
    """Return other bytes for a file of this name."""
    kinds = next((kinds for ending, kinds in KINDS.items() if name.endswith(ending)), [_bytes, _text])
    return rng.choice(kinds)(data, rng)


def special(rng: random.Random) -> str | None:
    """Return what stands in a file's place, of a few: a link, a pipe, a folder, nothing, a huge file; mostly None."""
    return rng.choice(("link", "pipe", "folder", "gone", "huge", "device")) if rng.random() < 0.04 else None
