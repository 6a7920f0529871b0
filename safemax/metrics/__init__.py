"""What the panel measures: torchmetrics' metrics and our own, fed with images as they are drawn; the folder is the registry.

A metric of the panel is a file that holds two names. METRICS says what its numbers mean, a MetricInfo by key. `Panel` is a
PanelMetric: it takes batches and returns the numbers by those keys; nothing where no batch held what it needs. Files without
`Panel` hold tools.

Each metric can be used alone, like any other of torchmetrics:

    >>> import torch
    >>> from safemax.metrics import OutcomeShares
    >>> shares = OutcomeShares(forget=(0,), num_classes=2)
    >>> shares.update(torch.tensor([[0.1, 0.2, 0.7], [0.9, 0.0, 0.1]]), torch.tensor([0, 0]))
    >>> shares.compute()["reject"]
    50.0
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import NamedTuple

from torchmetrics import MetricCollection

from safemax.metrics.constant_images import ConstantShare
from safemax.metrics.entropy import AnswerEntropy, ForgetProbability
from safemax.metrics.features import JudgeFeatures
from safemax.metrics.frechet import FrechetDistance
from safemax.metrics.intervals import MeanWithError
from safemax.metrics.kid import KernelDistance
from safemax.metrics.measurement import MetricInfo, PanelMetric, PanelSetting
from safemax.metrics.outcome import OutcomeShares
from safemax.metrics.pixels import PixelStatistics
from safemax.metrics.precision_coverage import PrecisionCoverage
from safemax.metrics.retention import Accuracy

__all__ = [
    "Accuracy",
    "AnswerEntropy",
    "ConstantShare",
    "ForgetProbability",
    "FrechetDistance",
    "JudgeFeatures",
    "KernelDistance",
    "MeanWithError",
    "MetricInfo",
    "OutcomeShares",
    "PanelMetric",
    "PanelSetting",
    "PixelStatistics",
    "PrecisionCoverage",
    "available",
    "panel",
]

# The order in which people read them; a metric that is not named here comes after these.
READING_ORDER = (
    *("outcome", "judge_fitness", "entropy", "pixels", "constant_images", "kid", "precision_coverage"),
    *("retention", "second_sampler", "user_samplers", "frechet", "retrain_gap"),
)


class PanelFile(NamedTuple):
    """A file of this folder that is part of the panel.

    Args:
        module: its name, such as safemax.metrics.kid.
        infos: what each of its numbers means, by key.
        create: makes the metric of a setting.
    """

    module: str
    infos: Mapping[str, MetricInfo]
    create: type[PanelMetric]


@cache
def available() -> dict[str, PanelFile]:
    """Return every metric of the panel by its file's name, in reading order."""
    names = sorted((each.name for each in iter_modules(__path__)), key=_place)
    modules = {name: import_module(f"{__name__}.{name}") for name in names}
    return {
        name: PanelFile(module.__name__, module.METRICS, module.Panel)
        for name, module in modules.items()
        if hasattr(module, "Panel")
    }


def panel(setting: PanelSetting) -> MetricCollection:
    """Return all metrics of the panel; `update` takes a batch of JudgedImages, `compute` returns every number by key."""
    # Groups of equal states are found after the first batch, in which metrics of different classes are all still empty.
    return MetricCollection({name: file.create(setting) for name, file in available().items()}, compute_groups=False)


def _place(name: str) -> tuple[int, str]:
    return (READING_ORDER.index(name) if name in READING_ORDER else len(READING_ORDER)), name
