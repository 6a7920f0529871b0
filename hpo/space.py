"""The space of a search: the knobs of a method and of its training, each searched over a range or held at a value."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from pipelines.cli.parameters import Parameter, Value, parameters
from safemax.errors import InputError, unknown
from safemax.knobs import knobs
from safemax.training.method import Method
from safemax.training.settings import Training

Number = int | float
Owner = TypeVar("Owner", Method, Training)


@dataclass(frozen=True)
class Range:
    """The values that one knob is searched over, both ends included.

    Args:
        low: smallest value.
        high: largest value, above low.
        log: whether values are spread evenly on a logarithmic scale.
        whole: whether the values are whole numbers.
    """

    low: Number
    high: Number
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        """Return the range as a user writes it: 1e-05:0.001:log."""
        return f"{self.low:g}:{self.high:g}" + (":log" if self.log else "")

    def distribution(self) -> FloatDistribution | IntDistribution:
        """Return the range as an Optuna distribution."""
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def nearest(self, value: Number) -> Number:
        """Return the value of the range that is nearest to a value."""
        return min(max(value, self.low), self.high)

    def levels(self, n: int) -> list[Number]:
        """Return n values spread evenly from end to end; fewer where some are equal after rounding to whole numbers."""
        shares = [i / (n - 1) for i in range(n)] if n > 1 else [0.5]
        values = [self._at(share) for share in shares]
        return list(dict.fromkeys(round(v) for v in values)) if self.whole else values

    def _at(self, share: float) -> float:
        if self.log:
            return self.nearest(self.low ** (1 - share) * self.high**share)
        return self.low + share * (self.high - self.low)


@dataclass(frozen=True)
class Space:
    """The knobs that trials vary and the knobs that they share, by the names that users write.

    Args:
        ranges: what is searched.
        held: the values of the other knobs of the method and its training.
        first: values of the searched knobs in trial 0: the defaults, or the nearest ends of ranges without them.
    """

    ranges: Mapping[str, Range]
    held: Mapping[str, Value]
    first: Mapping[str, Number] = field(default_factory=dict)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the ranges as Optuna distributions."""
        return {name: each.distribution() for name, each in self.ranges.items()}

    def grid(self, points: int, seed: int) -> list[dict[str, Number]]:
        """Return at most so many points, each knob at as many levels as fit, shuffled so that a partial grid covers the space."""
        each = max(1, int(points ** (1 / len(self.ranges)) + 1e-9))
        levels = [one.levels(each) for one in self.ranges.values()]
        grid = [dict(zip(self.ranges, point, strict=True)) for point in itertools.product(*levels)]
        random.Random(seed).shuffle(grid)
        return grid

    def describe(self) -> dict[str, str]:
        """Return each searched knob's range as text."""
        return {name: str(each) for name, each in self.ranges.items()}


def read(text: str, method: Method, training: Training, given: Iterable[str] = ()) -> Space:
    """Return the space of a method's and its training's knobs.

    Every knob that declares a search range is searched over it, except those that the user gave a value.

    Args:
        text: changes, separated by commas: `lr=1e-5:1e-3:log` searches that range (`:linear` where the knob's own scale is
            logarithmic), `steps=150` holds a value; `auto` changes nothing.
        method: its values are what trial 0 takes and what the knobs that are not searched are held at.
        training: likewise.
        given: names of knobs whose values the user gave: held, unless the text searches them.

    Raises:
        InputError: an unknown or duplicate name, an empty range, a value that is not allowed, or nothing left to search.
    """
    known = {each.name: (each, getattr(owner, each.field)) for owner, each in _every(method, training)}
    searched = {name: _own(about) for name, (about, _) in known.items() if about.about.search and name not in given}
    values: dict[str, Any] = {name: value for name, (_, value) in known.items()}
    for name, words in _items(text):
        if name not in known or known[name][0].kind not in (int, float):
            raise unknown("knob in space", name, (n for n, (p, _) in known.items() if p.kind in (int, float)))
        if ":" in words:
            searched[name] = _range(known[name][0], words)
        else:
            searched.pop(name, None)
            values[name] = known[name][0].read(words)
    if not searched:
        raise InputError(f"space = {text} leaves nothing to search; searchable: {', '.join(_numbers(known))}")
    first = {name: each.nearest(values[name]) for name, each in searched.items()}
    return Space(searched, {name: value for name, value in values.items() if name not in searched}, first)


def holding(values: Mapping[str, Value], owner: Owner) -> Owner:
    """Return a method or a training with those of the values that are its knobs; InputError where they do not fit together."""
    return replace(owner, **by_field(values, type(owner)))


def by_field(values: Mapping[str, Value], owner: type) -> dict[str, Any]:
    """Return those of the values that belong to a dataclass, by its fields' names (`lambda` becomes `lmbda`)."""
    names = {each.name: each.field for each in parameters(owner)}
    return {names[name]: value for name, value in values.items() if name in names}


def _every(method: Method, training: Training) -> Iterator[tuple[Any, Parameter]]:
    for owner in (method, training):
        yield from ((owner, each) for each in parameters(type(owner)) if each.field in knobs(owner))


def _numbers(known: Mapping[str, tuple[Parameter, Any]]) -> list[str]:
    return [name for name, (about, _) in known.items() if about.kind in (int, float)]


def _items(text: str) -> Iterator[tuple[str, str]]:
    seen = set()
    for item in text.split(",") if text != "auto" else ():
        name, equals, words = (part.strip() for part in item.partition("="))
        if not (name and equals and words):
            raise InputError(
                f"space: {item.strip()!r} is not allowed; write NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE"
            )
        if name in seen:
            raise InputError(f"space has a duplicate {name}; each knob has one range or value")
        seen.add(name)
        yield name, words


def _own(parameter: Parameter) -> Range:
    low, high = parameter.about.search or (0, 0)
    return Range(low, high, parameter.about.log, parameter.kind is int)


def _range(parameter: Parameter, words: str) -> Range:
    low_text, high_text, *scale = words.split(":")
    if scale not in ([], ["log"], ["linear"]):
        raise InputError(
            f"space: {parameter.name}={words} is not allowed; a range is LOW:HIGH, LOW:HIGH:log or LOW:HIGH:linear"
        )
    low, high = parameter.read(low_text), parameter.read(high_text)
    assert not isinstance(low, str)  # the caller passes numbers only
    assert not isinstance(high, str)
    if low >= high:
        raise InputError(f"space: {parameter.name}={words} is empty; the first number must be below the second")
    log = scale == ["log"] or (not scale and parameter.about.log and low > 0)
    if log and low <= 0:
        raise InputError(f"space: {parameter.name}={words} is not allowed; a logarithmic range starts above 0")
    return Range(low, high, log, parameter.kind is int)
