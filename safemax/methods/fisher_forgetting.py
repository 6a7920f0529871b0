"""Fisher forgetting: add noise to the weights, most where a weight matters least to the retained classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Batches, Rows
from safemax.diffusion.model import Diffusion
from safemax.diffusion.weights import WITHOUT_ADAPTERS
from safemax.knobs import knob
from safemax.method_tools.fisher import diagonal
from safemax.training.method import Method, Terms

EPSILON = 1e-8  # added to a gradient before it is squared, as in the official code


def deviation(fisher: Tensor, alpha: float, cap: float) -> Tensor:
    """Return the standard deviation of each weight's noise, sqrt(alpha / F), at most `cap`, in the shape of F."""
    return (alpha / (fisher + EPSILON**2)).sqrt().clamp_max(cap)


@dataclass
class FisherForgetting(Method):
    """Fisher forgetting (Golatkar et al., CVPR 2020), all of it before step 0: theta + N(0, alpha / F_retain).

    F is the diagonal of the Fisher information of the retain rows, the mean of an image's squared gradient. For a denoiser
    that gradient is the one of the loss summed over pixels and over all steps t, estimated from `fisher_times` of them.
    The official code (Jia et al., unlearn/fisher.py) caps the deviation at 1e-3; weights of the last layer, one row a
    class, get ten times the noise there, which has no counterpart in a denoiser. Noise forgets a class only where it
    destroys weights that the others do not need; training steps, 0 by default, repair by fine-tuning.
    """

    paper: ClassVar[str] = "Golatkar et al., arXiv:1911.04933"
    may_train: ClassVar[tuple[str, ...]] = WITHOUT_ADAPTERS
    training: ClassVar[dict[str, object]] = {"steps": 0, "batch_size": 256}

    alpha: float = knob(
        0.2, "variance of the noise times F (official: 0.2)", bounds=(0, 1e12), search=(1e-3, 1e6), log=True
    )
    cap: float = knob(
        1e-3, "largest standard deviation of the noise (official: 1e-3)", bounds=(0, 10), search=(1e-4, 0.3), log=True
    )
    fisher_images: int = knob(500, "retained images in the Fisher information", bounds=(1, 1_000_000))
    fisher_times: int = knob(32, "steps t of an image in the Fisher information; 0 means all T", bounds=(0, 1000))

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Estimate the Fisher information and add the noise in place."""
        diffusion.eval()
        fisher, _ = diagonal(diffusion, _retained(batches.whole(), self.fisher_images), times=self.fisher_times)
        with torch.no_grad():
            for p, each in zip(diffusion.parameters(), fisher, strict=True):
                p.add_(deviation(each, self.alpha, self.cap) * torch.randn_like(p))

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows."""
        yield {"retain": diffusion.denoising_loss(batch.retain.x0, batch.retain.c)}


def _retained(batches: Batches, count: int) -> Rows:
    """Return the retain rows of successive batches until there are `count`."""
    parts: list[Rows] = []
    while sum(map(len, parts)) < count:
        parts.append(batches(len(parts)).retain)
    return Rows(torch.cat([each.x0 for each in parts]), torch.cat([each.c for each in parts]))[:count]
