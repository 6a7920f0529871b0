"""Frames without content: images of one colour, which neither noise nor a picture is."""

from __future__ import annotations

import torch
from torch import Tensor

from safemax.errors import InputError

# Of pixels in [-1, 1]: five levels of 255. The flattest of 10,000 CIFAR-10 test images has 0.079, uniform noise 0.577.
FLAT = 0.04


def constant_share(images: Tensor) -> float:
    """Return the share of images whose pixels deviate by less than FLAT within the image, in percent; a fault where high.

    Args:
        images: (N, C, H, W) in [-1, 1], N at least 1. Each channel is taken about its own mean: one colour is constant.

    Raises:
        InputError: no images.
    """
    if len(images) == 0:
        raise InputError(f"images of shape {tuple(images.shape)} are none")
    spread = images.double().flatten(2).var(dim=2, correction=0).mean(dim=1).sqrt()
    return 100 * torch.lt(spread, FLAT).double().mean().item()
