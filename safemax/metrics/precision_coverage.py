"""Whether samples lie where the real images lie: improved precision and coverage, by nearest neighbours in a feature space."""

from __future__ import annotations

import torch
from torch import Tensor

from safemax import metric_keys as keys
from safemax.errors import InputError
from safemax.judges.load import Reference
from safemax.metrics.intervals import wilson
from safemax.metrics.measurement import JudgedImages, Measurement, MetricInfo

METRICS = {
    keys.PRECISION: MetricInfo("samples among the real forgotten class's, for all networks together", "0..1", "lower"),
    keys.COVERAGE: MetricInfo("real images of the forgotten class with a sample among them", "0..1", "lower"),
}

NEAREST = 5  # the neighbour that a real image's ball reaches to
CHUNK = 1024  # rows of a distance matrix held at once


def measure(given: Measurement) -> dict[str, float]:
    """Return precision and coverage of the main sampler's images of the forgotten classes."""
    near = nearness(given.forgotten, given.reference, given.forget)
    return {keys.FORGET + name: value for name, value in near.items()}


def nearness(images: JudgedImages, reference: Reference, forget: tuple[int, ...]) -> dict[str, float]:
    """Return precision and coverage in the plain judge's and the ensemble's features side by side, at equal spread.

    A judge that classifies noise as a class puts noise among its images: near has to be near for the other networks too.

    Args:
        images: of the forgotten classes.
        reference: features of real images.
        forget: the forgotten labels.
    """
    spaces = (
        (reference.of(forget), images.features),
        (reference.rejecting_of(forget), images.reject_features),
    )
    spread = [real.double().var(0).sum().sqrt().clamp(min=1e-12) for real, _ in spaces]
    real = torch.cat([each.double() / unit for (each, _), unit in zip(spaces, spread, strict=True)], dim=1)
    generated = torch.cat([each.double() / unit for (_, each), unit in zip(spaces, spread, strict=True)], dim=1)
    return precision_coverage(real, generated)


def precision_coverage(real: Tensor, generated: Tensor, k: int = NEAREST) -> dict[str, float]:
    """Return precision and coverage of generated features against real ones.

    A real row's ball reaches to its k-th nearest other real row, rim included. Precision is the share of generated rows inside a
    ball or more (Kynkaanniemi et al. 2019, arXiv:1904.06991, equation 1); coverage the share of balls that hold a generated row
    or more (Naeem et al. 2020, arXiv:2002.09797, equation 8). Take features of another network than the judge's.

    Args:
        real: (R, D), more than k rows.
        generated: (G, D).
        k: neighbours; 3 and 5 officially.

    Returns:
        "precision" and "coverage", 0 to 1, with 95 % Wilson intervals as `_low` and `_high`. For the forgotten class lower is
        better, for a retained one higher.

    Raises:
        InputError: too few rows, or features that are not finite.
    """
    if k < 1 or len(real) <= k or len(generated) == 0:
        raise InputError(
            f"k = {k} with {len(real)} real and {len(generated)} generated rows; k is 1 or more and below real"
        )
    if not (real.isfinite().all() and generated.isfinite().all()):
        raise InputError("features for precision and coverage are not all finite")
    real, generated = real.double(), generated.double()
    covered, inside = [], torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    for rows in real.split(CHUNK):
        # the nearest real row is the row itself, at distance 0
        radius = torch.cdist(rows, real).kthvalue(k + 1, dim=1, keepdim=True).values
        hits = torch.cdist(rows, generated) <= radius
        covered.append(hits.any(dim=1))
        inside |= hits.any(dim=0)
    return _share("precision", inside) | _share("coverage", torch.cat(covered))


def _share(name: str, hits: Tensor) -> dict[str, float]:
    low, high = wilson(int(hits.sum()), len(hits))
    return {name: hits.double().mean().item(), f"{name}_low": low / 100, f"{name}_high": high / 100}
