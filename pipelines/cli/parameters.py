"""A knob as text: the name that users write, the values they may give, and strict reading of a value."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safemax.errors import InputError, unknown
from safemax.knobs import INFINITY, Knob, external, knobs

Value = bool | int | float | str

_KINDS: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
# int() and float() also read 1_000, ' 7 ', 'infinity' and the digits of every script.
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_EXCERPT = 80  # characters of outside text in an error message


class UsageError(InputError):
    """A parameter that the command line does not accept; the process ends with status 2, before any work."""


@dataclass(frozen=True)
class Parameter:
    """A knob as the command line knows it.

    Args:
        name: what users write.
        field: name of the dataclass field; differs from `name` only where Python reserves the word (`lmbda`).
        kind: bool, int, float or str.
        default: value of the field where nothing sets it.
        about: meaning, bounds and choices.
    """

    name: str
    field: str
    kind: type
    default: Value
    about: Knob

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Parameter:
        """Return the parameter that `to_json` described."""
        low, high = facts.get("bounds", (None, None))
        bounds = (-INFINITY if low is None else low, INFINITY if high is None else high)
        choices = tuple(facts.get("choices", ()))
        about = Knob(
            facts["doc"],
            bounds,
            choices=choices,
            prose=facts.get("prose", False),
            takes_auto=facts.get("takes_auto", False),
        )
        return cls(facts["name"], facts["name"], _KINDS[facts["kind"]], facts["default"], about)

    def to_json(self) -> dict[str, Any]:
        """Return what the command line needs to know, as JSON: name, kind, default, meaning and what is allowed."""
        facts: dict[str, Any] = {"name": self.name, "kind": self.kind.__name__, "default": self.default}
        facts["doc"] = self.about.doc
        if any(map(math.isfinite, self.about.bounds)):
            facts["bounds"] = [bound if math.isfinite(bound) else None for bound in self.about.bounds]
        if self.about.choices:
            facts["choices"] = list(self.about.choices)
        for flag in ("prose", "takes_auto"):
            if getattr(self.about, flag):
                facts[flag] = True
        return facts

    @property
    def allowed(self) -> str:
        """The values that may be given, in words."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return "one of " + ", ".join(self.about.choices) if self.about.choices else self._text
        return ("a whole number" if self.kind is int else "a number") + _span(*self.about.bounds)

    @property
    def _text(self) -> str:
        return "text without control characters" if self.about.prose else "text"

    def read(self, text: str | None) -> Value:
        """Return the value that text stands for; raise UsageError where there is no text (None) or it is not allowed."""
        if text is None or (not text and self.default != ""):
            raise UsageError(f"{self.name} has no value; {self.name} is {self.allowed}")
        if self.about.choices and text not in self.about.choices:
            raise UsageError(str(unknown(self.name, excerpt(text), self.about.choices)))
        value = plain_prose(text) if self.about.prose else _value(self.kind, text)
        low, high = self.about.bounds
        if value is None or not (isinstance(value, str) or low <= value <= high):
            raise UsageError(f"{self.name} = {excerpt(text)} is not allowed; {self.name} is {self.allowed}")
        return value


def parameters(group: type) -> list[Parameter]:
    """Return the knobs of a dataclass as parameters, in order; raise TypeError for a type that has no text form."""
    return [_parameter(group, field, about) for field, about in knobs(group).values()]


def with_defaults(group: type, **defaults: Value) -> type:
    """Return a dataclass of knobs with other defaults, for a pipeline or a method; raise TypeError for an unknown knob."""
    known = {field.name: field for field, _ in knobs(group).values()}
    if not defaults.keys() <= known.keys():
        raise TypeError(f"{group.__name__} has no knob {', '.join(sorted(defaults.keys() - known.keys()))}")
    changed = [
        (name, known[name].type, dataclasses.field(default=value, metadata=known[name].metadata))
        for name, value in defaults.items()
    ]
    frozen = group.__dataclass_params__.frozen  # type: ignore[attr-defined]
    names = {"__doc__": group.__doc__, "__module__": group.__module__}
    return dataclasses.make_dataclass(group.__name__, changed, bases=(group,), namespace=names, frozen=frozen)


def to_text(value: Value) -> str:
    """Return the text that `Parameter.read` turns back into this value."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def excerpt(text: str) -> str:
    """Return text from outside as an error message may quote it: on one line, its middle left out where it is long."""
    shown = text if len(text) <= _EXCERPT else f"{text[: _EXCERPT // 2]}...{text[-_EXCERPT // 2 :]}"
    return shown if shown.isprintable() else ascii(shown)


def plain_prose(text: str) -> str | None:
    """Return text with single spaces for its blanks and line breaks; None if it holds a character that does not print.

    Joiners within emoji and Persian words are part of what prints; marks that turn the direction of what follows are not.
    """
    plain = " ".join(text.split())
    return plain if re.sub("[\u200c\u200d]", "", plain).isprintable() else None


def _parameter(group: type, field: dataclasses.Field[Any], about: Knob) -> Parameter:
    kind = _KINDS.get(field.type if isinstance(field.type, str) else field.type.__name__)
    if kind is None:
        raise TypeError(f"{group.__name__}.{field.name} is a {field.type}; a knob is a bool, int, float or str")
    return Parameter(external(field.name), field.name, kind, kind(field.default), about)


def _value(kind: type, text: str) -> Value | None:
    if kind is bool:
        return {"true": True, "false": False, "True": True, "False": False}.get(text)  # str(True) from Python callers
    if kind is int:
        return int(text) if _WHOLE.fullmatch(text) and abs(int(text)) < 2**63 else None  # torch counts in int64
    if kind is float:
        return float(text) if _NUMBER.fullmatch(text) and math.isfinite(float(text)) else None
    return text if text.isprintable() else None


def _span(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return ""
    if math.isinf(high):
        return f" of at least {_plain(low)}"
    if math.isinf(low):
        return f" of at most {_plain(high)}"
    return f" from {_plain(low)} to {_plain(high)}"


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:.12g}"
