"""The Frechet distance between two sets of features, which is FID where the features are Inception's (Heusel et al. 2017)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from safemax import metric_keys as keys
from safemax.errors import InputError
from safemax.judges.inception import Moments, extract
from safemax.metrics.features import GivenFeatures
from safemax.metrics.intervals import GROUPS, jackknife_error
from safemax.metrics.measurement import MAIN, JudgedImages, MetricInfo, PanelMetric, PanelSetting

METRICS = {
    keys.FID_INCEPTION: MetricInfo(
        "FID: Frechet distance to the real retained images in Inception's features", "", "lower"
    )
}


class FrechetDistance(FrechetInceptionDistance):
    """The distance of what is drawn to what is real, in squared units of the features; lower is better.

    Beyond torchmetrics' it has a standard error, takes the root of a symmetric matrix in float64, so that covariances without
    full rank do no harm, and accepts known moments of the real side. It holds sums, no rows. With few samples it is biased
    upwards (arXiv:1911.07023): compare equal counts only.

    Args:
        feature: network from images to features, such as JudgeFeatures; its width, where features are given instead.
        real: moments of the real side that are known already; `update(..., real=True)` adds to them.
        groups: of the jackknife behind the standard error, each with sums of its own; 1 has none.
    """

    fake_features_sum: Tensor
    fake_features_cov_sum: Tensor
    fake_features_num_samples: Tensor

    def __init__(self, feature: int | nn.Module, real: Moments | None = None, *, groups: int = GROUPS) -> None:
        network = GivenFeatures(feature) if isinstance(feature, int) else feature
        super().__init__(network, reset_real_features=True)
        self.known, self.groups = real, groups
        width = self.real_features_sum.shape[0]
        zero = torch.zeros(groups, width, width, dtype=torch.float64)
        self.add_state("fake_features_sum", zero[:, 0].clone(), dist_reduce_fx="sum")
        self.add_state("fake_features_cov_sum", zero, dist_reduce_fx="sum")
        self.add_state("fake_features_num_samples", torch.zeros(groups, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, imgs: Tensor, real: bool = False, rows: Tensor | None = None) -> None:
        """Take a batch.

        Args:
            imgs: what the network takes: images (N, C, H, W) uint8, or features (N, D).
            real: whether they are real.
            rows: the place of each drawn image among all, (N,), which decides its group; None continues where the last
                batch ended.

        Raises:
            InputError: features that are not finite.
        """
        features = self.inception(imgs)
        if not features.isfinite().all():
            raise InputError(f"features of shape {tuple(features.shape)} are not all finite")
        if real:
            part = Moments.of(features)
            self.real_features_num_samples += part.count
            self.real_features_sum += part.total
            self.real_features_cov_sum += part.outer
            return
        if rows is None:
            begin = int(self.fake_features_num_samples.sum())
            rows = torch.arange(begin, begin + len(features), device=features.device)
        for group in range(self.groups):
            self._add(group, features[rows.to(features.device) % self.groups == group])

    def _add(self, group: int, features: Tensor) -> None:
        part = Moments.of(features)
        self.fake_features_num_samples[group] += part.count
        self.fake_features_sum[group] += part.total
        self.fake_features_cov_sum[group] += part.outer

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]  # with its error
        """Return `fid`, and its standard error `se` where there are groups; float64 scalars.

        Raises:
            InputError: fewer than two rows of either side.
        """
        drawn = Moments(
            int(self.fake_features_num_samples.sum()), self.fake_features_sum.sum(0), self.fake_features_cov_sum.sum(0)
        )
        target = _Target(self._real().to(drawn.total.device))
        value = target.distance(drawn)
        if self.groups == 1:
            return {"fid": torch.tensor(value, dtype=torch.float64)}
        left_out = [target.distance(drawn - part) for part in self._parts()]
        values = {"fid": value, "se": jackknife_error(left_out)}
        return {name: torch.tensor(each, dtype=torch.float64) for name, each in values.items()}

    def _real(self) -> Moments:
        streamed = Moments(int(self.real_features_num_samples), self.real_features_sum, self.real_features_cov_sum)
        return streamed if self.known is None else self.known.to(streamed.total.device) + streamed

    def _parts(self) -> list[Moments]:
        counts = self.fake_features_num_samples.tolist()
        sums = zip(counts, self.fake_features_sum, self.fake_features_cov_sum, strict=True)
        return [Moments(*each) for each in sums if each[0]]

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the distance; returns figure and axes."""
        return self._plot({"fid": self.compute()["fid"]} if val is None else val, ax)


class _Target:
    """The real side, whose root is taken once."""

    def __init__(self, real: Moments) -> None:
        self.mu, self.sigma = real.statistics()

    @cached_property
    def root(self) -> Tensor:
        values, vectors = torch.linalg.eigh(self.sigma)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def distance(self, drawn: Moments) -> float:
        mu, sigma = drawn.statistics()
        # of n rows the covariance has rank n - 1 at most: the other eigenvalues are 0 and their roots rounding errors
        values = torch.linalg.eigvalsh(self.root @ sigma @ self.root)[-(drawn.count - 1) :]
        return _distance(self.mu, self.sigma, mu, sigma, values)


def frechet_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> float:
    """Return |mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), 0 or more, in squared units of the features.

    The trace of the root is that of (sigma1^(1/2) sigma2 sigma1^(1/2))^(1/2), whose argument is symmetric, so that eigh serves;
    scipy's sqrtm of the product can turn complex without full rank.

    Args:
        mu1: mean of the first set, (D,).
        sigma1: its covariance, (D, D).
        mu2: mean of the second.
        sigma2: its covariance.
    """
    mu1, sigma1, mu2, sigma2 = (each.double() for each in (mu1, sigma1, mu2, sigma2))
    values, vectors = torch.linalg.eigh(sigma1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return _distance(mu1, sigma1, mu2, sigma2, torch.linalg.eigvalsh(root @ sigma2 @ root))


def _distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor, eigenvalues: Tensor) -> float:
    overlap = eigenvalues.clamp(min=0).sqrt().sum()
    return max(0.0, ((mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * overlap).item())


class Panel(PanelMetric):
    """The standard FID of the main sampler's images of the retained classes, where the judges come with its network.

    It is taken against all real training images of the retained classes, as the paper takes it against its 45,000.
    """

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        network = setting.judges.inception
        if network is not None:
            real = Moments.sum_of(setting.reference.inception, setting.forget)
            self.fid = FrechetDistance(network.num_features, real)

    def update(self, images: JudgedImages) -> None:
        network, retained = self.setting.judges.inception, images.without(self.setting.forget)
        if network is not None and images.draw == MAIN and len(retained):
            self.fid.update(extract(network, retained.images), rows=retained.rows)

    def compute(self) -> dict[str, float]:
        if self.setting.judges.inception is None:
            return {}
        found = self.fid.compute()
        return {keys.FID_INCEPTION: found["fid"].item(), keys.FID_INCEPTION + keys.SE: found["se"].item()}
