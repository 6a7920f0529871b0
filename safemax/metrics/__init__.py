"""What the panel measures, one file per metric; the folder is the registry.

A metric is a file that holds two names. METRICS says what its numbers mean, a MetricInfo by key. `measure` takes a Measurement and
returns the numbers by those keys, with `_low` and `_high` for an interval and `_se` for a standard error behind a key; nothing
where the measurement lacks what it needs. Files without `measure` hold tools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import NamedTuple

from safemax.metrics.measurement import Measurement, MetricInfo

# The order in which people read them; a metric that is not named here comes after these.
READING_ORDER = (
    *("outcome", "judge_fitness", "entropy", "pixels", "constant_images", "kid", "precision_coverage"),
    *("retention", "second_sampler", "frechet", "retrain_gap"),
)


class Metric(NamedTuple):
    """A file of this folder that measures.

    Args:
        module: its name, such as safemax.metrics.kid.
        infos: what each of its numbers means, by key.
        measure: returns the numbers by key.
    """

    module: str
    infos: Mapping[str, MetricInfo]
    measure: Callable[[Measurement], dict[str, float]]


@cache
def available() -> dict[str, Metric]:
    """Return every metric by its file's name, in reading order."""
    names = sorted((each.name for each in iter_modules(__path__)), key=_place)
    modules = {name: import_module(f"{__name__}.{name}") for name in names}
    return {
        name: Metric(module.__name__, module.METRICS, module.measure)
        for name, module in modules.items()
        if hasattr(module, "measure")
    }


def _place(name: str) -> tuple[int, str]:
    return (READING_ORDER.index(name) if name in READING_ORDER else len(READING_ORDER)), name
