"""MSGM: turn the noise predicted for forget rows orthogonal to the true noise, and denoise the rest as before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Rows
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.training.method import Method, Terms


def moderation_loss(diffusion: Diffusion, rows: Rows) -> Tensor:
    """Return the mean over pixels and batch of (eps(x_t, t, c) eps)^2; 0 where the two have no pixel in common."""
    t, eps = diffusion.times(len(rows)), torch.randn_like(rows.x0)
    return (diffusion(diffusion.diffuse(rows.x0, t, eps), t, rows.c) * eps).square().mean()


@dataclass
class MSGM(Method):
    """Moderated score-based generative model (Jiang et al., ICCV 2025), orthogonal variant: score and noise do not align.

    The official forget term is the mean of (score x std x noise)^2; the score is -eps(x_t) / std, so it is the mean of
    (eps(x_t) x eps)^2 here. It has the weight 0.01 beside 0.99 of the retain term and enters every fourth step only. The
    official model has no labels; here forget rows keep theirs. Its obtuse variant, which minimises the product itself,
    has no lower bound and is left out. Both losses are means over pixels, as in the official configuration for the DDPM,
    which trains from random weights (660,000 steps) or fine-tunes at lr 2e-4, whose steps it does not state.
    """

    paper: ClassVar[str] = "Jiang et al., arXiv:2412.07229"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 2e-4}

    forget_weight: float = knob(
        0.01,
        "weight of the forget term; the retain loss has 1 minus it (official: 0.01)",
        bounds=(0, 1),
        search=(1e-3, 0.9),
        log=True,
    )
    forget_every: int = knob(4, "steps from one with a forget term to the next (official: 4)", bounds=(1, 1000))
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1), without_null=0)

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows, then, every few steps, moderate the forget rows; one graph at a time."""
        retain = diffusion.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)
        yield {"retain": (1 - self.forget_weight) * retain}
        if self.steps_done % self.forget_every == 0:
            yield {"forget": self.forget_weight * moderation_loss(diffusion, batch.forget)}
