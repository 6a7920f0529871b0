"""Networks whose features Frechet distance and KID are taken in, in the form that torchmetrics asks for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from safemax.data.batches import to_float
from safemax.judges.classifier import Judge


class GivenFeatures(nn.Module):
    """Takes features for images, where a network has been asked before.

    Args:
        num_features: D.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """Return the features themselves, (N, D)."""
        return features


class JudgeFeatures(nn.Module):
    """A judge's features of images (N, C, H, W) uint8."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge.eval()
        side = torch.zeros(1, *judge.image_shape, device=next(judge.parameters()).device)
        self.num_features = self(side.to(torch.uint8)).shape[1]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features, (N, D) float32."""
        return self.judge.features(to_float(images))
