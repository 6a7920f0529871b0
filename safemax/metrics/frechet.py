"""The Frechet distance between two sets of features, which is FID where the features are Inception's (Heusel et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from safemax import metric_keys as keys
from safemax.errors import InputError
from safemax.judges.inception import extract
from safemax.metrics.intervals import standard_error
from safemax.metrics.measurement import Measurement, MetricInfo

METRICS = {
    keys.FID_INCEPTION: MetricInfo(
        "FID: Frechet distance to the real retained images in Inception's features", "", "lower"
    )
}


def measure(given: Measurement) -> dict[str, float]:
    """Return the standard FID, where the judges come with its network.

    It is taken against all real training images of the retained classes, as the paper takes it against its 45,000.
    """
    network = given.judges.inception
    if network is None:
        return {}
    real = [each for k, each in enumerate(given.reference.inception) if k not in given.forget]
    fid = distance_to(torch.cat(real))
    features = extract(network, given.main.images[~given.is_forget], what="Inception on samples")
    return {keys.FID_INCEPTION: fid(features), keys.FID_INCEPTION + keys.SE: standard_error(fid, features)}


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean, (D,), and covariance with n - 1, (D, D), of features (N, D), in float64.

    Raises:
        InputError: fewer than two rows, or features that are not finite.
    """
    if len(features) < 2 or not features.isfinite().all():
        raise InputError(f"features of shape {tuple(features.shape)} need two rows or more, all finite")
    features = features.double()
    return features.mean(dim=0), torch.cov(features.T).reshape(features.shape[1], -1)


def frechet_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> float:
    """Return |mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), 0 or more, in squared units of the features.

    Lower is better. With statistics of few samples it is biased upwards (arXiv:1911.07023): compare equal counts only. The trace
    of the root is that of (sigma1^(1/2) sigma2 sigma1^(1/2))^(1/2), whose argument is symmetric, so that eigh serves and
    covariances without full rank do no harm; scipy's sqrtm of the product can turn complex there.

    Args:
        mu1: mean of the first set, (D,).
        sigma1: its covariance, (D, D).
        mu2: mean of the second.
        sigma2: its covariance.
    """
    mu1, sigma1, mu2, sigma2 = (each.double() for each in (mu1, sigma1, mu2, sigma2))
    root = _root(sigma1)
    overlap = torch.linalg.eigvalsh(root @ sigma2 @ root).clamp(min=0).sqrt().sum()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * overlap
    return max(0.0, distance.item())


def distance_to(real: Tensor) -> Callable[[Tensor], float]:
    """Return the Frechet distance to real features (N, D) as a function of others (M, D): the real root is taken once.

    Of few rows the trace is the sum of the singular values of their deviations times that root, M of them instead of D:
    for 900 rows of Inception's 2,048 features half of the work.
    """
    mu, sigma = statistics(real)
    root = _root(sigma)

    def distance(features: Tensor) -> float:
        other, spread = statistics(features)
        if len(features) >= len(mu):
            overlap = torch.linalg.eigvalsh(root @ spread @ root).clamp(min=0).sqrt().sum()
        else:
            deviations = (features.double() - other) / (len(features) - 1) ** 0.5
            overlap = torch.linalg.svdvals(deviations @ root).sum()
        return max(0.0, ((mu - other).square().sum() + sigma.trace() + spread.trace() - 2 * overlap).item())

    return distance


def _root(sigma: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(sigma)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
