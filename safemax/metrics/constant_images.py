"""Images of one colour, which are neither noise nor a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from safemax import metric_keys as keys
from safemax.data.batches import to_float
from safemax.errors import InputError
from safemax.metrics.measurement import MAIN, JudgedImages, MetricInfo, PanelMetric, PanelSetting

METRICS = {keys.CONSTANT: MetricInfo("samples that are one colour all over", "%", "lower")}

# Of pixels in [-1, 1]: five levels of 255. The flattest of 10,000 CIFAR-10 test images has 0.079, uniform noise 0.577.
FLAT = 0.04


class ConstantShare(Metric):
    """The share of images whose pixels deviate by less than FLAT within the image, in percent; lower is better."""

    higher_is_better = False
    full_state_update = False

    constant: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("constant", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        """Take images (N, C, H, W) in [-1, 1]; each channel is taken about its own mean: one colour is constant."""
        if len(images) == 0:
            return
        spread = images.double().flatten(2).var(dim=2, correction=0).mean(dim=1).sqrt()
        self.constant += torch.lt(spread, FLAT).sum()
        self.count += len(images)

    def compute(self) -> Tensor:
        """Return the share, a float64 scalar; InputError where there were no images."""
        if self.count == 0:
            raise InputError("no images")
        return 100 * self.constant.double() / self.count


class Panel(PanelMetric):
    """The share among the main sampler's images of the forgotten classes."""

    def __init__(self, setting: PanelSetting) -> None:
        super().__init__(setting)
        self.share = ConstantShare()

    def update(self, images: JudgedImages) -> None:
        if images.draw == MAIN:
            self.share.update(to_float(images.of(self.setting.forget).images))

    def compute(self) -> dict[str, float]:
        return {keys.CONSTANT: self.share.compute().item()}
