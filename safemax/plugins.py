"""Packages that are their own registry: each file defines one class of a kind, known by the name of the file."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

T = TypeVar("T")


def classes_in(package: str, path: Iterable[str], base: type[T], *, skip: tuple[str, ...] = ()) -> dict[str, type[T]]:
    """Import every module of a package and return the subclass of `base` that it defines, by the module's name, sorted.

    Args:
        package: its `__name__`.
        path: its `__path__`.
        base: the interface.
        skip: modules that define none.

    Raises:
        TypeError: a module does not define exactly one subclass.
    """
    names = sorted(each.name for each in iter_modules(path) if each.name not in skip)
    return {name: _class_in(f"{package}.{name}", base) for name in names}


def _class_in(module: str, base: type[T]) -> type[T]:
    classes = [
        each
        for each in vars(import_module(module)).values()
        if isinstance(each, type) and issubclass(each, base) and each.__module__ == module
    ]
    if len(classes) != 1:
        names = ", ".join(each.__name__ for each in classes) or "none"
        raise TypeError(f"{module} must define exactly one subclass of {base.__name__}; it defines: {names}")
    return classes[0]
