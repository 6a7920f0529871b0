"""Unlearning methods, one a file. A new file here is a new method; safemax/training/method.py says what it must hold.

>>> from safemax.methods import available, create
>>> "salun" in available()
True
>>> create("salun", mask_ratio=0.3).mask_ratio
0.3
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from safemax.errors import InputError, unknown
from safemax.knobs import external, knobs
from safemax.plugins import classes_in
from safemax.training.method import Method
from safemax.training.settings import Training

_TUNED = Path(__file__).with_name("tuned.json")


@cache
def available() -> dict[str, type[Method]]:
    """Return every method class by name, the file's; its presets include those that contests found (tuned.json)."""
    methods = classes_in(__name__, __path__, Method)  # type: ignore[type-abstract]  # an interface, never constructed
    for name, presets in json.loads(_TUNED.read_text(encoding="utf-8")).items():
        methods[name].presets = {**methods[name].presets, **presets}
    return methods


def find(name: str) -> type[Method]:
    """Return the method class of a name; raise InputError, listing the known names, if there is none."""
    if name not in available():
        raise unknown("method", name, available())
    return available()[name]


def create(name: str, *, preset: str = "", **values: Any) -> Method:
    """Create a method; given values override the preset's, which override the defaults.

    Args:
        name: one of `available()`.
        preset: a name in the method's `presets`, of which only the knobs count here; "" for none.
        values: knobs by field name (`lmbda` for lambda).

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


def validate_steps(method: Method, steps: int) -> None:
    """Raise InputError for a training of no steps, which only a method that edits the weights at once may have."""
    if steps == 0 and method.training.get("steps") != 0:
        name = type(method).__module__.rpartition(".")[2]
        raise InputError(f"steps = 0 is not allowed: {name} learns in steps; steps is a whole number of at least 1")


def knobs_of(method: Method) -> Mapping[str, Any]:
    """Return the values of a method's knobs by the names that users write (`lambda`)."""
    return {external(name): getattr(method, name) for name in knobs(method)}
