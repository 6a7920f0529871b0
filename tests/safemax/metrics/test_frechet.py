"""The Frechet distance against closed forms, scipy and torchmetrics."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from safemax.errors import InputError
from safemax.judges.inception import Moments
from safemax.metrics.frechet import FrechetDistance, frechet_distance


def features(n: int, d: int, seed: int, *, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + shift


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    return Moments.of(x).statistics()


def distance(x: Tensor, y: Tensor) -> float:
    return frechet_distance(*statistics(x), *statistics(y))


def test_statistics_are_mean_and_sample_covariance():
    # rows (0, 0), (2, 4): mean (1, 2), deviations -+(1, 2), covariance 2 (1, 2)^T (1, 2) / (2 - 1)
    mu, sigma = statistics(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    assert mu.tolist() == [1, 2]
    assert sigma.tolist() == [[2, 4], [4, 8]]


def test_equal_sets_are_at_no_distance():
    x = features(200, 16, 0)
    assert distance(x, x) == pytest.approx(0, abs=1e-9)


def test_a_shift_costs_its_square():
    x = features(200, 16, 0)
    # 16 coordinates, each moved by 3
    assert distance(x, x + 3) == pytest.approx(16 * 9, rel=1e-9)


def test_diagonal_covariances_have_the_closed_form():
    # sum of (sqrt(a) - sqrt(b))^2: (1 - 2)^2 + (2 - 3)^2 + (5 - 0)^2
    zero = torch.zeros(3)
    first, second = torch.diag(torch.tensor([1.0, 4.0, 25.0])), torch.diag(torch.tensor([4.0, 9.0, 0.0]))
    assert frechet_distance(zero, first, zero, second) == pytest.approx(27, abs=1e-12)


def test_the_distance_agrees_with_scipys_matrix_root():
    x, y = features(300, 24, 1), features(400, 24, 2, scale=2, shift=0.5)
    (mu1, sigma1), (mu2, sigma2) = statistics(x), statistics(y)
    root = scipy.linalg.sqrtm((sigma1 @ sigma2).numpy())
    expected = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * root.trace().real
    assert distance(x, y) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("rows", [10, 23, 24, 300])
def test_the_distance_to_fixed_features_is_the_same_with_fewer_rows_than_features_and_with_more(rows):
    real, other = features(200, 24, 1), features(rows, 24, 2, scale=2, shift=0.5)
    # the root of an eigenvalue that is 0 up to 1e-16 is one up to 1e-8: only the eigenvalues of the covariance carry it
    metric = FrechetDistance(24, Moments.of(real))
    metric.update(other)
    assert metric.compute()["fid"].item() == pytest.approx(distance(real, other), rel=1e-7)


def test_the_standard_error_is_that_of_leaving_out_every_tenth_row():
    real, other = features(200, 8, 1), features(57, 8, 2, scale=2, shift=0.5)
    metric = FrechetDistance(8, Moments.of(real))
    metric.update(other)
    group = torch.arange(57) % 10
    left_out = torch.tensor([distance(real, other[group != g]) for g in range(10)], dtype=torch.float64)
    assert metric.compute()["se"].item() == pytest.approx((9 * left_out.var(correction=0)).sqrt().item(), rel=1e-9)


def test_batches_of_both_sides_in_any_order_give_the_same_distance():
    real, other = features(90, 8, 1), features(57, 8, 2, scale=2)
    whole, streamed = FrechetDistance(8, Moments.of(real)), FrechetDistance(8, Moments.of(real[:30]))
    whole.update(other)
    rows = torch.arange(57)
    for part in (slice(40, 57), slice(0, 40)):
        streamed.update(other[part], rows=rows[part])
    streamed.update(real[30:], real=True)
    expected, found = whole.compute(), streamed.compute()
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-10
    )


def test_the_distance_agrees_with_torchmetrics():
    class Flat(nn.Module):
        num_features = 12

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).float()

    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (200, 3, 2, 2), generator=generator, dtype=torch.uint8)
    fake = torch.randint(50, 200, (150, 3, 2, 2), generator=generator, dtype=torch.uint8)
    theirs, ours = FrechetInceptionDistance(feature=Flat()), FrechetDistance(Flat())
    for metric in (theirs, ours):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    # torchmetrics returns float32
    assert ours.compute()["fid"].item() == pytest.approx(theirs.compute().item(), rel=1e-5)


def test_fewer_samples_than_features_are_no_trouble():
    # x spans 9 directions of 64, z the same turned into 9 others: orthogonal, so that the root vanishes and traces add up
    x = torch.zeros(10, 64, dtype=torch.float64)
    x[:, :10] = features(10, 10, 0)
    z = x.roll(20, dims=1)
    expected = 2 * statistics(x)[1].trace() + (statistics(x)[0] - statistics(z)[0]).square().sum()
    assert distance(x, z) == pytest.approx(expected.item(), rel=1e-6)
    assert distance(x, x) == pytest.approx(0, abs=1e-6)


def test_features_without_spread_are_at_the_distance_of_their_means():
    # constant frames: both covariances are zero
    assert distance(torch.zeros(5, 4), torch.ones(5, 4)) == 4


@pytest.mark.parametrize("bad", [torch.zeros(1, 4), torch.full((5, 4), float("inf"))])
def test_too_few_or_infinite_features_are_refused(bad):
    metric = FrechetDistance(4, Moments.of(features(9, 4, 0)))
    with pytest.raises(InputError, match="all finite"):
        metric.forward(bad)
