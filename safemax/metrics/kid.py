"""Kernel Inception Distance (Binkowski et al. 2018, arXiv:1801.01401): unbiased in the number of samples, where FID is not."""

from __future__ import annotations

import math
import statistics
import warnings

import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from safemax import metric_keys as keys
from safemax.errors import InputError
from safemax.judges.reference import noise_features
from safemax.metrics.features import GivenFeatures, rows_of
from safemax.metrics.measurement import MAIN, JudgedImages, MetricInfo, PanelMetric, PanelSetting

METRICS = {
    keys.KID: MetricInfo("KID of the samples to the real forgotten class", "squared MMD", "higher"),
    keys.KID_REAL: MetricInfo("the same KID between two halves of the real class", "squared MMD", ""),
    keys.KID_NOISE: MetricInfo("the same KID of pure noise", "squared MMD", ""),
    keys.KID_NORMALISED: MetricInfo("KID from a real split (0) to noise (1); another class may exceed 1", "", "higher"),
}
FEWEST = 4  # two subsets of two: an unbiased estimate needs two rows of each side, the jackknife half of the rows


class KernelDistance(KernelInceptionDistance):
    """The squared maximum mean discrepancy of what is drawn to what is real, by random subsets; lower is closer.

    Beyond torchmetrics' it has a standard error instead of the subsets' spread, draws the subsets by a seed of its own, and
    accepts known features of the real side. It holds the features of every row: the subsets are drawn at the end.

    Args:
        feature: network from images to features, such as JudgeFeatures; None where features are given instead.
        real: features of the real side that are known already, (M, D); `update(..., real=True)` adds to them.
        subsets: how many are drawn, 2 or more; 100 officially.
        subset_size: rows of each, at most half of the smaller set are taken; 1,000 officially.
        seed: of the draw.
    """

    real_rows: list[Tensor]
    fake_rows: list[Tensor]

    def __init__(
        self,
        feature: nn.Module | None = None,
        real: Tensor | None = None,
        *,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 0,
    ) -> None:
        with warnings.catch_warnings():  # that it holds all features is said above
            warnings.simplefilter("ignore")
            super().__init__(GivenFeatures(0) if feature is None else feature, subsets, subset_size)
        self.known, self.seed = real, seed
        for side in ("real", "fake"):
            self.add_state(f"{side}_features", [], dist_reduce_fx="cat")
            self.add_state(f"{side}_rows", [], dist_reduce_fx="cat")

    def update(self, imgs: Tensor, real: bool = False, rows: Tensor | None = None) -> None:
        """Take a batch.

        Args:
            imgs: what the network takes: images (N, C, H, W) uint8, or features (N, D).
            real: whether they are real.
            rows: the place of each image among all of its side, (N,); None continues where the last batch ended.
        """
        super().update(imgs, real)
        places = self.real_rows if real else self.fake_rows
        begin = sum(map(len, places))
        places.append(torch.arange(begin, begin + len(imgs)) if rows is None else rows)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return KID and its standard error, float64 scalars; InputError as of `kid`."""
        real = [
            each for each in (self.known, rows_of(self.real_features, self.real_rows)) if each is not None and len(each)
        ]
        drawn = rows_of(self.fake_features, self.fake_rows)
        value, error = kid(
            drawn,
            torch.cat(real) if real else drawn[:0],
            subsets=self.subsets,
            subset_size=self.subset_size,
            seed=self.seed,
        )
        return torch.tensor(value, dtype=torch.float64), torch.tensor(error, dtype=torch.float64)


class Panel(PanelMetric):
    """How far the main sampler's images of the forgotten classes are from the real ones, in the plain judge's features."""

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        self.distance = KernelDistance(real=setting.reference.of(setting.forget))

    def update(self, images: JudgedImages) -> None:
        if images.draw == MAIN:
            forgotten = images.of(self.setting.forget)
            self.distance.update(forgotten.features, rows=forgotten.rows)

    def compute(self) -> dict[str, float]:
        value, error = (each.item() for each in self.distance.compute())
        real = self.setting.reference.of(self.setting.forget)
        split, noise = kid(real[::2], real[1::2])[0], kid(noise_features(self.setting.judges), real)[0]
        return {
            keys.KID: value,
            keys.KID + keys.SE: error,
            keys.KID_REAL: split,
            keys.KID_NOISE: noise,
            keys.KID_NORMALISED: normalised(value, split, noise),
            keys.KID_NORMALISED + keys.SE: error / abs(noise - split),
        }


def mmd2(x: Tensor, y: Tensor) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy, kernel (x.y / D + 1)^3; 0 expected for equal laws.

    Args:
        x: features, (N, D), two rows or more.
        y: features, (M, D), the same.

    Returns:
        Lower is closer; an unbiased estimate of 0 is negative half of the time.
    """
    x, y = x.double(), y.double()
    return _within(x) + _within(y) - 2 * _kernel(x, y).mean().item()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: Tensor) -> float:
    n, kernel = len(x), _kernel(x, x)
    return ((kernel.sum() - kernel.trace()) / (n * (n - 1))).item()


def kid(x: Tensor, y: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Return KID, the mean of mmd2 over random subsets, and its standard error.

    The subsets overlap, so their spread over sqrt(subsets) would say nothing about new samples. With m of n rows a subset, the
    delete-a-group jackknife scales the spread by sqrt(m / (n - m)); of each side apart, the other's subset fixed, since the
    sides differ in n.

    Args:
        x: features, (N, D), four rows or more.
        y: features, (M, D), the same.
        subsets: how many are drawn, 2 or more; 100 officially.
        subset_size: rows of each, at most half of the smaller set; 1,000 officially.
        seed: of the draw.

    Returns:
        (kid, standard error), lower is closer; 0 for equal laws, see mmd2.

    Raises:
        InputError: fewer rows, or features that are not finite.
    """
    if min(len(x), len(y)) < FEWEST or not (x.isfinite().all() and y.isfinite().all()):
        raise InputError(f"features of {len(x)} and {len(y)} rows; KID needs {FEWEST} or more of each, all finite")
    m = min(subset_size, min(len(x), len(y)) // 2)
    generator = torch.Generator().manual_seed(seed)
    draws = [mmd2(_subset(x, m, generator), _subset(y, m, generator)) for _ in range(subsets)]
    fixed_x, fixed_y, few = _subset(x, m, generator), _subset(y, m, generator), max(2, subsets // 2)
    of_x = [mmd2(_subset(x, m, generator), fixed_y) for _ in range(few)]
    of_y = [mmd2(fixed_x, _subset(y, m, generator)) for _ in range(few)]
    sides = ((of_x, len(x)), (of_y, len(y)))
    return statistics.mean(draws), math.sqrt(sum(statistics.variance(each) * m / (n - m) for each, n in sides))


def _subset(x: Tensor, m: int, generator: torch.Generator) -> Tensor:
    return x[torch.randperm(len(x), generator=generator)[:m].to(x.device)]


def normalised(value: float, real_split: float, noise: float) -> float:
    """Place a KID to the forgotten class between that of a real split of it (0) and that of noise (1); higher is better forgetting.

    Not clipped: a substituted class can lie farther than noise.

    Raises:
        InputError: the two references are equal.
    """
    if noise == real_split:
        raise InputError(f"KID of a real split and of noise are both {noise:g}; they must differ to normalise")
    return (value - real_split) / (noise - real_split)
