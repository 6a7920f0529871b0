"""The digest of the code that a result depends on, so that cached work is redone when its code has changed."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

_PACKAGE, _ROOT = __name__.partition(".")[0], Path(__file__).parents[2]


@cache
def digest(*modules: str) -> str:
    """Return the sha256 (hex) of the code of modules and of everything in this package that they import.

    Comments, docstrings and layout do not count. Nor does an `__init__` that only passes names on: the module that
    defines the name counts instead, so that one name of a package's public face does not stand for the whole package.
    """
    sha = hashlib.sha256()
    for path in sorted(_closure(modules), key=str):
        sha.update(_without_docstrings(path).encode())
    return sha.hexdigest()


def _closure(modules: tuple[str, ...]) -> set[Path]:
    paths: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name not in paths and path is not None:
            paths[name] = path
            waiting += _imports(name, path)
    return set(paths.values())


def _imports(module: str, path: Path) -> Iterator[str]:
    """Yield the modules of this package that a module imports."""
    for node in _statements(path):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if _is_ours(each.name))
        if isinstance(node, ast.ImportFrom):
            source = _source(node, module, path)
            yield from (_home(source, each.name) for each in node.names if _is_ours(source))


def _statements(path: Path) -> Iterator[ast.AST]:
    """Yield the nodes of a file that can run."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        yield node
        if not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            waiting += ast.iter_child_nodes(node)


def _source(node: ast.ImportFrom, module: str, path: Path) -> str:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return resolve_name("." * node.level + (node.module or ""), package)


def _home(module: str, name: str) -> str:
    """Return the module that `from module import name` needs: a submodule, or where an `__init__` has the name from."""
    if _file(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    path = _file(module)
    if path is not None and path.name == "__init__.py":
        for node in _passed_on(path):
            for each in node.names:
                if name == (each.asname or each.name):
                    return _home(_source(node, module, path), each.name)
    return module


def _passed_on(path: Path) -> Iterator[ast.ImportFrom]:
    """Yield the imports of an `__init__`, and of its stub, which lists the names that it loads lazily."""
    for each in (path, path.with_suffix(".pyi")):
        if each.is_file():
            yield from (node for node in _statements(each) if isinstance(node, ast.ImportFrom))


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE


def _file(name: str) -> Path | None:
    """Return a module's file, None for a name that is not a module."""
    stem = _ROOT.joinpath(*name.split("."))
    return next((each for each in (stem.with_suffix(".py"), stem / "__init__.py") if each.is_file()), None)


def _without_docstrings(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return ast.dump(tree)
