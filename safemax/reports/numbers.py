"""Numbers as people read them: percent, minutes, megabytes, and no more digits than the measurement has."""

from __future__ import annotations

import math

_DIGITS = {"%": 1, "points": 1, "0..1": 3, "-1..1": 3, "nats": 3, "minutes": 2, "GB": 3, "seconds": 1}


def quantity(value: float | None, unit: str = "") -> str:
    """Return a number without its unit, as a table shows it; "-" for None and nan.

    >>> quantity(100.0, "%"), quantity(99.25, "%"), quantity(12345.6), quantity(0.00002), quantity(7.4567)
    ('100', '99.2', '12,346', '0.00002', '7.46')
    """
    if value is None or math.isnan(value):
        return "-"
    if unit in _DIGITS:
        return _trimmed(f"{value:.{_DIGITS[unit]}f}", keep=unit not in ("%", "points"))
    if abs(value) >= 1000 or value == round(value):
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))  # three significant ones
    return _trimmed(f"{value:.{min(digits, 8)}f}")


def percent(value: float) -> str:
    """Return a share in percent, with the sign.

    >>> percent(100.0), percent(0.76)
    ('100 %', '0.8 %')
    """
    return f"{quantity(value, '%')} %"


def change(value: float | None, base: float | None, unit: str = "") -> str:
    """Return a difference with its sign; "" where one of the numbers is missing, the number alone where it rounds to 0.

    >>> change(99.3, 99.8, "%"), change(7.0, 7.0)
    ('-0.5', '0')
    """
    if value is None or base is None or math.isnan(value - base):
        return ""
    text = quantity(abs(value - base), unit)
    return f"{'-' if value < base else '+'}{text}" if text.strip("0.,") else text


def duration(minutes: float) -> str:
    """Return a time in the unit in which a person would say it.

    >>> duration(0.02), duration(0.8), duration(3.44), duration(135)
    ('1.2 s', '48 s', '3.4 min', '2 h 15 min')
    """
    if minutes < 1:
        seconds = 60 * minutes
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{minutes:.1f} min" if minutes < 60 else f"{int(minutes // 60)} h {minutes % 60:.0f} min"


def memory_size(gigabytes: float) -> str:
    """Return an amount of memory.

    >>> memory_size(0.7364), memory_size(9.5)
    ('736 MB', '9.5 GB')
    """
    return f"{1000 * gigabytes:.0f} MB" if gigabytes < 0.9995 else f"{gigabytes:.1f} GB"


def counted(number: int, noun: str) -> str:
    """Return a number of things, whose noun forms its plural with s or es.

    >>> counted(1, "seed"), counted(3, "class")
    ('1 seed', '3 classes')
    """
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def _trimmed(text: str, *, keep: bool = False) -> str:
    return text if keep or "." not in text else text.rstrip("0").rstrip(".")
