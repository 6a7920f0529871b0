"""One file per attack; the folder is the registry, and a file's name is the attack's name."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from safemax.attacks.base import Attack
from safemax.errors import unknown


@cache
def available() -> dict[str, type[Attack]]:
    """Return every attack by name: the one Attack subclass that each file of this folder defines."""
    names = sorted(each.name for each in iter_modules(__path__) if each.name != "base")
    return {name: _defined_in(name) for name in names}


def find(name: str) -> type[Attack]:
    """Return the attack of that name; raise InputError, listing the known ones, where there is none."""
    if name not in available():
        raise unknown("attack", name, available())
    return available()[name]


def _defined_in(name: str) -> type[Attack]:
    module = import_module(f"{__name__}.{name}")
    (attack,) = (
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Attack) and each.__module__ == module.__name__
    )
    return attack
