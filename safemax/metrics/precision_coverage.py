"""Whether samples lie where the real images lie: improved precision and coverage, by nearest neighbours in a feature space."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from safemax import metric_keys as keys
from safemax.errors import InputError
from safemax.judges.reference import Reference
from safemax.metrics.features import of_this_process
from safemax.metrics.intervals import with_interval
from safemax.metrics.measurement import MAIN, JudgedImages, MetricInfo, PanelMetric, PanelSetting

METRICS = {
    keys.PRECISION: MetricInfo(
        "samples that lie among real images of the forgotten class, in the features of all networks together",
        "0..1",
        "lower",
    ),
    keys.COVERAGE: MetricInfo("real images of the forgotten class with a sample among them", "0..1", "lower"),
}

NEAREST = 5  # the neighbour that a real image's ball reaches to
CHUNK = 1024  # rows of a distance matrix held at once


class PrecisionCoverage(Metric):
    """Precision and coverage of generated features against real ones; no generated row is held.

    A real row's ball reaches to its k-th nearest other real row, rim included. Precision is the share of generated rows inside a
    ball or more (Kynkaanniemi et al. 2019, arXiv:1904.06991, equation 1); coverage the share of balls that hold a generated row
    or more (Naeem et al. 2020, arXiv:2002.09797, equation 8). Take features of another network than the judge's. For the
    forgotten class lower is better, for a retained one higher.

    Args:
        real: (R, D), more than k rows.
        k: neighbours; 3 and 5 officially.

    Raises:
        InputError: too few real rows, or features that are not finite.
    """

    higher_is_better = None
    full_state_update = False

    inside: Tensor
    count: Tensor
    covered: Tensor

    def __init__(self, real: Tensor, k: int = NEAREST) -> None:
        super().__init__()
        if k < 1 or len(real) <= k:
            raise InputError(f"k = {k} with {len(real)} real rows; k is 1 or more and below real")
        _check_finite(real)
        self.real, self.k = real.double(), k
        self._radii: Tensor | None = None  # taken at the first batch: they cost as much as judging it
        self.add_state("inside", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("covered", torch.zeros(len(real), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, generated: Tensor) -> None:
        """Take features (G, D); InputError where they are not finite."""
        _check_finite(generated)
        if len(generated) == 0:
            return
        generated, inside, radii = generated.double(), torch.zeros(len(generated), dtype=torch.bool), self._balls()
        for begin in range(0, len(self.real), CHUNK):
            part = slice(begin, begin + CHUNK)
            hits = torch.cdist(self.real[part], generated) <= radii[part]
            self.covered[part] |= hits.any(dim=1).long()
            inside |= hits.any(dim=0)
        self.inside += inside.sum()
        self.count += len(generated)

    def compute(self) -> dict[str, float]:
        """Return "precision" and "coverage", 0 to 1, with 95 % Wilson intervals as `_low` and `_high`.

        Raises:
            InputError: no generated rows.
        """
        if self.count == 0:
            raise InputError("no generated rows for precision and coverage")
        precision = with_interval("precision", int(self.inside), int(self.count))
        coverage = with_interval("coverage", int(self.covered.sum()), len(self.covered))
        return {name: value / 100 for name, value in {**precision, **coverage}.items()}

    def _balls(self) -> Tensor:
        """Return the radius of each real row's ball, (R, 1); the nearest real row is the row itself, at distance 0."""
        if self._radii is None:
            chunks = (torch.cdist(rows, self.real) for rows in self.real.split(CHUNK))
            self._radii = torch.cat([each.kthvalue(self.k + 1, dim=1, keepdim=True).values for each in chunks])
        return self._radii


class Nearness(PrecisionCoverage):
    """Precision and coverage in the plain judge's and the ensemble's features side by side, at equal spread.

    A judge that classifies noise as a class puts noise among its images: near has to be near for the other networks too.

    Args:
        reference: features of real images.
        forget: the forgotten labels.
    """

    def __init__(self, reference: Reference, forget: tuple[int, ...]) -> None:
        spaces = reference.of(forget), reference.rejecting_of(forget)
        units = [real.double().var(0).sum().sqrt().clamp(min=1e-12) for real in spaces]
        super().__init__(torch.cat([real.double() / unit for real, unit in zip(spaces, units, strict=True)], dim=1))
        self.units = units

    def update(self, images: JudgedImages) -> None:  # type: ignore[override]  # both networks' features
        """Take images of the forgotten classes."""
        spaces = zip((images.features, images.reject_features), self.units, strict=True)
        super().update(torch.cat([each.double() / unit for each, unit in spaces], dim=1))


class Panel(PanelMetric):
    """Precision and coverage of the main sampler's images of the forgotten classes."""

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        self.near = Nearness(setting.reference, setting.forget)

    def update(self, images: JudgedImages) -> None:
        if images.draw == MAIN:
            self.near.update(images.of(self.setting.forget))

    def compute(self) -> dict[str, float]:
        return {keys.FORGET + name: value for name, value in self.near.compute().items()}


def precision_coverage(real: Tensor, generated: Tensor, k: int = NEAREST) -> dict[str, float]:
    """Return PrecisionCoverage of all generated features at once, (G, D), against real ones, (R, D)."""
    metric = of_this_process(PrecisionCoverage(real, k))
    metric.update(generated)
    return metric.compute()


def _check_finite(features: Tensor) -> None:
    if not features.isfinite().all():
        raise InputError("features for precision and coverage are not all finite")
