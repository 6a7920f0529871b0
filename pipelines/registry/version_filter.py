"""A filter of versions by columns and metrics, such as ua>=99 and method=safemax; it compares and runs nothing."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.registry.version_table import NUMBER, TEXTS
from safemax.errors import InputError, unknown

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "!=": operator.ne, ">": operator.gt, "<": operator.lt, "=": operator.eq,
}  # fmt: skip
_CONDITION = re.compile(r"\s*([A-Za-z][\w/.+-]*)\s*(>=|<=|!=|>|<|=)\s*(\S+)\s*")
_SHOWN = 80  # characters of a bad condition that the error repeats


@dataclass(frozen=True)
class Condition:
    """One comparison of a filter: a column or a metric's key, an operator, and what to compare with."""

    name: str
    sign: str
    value: str

    def holds(self, row: Mapping[str, object]) -> bool:
        """Return whether a version's row meets the condition; a number that the row lacks meets none."""
        actual = row.get(self.name)
        if isinstance(actual, str):
            return (actual == self.value) == (self.sign == "=")
        return isinstance(actual, float) and not math.isnan(actual) and _COMPARE[self.sign](actual, float(self.value))


def conditions(where: str, known: Sequence[str]) -> list[Condition]:
    """Return the conditions of a filter, which `and` joins.

    Args:
        where: such as ua>=99 and method=safemax; empty gives none.
        known: the columns and metrics that it may name.

    Raises:
        InputError: not a comparison, an unknown name, or a value that does not fit the column.
    """
    parts = re.split(r"\s+and\s+", where.strip()) if where.strip() else []
    return [_condition(part, known) for part in parts]


def _condition(text: str, known: Sequence[str]) -> Condition:
    parts = _CONDITION.fullmatch(text)
    if parts is None:
        raise InputError(f"where = {text[:_SHOWN]!r} is not a comparison; write NAME>=NUMBER, joined by and")
    name, sign, value = parts.groups()
    if name not in known:
        raise unknown("number or column", name[:_SHOWN], known)
    if name in TEXTS and sign not in ("=", "!="):
        raise InputError(f"where = {text.strip()[:_SHOWN]!r}: {name} is text, which only = and != compare")
    if name not in TEXTS and not NUMBER.fullmatch(value):
        raise InputError(f"where = {text.strip()[:_SHOWN]!r}: {name} is compared with a number")
    return Condition(name, sign, value)
