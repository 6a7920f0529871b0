"""Too few images of a class are refused before the work, at the count where the metrics would refuse them after it."""

from __future__ import annotations

import pytest
import torch

from safemax.data.dataset import Dataset, Split
from safemax.errors import InputError
from safemax.evaluation.enough_images import check_enough_images
from safemax.metrics.kid import kid
from safemax.metrics.precision_coverage import precision_coverage


def data(*counts: int) -> Dataset:
    """Return data with so many images of the classes a, b, c."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    split = Split(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), labels)
    return Dataset.of("few", split, split, "abc"[: len(counts)])


@pytest.mark.parametrize(("counts", "forget"), [((6, 4, 4), (0,)), ((3, 3, 4), (0, 1))])
def test_as_many_as_the_metrics_need_are_enough(counts: tuple[int, ...], forget: tuple[int, ...]) -> None:
    check_enough_images(data(*counts), forget)


@pytest.mark.parametrize(
    ("counts", "forget", "words"),
    [
        ((6, 3, 4), (0,), "KID needs 4 of each: b has 3"),
        ((6, 3, 0), (0,), "b has 3, c has 0"),
        ((5, 4, 4), (0,), "forget = a has 5, of which precision needs 6"),
        ((3, 2, 4), (0, 1), "forget = a, b has 5"),
    ],
)
def test_too_few_are_named_with_their_counts(counts: tuple[int, ...], forget: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match="data = few has too few training images") as refused:
        check_enough_images(data(*counts), forget)
    assert words in str(refused.value)


def test_the_limits_are_those_of_the_metrics() -> None:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    kid(rows[:4], rows)
    precision_coverage(rows, rows)
    for call in (lambda: kid(rows[:3], rows), lambda: precision_coverage(rows[:5], rows)):
        with pytest.raises(InputError):
            call()
