"""KID against loops, closed forms and torchmetrics."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from safemax.errors import InputError
from safemax.metrics.kid import KernelDistance, kid, mmd2, normalised


def features(n: int, d: int = 8, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_mmd2_is_the_unbiased_double_sum_over_pairs():
    x, y = features(7, seed=1), features(5, seed=2, shift=0.5)

    def kernel(a: Tensor, b: Tensor) -> float:
        return (sum(float(u) * float(v) for u, v in zip(a, b, strict=True)) / 8 + 1) ** 3

    within_x = sum(kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    within_y = sum(kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / (5 * 4)
    across = sum(kernel(a, b) for a in x for b in y) / 35
    assert mmd2(x, y) == pytest.approx(within_x + within_y - 2 * across, abs=1e-10)


def test_two_points_have_the_closed_form():
    # all x at 0, all y at 1 in one dimension: 1 + 2^3 - 2 * 1
    assert mmd2(torch.zeros(4, 1), torch.ones(3, 1)) == pytest.approx(7, abs=1e-12)


def test_mmd2_agrees_with_torchmetrics_on_the_whole_set():
    class Flat(nn.Module):
        num_features = 12

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).double() / 255

    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (60, 3, 2, 2), generator=generator, dtype=torch.uint8)
    fake = torch.randint(80, 200, (60, 3, 2, 2), generator=generator, dtype=torch.uint8)
    # a subset of all rows is the whole set in another order
    theirs = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=60)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = mmd2(real.flatten(1).double() / 255, fake.flatten(1).double() / 255)
    assert ours == pytest.approx(theirs.compute()[0].item(), rel=1e-4)


def test_kid_of_batches_in_any_order_and_from_two_sources_is_that_of_all_rows():
    x, y = features(60, seed=1), features(50, seed=2, shift=0.3)
    metric, rows = KernelDistance(real=y[:20], subsets=5), torch.arange(60)
    for part in (slice(33, 60), slice(0, 33)):
        metric.update(x[part], rows=rows[part])
    metric.update(y[20:], real=True)
    assert tuple(each.item() for each in metric.compute()) == kid(x, y, subsets=5)


def test_kid_estimates_the_mmd_of_the_whole_set():
    x, y = features(200, seed=1), features(150, seed=2, shift=0.3)
    value, error = kid(x, y)
    assert value == pytest.approx(mmd2(x, y), abs=error)


def test_kid_of_one_law_is_zero_within_its_error():
    value, error = kid(features(300, seed=3), features(300, seed=4))
    assert abs(value) < 3 * error


@pytest.mark.parametrize("real", [80, 800])
def test_the_standard_error_is_the_spread_over_new_samples_however_many_the_real_ones_are(real: int):
    values, errors = zip(
        *(kid(features(80, seed=2 * i), features(real, seed=2 * i + 1, shift=0.5), subsets=40) for i in range(60)),
        strict=True,
    )
    # 60 draws know a deviation to about 9 %
    assert statistics.mean(errors) == pytest.approx(statistics.stdev(values), rel=0.25)


def test_the_standard_error_does_not_depend_on_the_subset_size():
    x, y = features(400, seed=1), features(400, seed=2, shift=0.5)
    half, quarter = kid(x, y, subset_size=200)[1], kid(x, y, subset_size=100)[1]
    # 100 subsets know each spread to about 7 %
    assert quarter == pytest.approx(half, rel=0.35)


def test_kid_is_a_function_of_its_seed():
    x, y = features(50, seed=1), features(50, seed=2)
    assert kid(x, y, seed=1) == kid(x, y, seed=1)
    assert kid(x, y, seed=1) != kid(x, y, seed=2)


@pytest.mark.parametrize("bad", [torch.zeros(3, 8), torch.full((9, 8), float("nan"))])
def test_too_few_or_nan_features_are_refused(bad):
    with pytest.raises(InputError, match="KID needs 4"):
        kid(bad, features(9))


def test_normalised_is_0_at_a_real_split_1_at_noise_and_not_clipped():
    assert normalised(0.1, real_split=0.1, noise=2.1) == 0
    assert normalised(2.1, real_split=0.1, noise=2.1) == 1
    assert normalised(3.1, real_split=0.1, noise=2.1) == pytest.approx(1.5)


def test_normalising_between_equal_references_is_refused():
    with pytest.raises(InputError, match="must differ"):
        normalised(1.0, real_split=2.0, noise=2.0)
