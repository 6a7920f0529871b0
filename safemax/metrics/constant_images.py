"""Images of one colour, which are neither noise nor a picture."""

from __future__ import annotations

import torch
from torch import Tensor

from safemax import metric_keys as keys
from safemax.data.batches import to_float
from safemax.errors import InputError
from safemax.metrics.measurement import Measurement, MetricInfo

METRICS = {keys.CONSTANT: MetricInfo("samples that are one colour all over", "%", "lower")}

# Of pixels in [-1, 1]: five levels of 255. The flattest of 10,000 CIFAR-10 test images has 0.079, uniform noise 0.577.
FLAT = 0.04


def measure(given: Measurement) -> dict[str, float]:
    """Return the share among the main sampler's images of the forgotten classes."""
    return {keys.CONSTANT: constant_share(to_float(given.forgotten.images))}


def constant_share(images: Tensor) -> float:
    """Return the share of images whose pixels deviate by less than FLAT within the image, in percent; lower is better.

    Args:
        images: (N, C, H, W) in [-1, 1], N at least 1. Each channel is taken about its own mean: one colour is constant.

    Raises:
        InputError: no images.
    """
    if len(images) == 0:
        raise InputError(f"images of shape {tuple(images.shape)} are none")
    spread = images.double().flatten(2).var(dim=2, correction=0).mean(dim=1).sqrt()
    return 100 * torch.lt(spread, FLAT).double().mean().item()
