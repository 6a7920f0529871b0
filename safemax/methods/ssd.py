"""Selective synaptic dampening: shrink the weights that matter much more to the forget class than to all data."""

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
from safemax.method_tools import gradients
from safemax.method_tools.gradients import Gradient
from safemax.training.method import Method, Terms


def dampening(forget: Tensor, whole: Tensor, alpha: float, lmbda: float) -> Tensor:
    """Return the factor of each weight: min(1, lambda I_D / I_f) where I_f > alpha I_D, else 1.

    Args:
        forget: I_f, importance for the forget class, at least 0, any shape.
        whole: I_D, importance for all data, in the shape of I_f.
        alpha: how much larger I_f must be.
        lmbda: strength; a smaller value shrinks more.
    """
    factor = (lmbda * whole / forget).clamp_max(1)
    return torch.where(forget > alpha * whole, factor, torch.ones_like(factor))


@dataclass
class SSD(Method):
    """Selective synaptic dampening (Foster et al., AAAI 2024) on the denoising loss, all of it before step 0.

    Importance is the mean over batches of the squared batch gradient, as in the official code. A denoiser's gradient
    varies strongly with t and eps, so each batch's gradient is averaged over several draws of them. A batch of all data
    contains the forget class's share of forget rows, as if the classes were balanced, so that the noise of so few rows
    enters I_D too. Training steps, 0 by default, repair the retained classes by fine-tuning; the source has none.
    """

    paper: ClassVar[str] = "Foster et al., arXiv:2308.07707"
    may_train: ClassVar[tuple[str, ...]] = WITHOUT_ADAPTERS
    training: ClassVar[dict[str, object]] = {"steps": 0, "batch_size": 256}

    alpha: float = knob(
        10.0,
        "least ratio of importances, forget class to all data, of a dampened weight (source: 10)",
        bounds=(0, 1e9),
        search=(1, 100),
        log=True,
    )
    lmbda: float = knob(
        1.0,
        "dampening strength; a smaller value shrinks more (source: 1)",
        bounds=(0, 1e9),
        search=(0.01, 10),
        log=True,
    )
    importance_batches: int = knob(
        40, "batches squared and averaged (40 x 128 rows: one pass over 5,000)", bounds=(1, 1_000_000)
    )
    importance_draws: int = knob(
        4, "draws of t and eps that a batch's gradient is averaged over", bounds=(1, 1_000_000)
    )

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Measure both importances and dampen the weights in place."""
        diffusion.eval()
        forget, whole = self.importances(diffusion, batches)
        with torch.no_grad():
            for p, i_f, i_d in zip(diffusion.parameters(), forget, whole, strict=True):
                p.mul_(dampening(i_f, i_d, self.alpha, self.lmbda))

    def importances(self, diffusion: Diffusion, batches: Batches) -> tuple[Gradient, Gradient]:
        """Return I_f and I_D of every weight, up to a common factor; each batch has n forget rows, or n rows of all data."""
        weights = list(diffusion.parameters())
        forget, whole = ([torch.zeros_like(p) for p in weights] for _ in range(2))
        share, every = len(batches.forget_classes) / diffusion.num_classes, batches.whole()
        for step in range(self.importance_batches):
            batch = every(step)
            n = min(len(batch.forget), len(batch.retain))
            own = max(1, round(share * n))
            shared, rest = self._gradient(diffusion, batch.forget[:own]), self._gradient(diffusion, batch.forget[own:n])
            others = self._gradient(diffusion, batch.retain[: n - own])
            for total, added in ((forget, rest), (whole, others)):
                gradient = torch._foreach_lerp(added, shared, own / n)
                torch._foreach_addcmul_(total, gradient, gradient)
        return forget, whole

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows."""
        yield {"retain": diffusion.denoising_loss(batch.retain.x0, batch.retain.c)}

    def _gradient(self, diffusion: Diffusion, rows: Rows) -> Gradient:
        total = [torch.zeros_like(p) for p in diffusion.parameters()]  # a sum: a mean's factor cancels in I_D / I_f
        for _ in range(self.importance_draws):
            if len(rows):
                torch._foreach_add_(total, gradients.of_rows(diffusion, rows, _loss))
        return total


def _loss(diffusion: Diffusion, rows: Rows) -> Tensor:
    return diffusion.denoising_loss(rows.x0, rows.c)
