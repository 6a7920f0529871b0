"""Attacks on a corrected model, one a file. A new file here is a new attack; base.py says what it must hold."""

from __future__ import annotations

from functools import cache

from safemax.attacks.base import Attack
from safemax.errors import unknown
from safemax.plugins import classes_in


@cache
def available() -> dict[str, type[Attack]]:
    """Return every attack class by name: the file's name."""
    return classes_in(__name__, __path__, Attack, skip=("base",))  # type: ignore[type-abstract]  # an interface, never constructed


def find(name: str) -> type[Attack]:
    """Return the attack class of a name; raise InputError, listing the known names, if there is none."""
    if name not in available():
        raise unknown("attack", name, available())
    return available()[name]
