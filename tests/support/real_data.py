"""Real digits and judges trained on them, once for all tests that need them; seconds, not minutes, hence a little weaker."""

from __future__ import annotations

import os
import tempfile
from functools import cache

import pytest
import torch
from torch import Tensor

from safemax.data.dataset import Dataset
from safemax.data.sources import load
from safemax.evaluation.samples import Samples
from safemax.judges.config import JudgeConfig
from safemax.judges.load import Judges
from safemax.judges.load import judges as judges_of
from safemax.judges.reference import Reference
from safemax.judges.reference import reference as reference_of

FEW = 5  # images of each class under the second sampler


@cache
def digits() -> Dataset:
    return load("digits")


@cache
def judges() -> Judges:
    """Return a plain judge and two that reject, 98 % or more right on test images."""
    with pytest.MonkeyPatch.context() as patch:
        _in_cache(patch)
        return judges_of(digits(), JudgeConfig(judge_steps=200, reject_judges=2), progress=False)


@cache
def reference() -> Reference:
    with pytest.MonkeyPatch.context() as patch:
        _in_cache(patch)
        return reference_of(digits(), judges())


def noise_attractor() -> int:
    """Return the class that the plain judge classifies pure noise as most often."""
    return max(range(10), key=lambda k: judges().noise_attractor((k,)))


def samples(forget: int, images: Tensor) -> Samples:
    """Return what a model would draw that answers the forgotten label with these images (N, 1, 8, 8) uint8, and every other
    label with real test images; the second sampler draws the same."""
    split = digits().test
    retained = split.labels != forget
    drawn = torch.cat([images, split.images[retained]])
    labels = torch.cat([torch.full((len(images),), forget), split.labels[retained]])
    return Samples(drawn, labels, drawn, labels)


def real(k: int) -> Tensor:
    """Return the real test images of a class, uint8."""
    return digits().test.images[digits().test.labels == k]


def _in_cache(patch: pytest.MonkeyPatch) -> None:
    if "SAFEMAX_CACHE" not in os.environ:
        patch.setenv("SAFEMAX_CACHE", f"{tempfile.gettempdir()}/safemax-tests-{os.getuid()}-{os.getpid()}")
