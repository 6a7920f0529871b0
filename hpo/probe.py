"""A quick look at a model half-way through unlearning: what it still knows and what it lost, without sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safemax.data.batches import derive_seed, to_float
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion

_ROWS = 64  # forget rows, and as many retained ones


class Probe:
    """Denoising losses on fixed real images, timesteps and noise.

    Args:
        diffusion: the model to correct, which later ones are compared with.
        dataset: its train split gives the images.
        forget: labels to forget.
        seed: fixes images and noise.
    """

    def __init__(self, diffusion: Diffusion, dataset: Dataset, forget: Sequence[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(derive_seed(seed, 0))
        train, is_forget = dataset.train, torch.isin(dataset.train.labels, torch.tensor(forget))
        rows = torch.cat([_random_rows(is_forget, generator), _random_rows(~is_forget, generator)])
        eps = torch.randn(len(rows), *diffusion.x0_shape, generator=generator)
        # Evenly spread timesteps, from low to high in each half of the rows: losses at a few random ones vary too much.
        t = torch.cat(
            [_spread_timesteps(n, diffusion.T) for n in (int(is_forget[rows].sum()), int((~is_forget[rows]).sum()))]
        )
        x0, self._t = diffusion.encode(to_float(train.images[rows]).to(diffusion.device)), t.to(diffusion.device)
        self._c, self._eps = train.labels[rows].to(diffusion.device), eps.to(diffusion.device)
        self._x_t = diffusion.diffuse(x0, self._t, self._eps)
        self._forget = is_forget[rows].to(diffusion.device)
        self._base_margin, self._base_retain = self._losses(diffusion)

    def __call__(self, diffusion: Diffusion) -> tuple[float, float]:
        """Return knowledge and damage of a model; both are 0 at best.

        Returns:
            knowledge: how much the right label still helps to denoise forget images, as a share of how much it helps the base;
                1 for the base.
            damage: relative rise of the loss on retained classes; 0 for the base.
        """
        margin, retain = self._losses(diffusion)
        knowledge = max(0.0, margin / self._base_margin) if self._base_margin > 0 else 0.0
        return knowledge, max(0.0, retain / self._base_retain - 1)

    @torch.no_grad()
    def _losses(self, diffusion: Diffusion) -> tuple[float, float]:
        was_training = diffusion.training
        diffusion.eval()
        f = self._forget
        other = diffusion.null(self._c[f]) if diffusion.has_null else (self._c[f] + 1) % diffusion.num_classes
        loss = self._errors(diffusion, self._c)
        loss_without_label = (diffusion(self._x_t[f], self._t[f], other) - self._eps[f]).square().mean()
        diffusion.train(was_training)
        return (loss_without_label - loss[f].mean()).item(), loss[~f].mean().item()

    def _errors(self, diffusion: Diffusion, c: Tensor) -> Tensor:
        return (diffusion(self._x_t, self._t, c) - self._eps).square().mean((1, 2, 3))


def _random_rows(mask: Tensor, generator: torch.Generator) -> Tensor:
    rows = torch.nonzero(mask).flatten()
    return rows[torch.randperm(len(rows), generator=generator)[:_ROWS]]


def _spread_timesteps(n: int, steps: int) -> Tensor:
    return ((torch.arange(n) + 0.5) * steps / n).long()
