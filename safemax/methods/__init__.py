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
from safemax.training.trainer import Training


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
    """Build a method from its defaults, the knobs that a preset of its own sets and the knobs given, in rising priority.

    Raises:
        InputError: unknown method, preset or knob, or a value that is not allowed.
    """
    method, (own, _) = find(name), preset_of(name, preset)
    for key in values:
        if key not in knobs(method):
            raise unknown(f"knob of {name}", external(key), map(external, knobs(method)))
    return method(**{**own, **values})


def preset_of(name: str, preset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a preset of a method sets: knobs of the method, and settings of the training; "" sets nothing.

    Raises:
        InputError: unknown method or preset.
        TypeError: the preset sets what is neither, which is a fault of the method's file.
    """
    method = find(name)
    if preset and preset not in method.presets:
        raise unknown(f"preset of {name}", preset, method.presets)
    settings = method.presets.get(preset, {})
    own, training = ({key: settings[key] for key in settings if key in knobs(group)} for group in (method, Training))
    if len(own) + len(training) < len(settings):
        others = ", ".join(key for key in settings if key not in {**own, **training})
        raise TypeError(f"preset {preset} of {name} sets {others}, which neither {method.__name__} nor Training has")
    return own, training


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
