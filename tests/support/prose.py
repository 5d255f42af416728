"""Finds assertions that compare prose, which would tie a message to its wording.

Prose is four or more lower-case words in a row on one line; a word may have a hyphen, an apostrophe, brackets around it
and punctuation after it. Anything else ends the row: a key, a list of names, a number, a path, code in backticks, `.*`
of a pattern, a verb after `dlrun`, the file or key that opens a message (`nowhere: `). Compared are the operands of an
`assert` and of `match=`: strings, arguments of calls such as `re.search`, and what is bound to a name in the same
function or at the top of the file: a string, a loop over a literal, a parameter of `pytest.mark.parametrize`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

__all__ = ["compared", "prose"]

FEW = 4
WORD = re.compile(r"\(*(?:a|[a-z][a-z]+)(?:[-'’][a-z]+)*\)*[,;:.?!…]*")
# calls whose arguments are compared; those of any other call are input of what is tested
COMPARING = {"all", "any", "compile", "count", "endswith", "escape", "find", "findall", "fullmatch", "index", "match"}
COMPARING |= {"partition", "removeprefix", "removesuffix", "replace", "search", "set", "sorted", "startswith", "sub"}
LITERALS = (ast.Constant, ast.JoinedStr, ast.Dict, ast.List, ast.Tuple)
Bound = dict[str, list[ast.expr]]


def prose(text: str) -> str:
    """Return the first four or more words of prose in a row, empty if there are none."""
    text = re.sub(r"\\b|[\^$]", "", text)
    text = re.sub(r"\\s\+?|\\ ", " ", text)
    text = re.sub(r"`[^`]*`|\bdlrun [a-z]+|^(?:\S+: )+|\n", " 0 ", text)
    row: list[str] = []
    for token in [*text.split(), "0"]:
        if WORD.fullmatch(token):
            row.append(token)
        elif len(row) >= FEW and not all(word.endswith(",") for word in row[:-1]):
            return " ".join(row)
        else:
            row = []
    return ""


def compared(source: str) -> list[tuple[int, str]]:
    """Return line and words of all prose that assertions in the source of a test file compare."""
    tree = ast.parse(source)
    top = _assigned(tree.body)
    lists = {name: values[0] for name, values in top.items()}
    found: set[tuple[int, str]] = set()
    for scope in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        nodes = [*ast.walk(scope)]
        bound = top | _assigned(nodes) | _looped(nodes, lists)
        for node in nodes:
            if isinstance(node, ast.Assert):
                found |= set(_prose(node.test, bound))
            elif isinstance(node, ast.keyword) and node.arg == "match":
                found |= set(_prose(node.value, bound))
    return sorted(found)


def _prose(node: ast.expr, bound: Bound) -> Iterator[tuple[int, str]]:
    seen: set[str] = set()
    pending = [*_operands(node)]
    while pending:
        operand = pending.pop()
        if isinstance(operand, ast.Name) and operand.id not in seen:
            seen.add(operand.id)
            values = [
                v
                for value in bound.get(operand.id, [])
                for v in (value.values if isinstance(value, ast.Dict) else [value])
            ]
            pending += [part for value in values for part in _operands(value)]
        elif isinstance(operand, ast.Constant) and isinstance(operand.value, str) and prose(operand.value):
            yield operand.lineno, prose(operand.value)


def _operands(node: ast.AST) -> Iterator[ast.Name | ast.Constant]:
    if isinstance(node, (ast.Name, ast.Constant)):
        yield node
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name != "split" or node.args:  # "names in a list".split()
            yield from _operands(node.func)
        for argument in node.args if name in COMPARING else ():
            yield from _operands(argument)
    elif not isinstance(node, ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _operands(child)


def _assigned(nodes: Iterable[ast.AST]) -> Bound:
    """The literals assigned to each name."""
    bound: Bound = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, LITERALS):
            for target in node.targets:
                _bind(bound, target, [node.value])
    return bound


def _looped(nodes: Iterable[ast.AST], lists: dict[str, ast.expr]) -> Bound:
    """The literals that each name of a loop or of a parametrised test stands for in turn."""
    bound: Bound = {}
    for node in nodes:
        if isinstance(node, (ast.For, ast.comprehension)):
            _bind(bound, node.target, _rows(node.iter, lists))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "parametrize":
            names = ast.literal_eval(node.args[0])
            names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
            target = ast.Tuple([ast.Name(name) for name in names]) if len(names) > 1 else ast.Name(names[0])
            _bind(bound, target, _rows(node.args[1], lists))
    return bound


def _rows(node: ast.expr, lists: dict[str, ast.expr]) -> list[ast.expr]:
    method = node.func if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
    node, pairs = (method.value, method.attr == "items") if method else (node, False)
    node = lists.get(node.id, node) if isinstance(node, ast.Name) else node
    if isinstance(node, ast.Dict):
        items = [(key, value) for key, value in zip(node.keys, node.values, strict=True) if key is not None]
        return [ast.Tuple([*item]) if pairs else item[0] for item in items]
    return node.elts if isinstance(node, (ast.List, ast.Tuple, ast.Set)) else []


def _bind(bound: Bound, target: ast.expr, values: Iterable[ast.expr]) -> None:
    for value in values:
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "param":
            value = ast.Tuple(value.args) if isinstance(target, ast.Tuple) else value.args[0]
        if isinstance(target, ast.Name):
            bound.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple) and isinstance(value, (ast.Tuple, ast.List)):
            for part, cell in zip(target.elts, value.elts, strict=False):
                _bind(bound, part, [cell])
