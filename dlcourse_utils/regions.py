"""The code of exercises: cut the solution regions out, and say what code defines."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlcourse_utils.percent import REGION_WORDS, Cell, SourceError

_MARKER = re.compile(r"(?P<indent>\s*)# (?P<word>BEGIN|END) SOLUTION\s*$")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_SCOPES = (*_DEFINITIONS, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def cut(cell: Cell, path: Path) -> tuple[str, str, list[tuple[int, str]]]:
    """Cut the solution regions of a code cell: (solved code, stub, [(line, solution line)]).

    The solved code drops the marker lines; the stub has `...` in place of each region, at the
    marker's indentation. Raises SourceError for unclosed, nested, stray and misspelt markers.
    """
    solved: list[str] = []
    stub: list[str] = []
    solution: list[tuple[int, str]] = []
    opened: tuple[int, str] | None = None
    filled = False
    number = cell.first
    for number, text in enumerate(cell.source.split("\n"), cell.first):
        marker = _MARKER.match(text)
        if marker is None:
            if REGION_WORDS.search(text):
                what = f"a misspelt region marker {text.strip()!r}"
                raise SourceError(path, number, what, "'# BEGIN SOLUTION' alone on its line")
            solved.append(text)
            if opened is None:
                stub.append(text)
            elif text.strip():
                solution.append((number, text))
                filled = filled or not text.lstrip().startswith("#")
        elif marker["word"] == "BEGIN":
            if opened is not None:
                what = f"a region inside the region opened on line {opened[0]}"
                raise SourceError(path, number, what, "'# END SOLUTION' before it")
            opened, filled = (number, marker["indent"]), False
            stub.append(f"{marker['indent']}...")
        else:
            if opened is None:
                what = "'# END SOLUTION' of no region"
                raise SourceError(path, number, what, "'# BEGIN SOLUTION' before it")
            if marker["indent"] != opened[1]:
                what = "'# END SOLUTION' at another indentation than its '# BEGIN SOLUTION'"
                raise SourceError(path, number, what, f"that of line {opened[0]}")
            if not filled:
                raise SourceError(path, opened[0], "an empty region", "the solved code in it")
            opened = None
    if opened is not None:
        what = "a region that is not closed"
        raise SourceError(path, opened[0], what, f"'# END SOLUTION' by line {number}")
    return "\n".join(solved), "\n".join(stub), solution


def parsed(cell: Cell, path: Path) -> ast.Module:
    """The syntax tree of a solved code cell. Raises SourceError where it does not parse."""
    try:
        return ast.parse(cell.source)
    except SyntaxError as error:
        what = f"code that does not parse ({error.msg}: {(error.text or '').strip()!r})"
        raise SourceError(path, cell.first + (error.lineno or 1) - 1, what, "Python") from None


def checked_ids(cell: Cell, path: Path) -> Iterator[tuple[int, str]]:
    """Lines and ids of the calls of check("NN.n", ...) in a code cell."""
    for node in ast.walk(parsed(cell, path)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
        called = called.id if isinstance(called, ast.Name) else called
        first = node.args[0] if node.args else None
        if called == "check" and isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield cell.first + node.lineno - 1, first.value


def bound(tree: ast.Module) -> list[str]:
    """Names that a module's code binds at top level, in order of appearance."""
    names: dict[str, None] = {}
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop(0)
        if isinstance(node, _DEFINITIONS):
            names[node.name] = None
        elif isinstance(node, ast.alias):
            names[(node.asname or node.name).split(".")[0]] = None
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] = None
        if not isinstance(node, _SCOPES):
            queue[:0] = ast.iter_child_nodes(node)
    return list(names)


def signatures(tree: ast.AST, prefix: str = "") -> dict[str, tuple[str, str | None]]:
    """Signature and docstring of each function and class, by dotted name."""
    found: dict[str, tuple[str, str | None]] = {}
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, _DEFINITIONS):
            continue
        name = f"{prefix}{node.name}"
        parts: list[Any] = [type(node).__name__, *map(ast.dump, node.decorator_list)]
        if isinstance(node, ast.ClassDef):
            parts += [ast.dump(part) for part in (*node.bases, *node.keywords)]
        else:
            parts += [ast.dump(part) for part in (node.args, node.returns) if part]
        found[name] = (" ".join(parts), ast.get_docstring(node))
        found |= signatures(node, f"{name}.")
    return found
