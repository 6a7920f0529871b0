"""One file per unlearning method; the folder is the registry, and a file's name is the method's name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from safemax.errors import unknown
from safemax.knobs import external, knobs
from safemax.training.method import Method


@cache
def available() -> dict[str, type[Method]]:
    """Return every method by name: the one Method subclass that each file of this folder defines."""
    names = sorted(each.name for each in iter_modules(__path__) if each.name not in ("base",))
    return {name: _defined_in(name) for name in names}


def find(name: str) -> type[Method]:
    """Return the method of that name; raise InputError, listing the known ones, where there is none."""
    if name not in available():
        raise unknown("method", name, available())
    return available()[name]


def create(name: str, *, preset: str = "", **values: Any) -> Method:
    """Build a method from its defaults, a preset of its own and the knobs given, in rising priority.

    Raises:
        InputError: unknown method, preset or knob, or a value that is not allowed.
    """
    method = find(name)
    if preset and preset not in method.presets:
        raise unknown(f"preset of {name}", preset, method.presets)
    for key in values:
        if key not in knobs(method):
            raise unknown(f"knob of {name}", external(key), map(external, knobs(method)))
    return method(**{**method.presets.get(preset, {}), **values})


def knobs_of(method: Method) -> Mapping[str, Any]:
    """Return the values of a method's knobs by the names that users write."""
    return {external(name): getattr(method, name) for name in knobs(method)}


def _defined_in(name: str) -> type[Method]:
    module = import_module(f"{__name__}.{name}")
    (method,) = (
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Method) and each.__module__ == module.__name__
    )
    return method
