"""Knobs: dataclass fields that state default, bounds, search range and meaning of a hyperparameter in one place.

The command line, MLproject, MLflow's parameters, Optuna's search space and the README's table are derived from them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safemax.errors import InputError, unknown

INFINITY = math.inf


@dataclass(frozen=True)
class Knob:
    """What a hyperparameter states besides its default.

    Args:
        doc: meaning, unit and source, in one line.
        bounds: inclusive limits of a number; other values raise InputError.
        search: range that a search samples from, within bounds; None excludes the knob from searches.
        log: whether a search samples on a logarithmic scale.
        choices: the allowed names of a str knob.
        prose: whether a str knob is a sentence, in which any blank or line break is a space.
        without_null: the only value allowed with a model that has no null label; None where any is.
        added: whether the knob came after digests of the others were in use (see without_added).
        takes_auto: whether auto is a value of a str knob without choices; else it stands for no value on a command line.
    """

    doc: str
    bounds: tuple[float, float] = (-INFINITY, INFINITY)
    search: tuple[float, float] | None = None
    log: bool = False
    choices: tuple[str, ...] = ()
    prose: bool = False
    without_null: float | None = None
    added: bool = False
    takes_auto: bool = False


def knob(
    default: Any,
    doc: str,
    *,
    bounds: tuple[float, float] = (-INFINITY, INFINITY),
    search: tuple[float, float] | None = None,
    log: bool = False,
    choices: tuple[str, ...] = (),
    prose: bool = False,
    without_null: float | None = None,
    added: bool = False,
    takes_auto: bool = False,
) -> Any:
    """Return a dataclass field that is a knob (see Knob); its type must be bool, int, float or str."""
    about = Knob(doc, bounds, search, log, choices, prose, without_null, added, takes_auto)
    return dataclasses.field(default=default, metadata={"knob": about})


def knobs(owner: Any) -> dict[str, tuple[dataclasses.Field[Any], Knob]]:
    """Return the knobs of a dataclass (type or instance) by field name, in order of declaration."""
    return {f.name: (f, f.metadata["knob"]) for f in dataclasses.fields(owner) if "knob" in f.metadata}


def without_added(values: Mapping[str, Any], *owners: Any) -> dict[str, Any]:
    """Return values without those of added knobs that hold their default, so that a digest made before a knob came stays.

    Args:
        values: by the names that users write.
        owners: the dataclasses (types or instances) whose knobs they are.
    """
    defaults = {
        external(name): field.default
        for owner in owners
        for name, (field, about) in knobs(owner).items()
        if about.added
    }
    return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}


def external(name: str) -> str:
    """Return the name that users write for a field: `lambda` for `lmbda`, since Python reserves it; else the same."""
    return "lambda" if name == "lmbda" else name


def check(owner: Any) -> None:
    """Raise InputError if a knob of a dataclass instance has a value that is not allowed."""
    for name, (_, about) in knobs(owner).items():
        _check_value(external(name), getattr(owner, name), about)


def _check_value(name: str, value: Any, about: Knob) -> None:
    if isinstance(value, str):
        if about.choices and value not in about.choices:
            raise unknown(name, value, about.choices)
        return
    low, high = about.bounds
    if not (math.isfinite(value) and low <= value <= high):
        raise InputError(f"{name} = {value} is not allowed; {name} is a number {_span(low, high)}")


def _span(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "that is finite"
    if math.isinf(high):
        return f"of at least {low:g}"
    if math.isinf(low):
        return f"of at most {high:g}"
    return f"from {low:g} to {high:g}"
