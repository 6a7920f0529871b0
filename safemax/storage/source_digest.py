"""What code a result depends on, so that work which is kept for later runs is made anew when its code has changed."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PACKAGE, _ROOT = __name__.partition(".")[0], Path(__file__).parents[2]


@cache
def digest(*modules: str) -> str:
    """Return the sha256 (hex) of the code of modules and of all of this package that they import.

    Comments, docstrings and layout do not enter.
    """
    sha = hashlib.sha256()
    for path in sorted(_closure(modules), key=str):
        sha.update(_bare(path).encode())
    return sha.hexdigest()


def _closure(modules: tuple[str, ...]) -> set[Path]:
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += [each for each in _imports(path) if each.partition(".")[0] == _PACKAGE]
    return set(found.values())


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)  # a module, or a name that is none


def _file(name: str) -> Path | None:
    """Return a module's file, None for a name that is within one."""
    place = _ROOT.joinpath(*name.split("."))
    return next((each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file()), None)


def _bare(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return ast.dump(tree)
