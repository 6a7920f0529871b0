"""Numbers are written as people read them."""

from __future__ import annotations

import doctest
import math

import pytest

from safemax.reports import numbers


def test_the_examples_hold() -> None:
    assert doctest.testmod(numbers).failed == 0


@pytest.mark.parametrize("value", [1e-8, 3e-6, 0.02, 7.0, 99.96, 1e2, 1e5, 123456.7, -0.5])
@pytest.mark.parametrize("unit", ["", "%", "0..1", "minutes", "GB"])
def test_no_number_has_an_exponent(value: float, unit: str) -> None:
    assert "e" not in numbers.quantity(value, unit)


def test_what_is_not_there_is_a_dash() -> None:
    assert numbers.quantity(None) == numbers.quantity(math.nan, "%") == "-"
    assert numbers.change(1.0, math.nan) == ""


def test_a_gigabyte_is_not_a_thousand_megabytes() -> None:
    assert (numbers.memory_size(0.9996), numbers.memory_size(0.0004)) == ("1.0 GB", "0 MB")
