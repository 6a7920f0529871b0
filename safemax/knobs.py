"""A knob is a dataclass field that states its default, bounds, search range and meaning once, for every reader of it.

The command line, the MLproject, MLflow's params, Optuna's space and the README's tables are all derived from these fields.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from safemax.errors import InputError, unknown

INFINITY = math.inf


@dataclass(frozen=True)
class Knob:
    """What is known about a hyperparameter beside its default.

    Args:
        doc: meaning, unit and source, one line.
        bounds: inclusive limits of a number that makes sense; a value outside is refused.
        search: the range that a search may draw from, inside bounds; None keeps it out of searches.
        log: whether the search draws on a logarithmic scale.
        choices: the allowed names of a str knob.
    """

    doc: str
    bounds: tuple[float, float] = (-INFINITY, INFINITY)
    search: tuple[float, float] | None = None
    log: bool = False
    choices: tuple[str, ...] = ()


def knob(
    default: Any,
    doc: str,
    *,
    bounds: tuple[float, float] = (-INFINITY, INFINITY),
    search: tuple[float, float] | None = None,
    log: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a dataclass field as a knob (see Knob); the field's type is bool, int, float or str."""
    return dataclasses.field(default=default, metadata={"knob": Knob(doc, bounds, search, log, choices)})


def knobs(owner: Any) -> dict[str, tuple[dataclasses.Field[Any], Knob]]:
    """Return the knobs of a dataclass (type or instance) by field name, in order of declaration."""
    return {f.name: (f, f.metadata["knob"]) for f in dataclasses.fields(owner) if "knob" in f.metadata}


def external(name: str) -> str:
    """Return the name that users write: Python reserves `lambda`, so the field is `lmbda` and nothing else differs."""
    return "lambda" if name == "lmbda" else name


def check(owner: Any) -> None:
    """Raise InputError for the first knob of a dataclass instance whose value is not allowed."""
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
