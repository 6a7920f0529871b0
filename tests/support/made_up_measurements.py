"""A measurement of made-up features and answers, whose numbers do not depend on a trained network."""

from __future__ import annotations

import torch
from torch import Tensor

from safemax.judges.classifier import Judge, noise_histogram
from safemax.judges.load import Judges
from safemax.judges.reference import Reference
from safemax.metrics.measurement import GOLD, MAIN, SECOND, JudgedImages, PanelSetting

NAMES = ("a", "b", "c", "d", "e")
FORGET = (1,)
MAIN_LABELS = torch.tensor([0] * 23 + [1] * 57 + [2] * 22 + [3] * 21 + [4] * 25)
SECOND_LABELS = torch.tensor([0] * 2 + [1] * 31 + [2] * 2 + [3] * 2 + [4] * 2)


def judges() -> Judges:
    """Return untrained judges."""
    torch.manual_seed(0)
    plain = Judge("small", NAMES, (1, 8, 8))
    reject = Judge("small", NAMES, (1, 8, 8), reject=True)
    about = {"plain": {"noise": noise_histogram(plain, 50)}, "reject": {"noise": noise_histogram(reject, 50)}}
    return Judges(plain, reject, about, "made up")


def reference() -> Reference:
    """Return 40 made-up real rows of each class."""
    labels = torch.arange(5).repeat_interleave(40)
    return Reference(features(labels, 1), labels, features(labels, 2, 24))


def features(labels: Tensor, seed: int, width: int = 64) -> Tensor:
    """Return a cloud for each label, of unequal spread in its directions, so that every statistic has something to measure."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, width, generator=torch.Generator().manual_seed(width)) / 4
    spread = torch.linspace(0.2, 2, width)
    return centres[labels] + spread * torch.randn(len(labels), width, generator=generator)


def judged(labels: Tensor, seed: int, draw: str = MAIN) -> JudgedImages:
    """Return images of a draw, as judges might have answered."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(labels), 1, 8, 8), generator=generator).to(torch.uint8)
    images[::7] = images[::7] // 200
    right = torch.nn.functional.one_hot(labels, 6)
    reject = (2 * torch.randn(len(labels), 6, generator=generator) + 2 * right).softmax(1)
    plain = (2 * torch.randn(len(labels), 5, generator=generator) + 2 * right[:, :5]).softmax(1)
    near, rejecting = features(labels, seed + 10), features(labels, seed + 20, 24)
    is_forget = labels == FORGET[0]
    rows = torch.where(is_forget, is_forget.cumsum(0), (~is_forget).cumsum(0)) - 1
    return JudgedImages(images, labels, plain, reject, near, rejecting, rows, draw)


def draws() -> list[JudgedImages]:
    """Return the main sampler's images, the second's and the gold model's."""
    return [judged(MAIN_LABELS, 3), judged(SECOND_LABELS, 4, SECOND), judged(MAIN_LABELS, 5, GOLD)]


def setting() -> PanelSetting:
    """Return what is known before them."""
    return PanelSetting(judges(), reference(), FORGET)
