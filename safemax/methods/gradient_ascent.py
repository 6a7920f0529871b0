"""Gradient ascent: maximise the denoising loss of the forget class."""

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


def ascent_loss(diffusion: Diffusion, rows: Rows, *, cap: float, null_drop: float = 0.0) -> Tensor:
    """Return minus the mean over rows of min(l, cap), where l is a row's denoising loss, a mean over pixels.

    Minus a loss has no lower bound, so rows beyond the cap give no gradient. With a cap of 1 a row stops counting once
    the model does no better on it than the prediction eps = 0, whose loss is E eps^2 = 1.

    Args:
        diffusion: the model.
        rows: images and labels to forget.
        cap: largest loss of a row that still counts.
        null_drop: share of rows given the null label.
    """
    eps, t = torch.randn_like(rows.x0), diffusion.times(len(rows))
    eps_pred = diffusion(diffusion.diffuse(rows.x0, t, eps), t, diffusion.drop_labels(rows.c, null_drop))
    return -(eps_pred - eps).square().mean((1, 2, 3)).clamp_max(cap).mean()


@dataclass
class GradientAscent(Method):
    """Gradient ascent on forget rows only (NegGrad of Golatkar et al., 2020; Thudi et al., 2022).

    Nothing protects the retained classes, so it takes few steps. The sources do not bound the loss (preset `paper`); the
    default cap of 1 stops where the model knows nothing about a row.
    """

    paper: ClassVar[str] = "Thudi et al., arXiv:2109.13398; Golatkar et al., arXiv:1911.04933"
    training: ClassVar[dict[str, object]] = {"steps": 100, "lr": 1e-5, "forget_share": 1.0}
    presets: ClassVar[dict[str, dict[str, object]]] = {"paper": {"cap": 1e6}}
    needs_retain: ClassVar[bool] = False

    cap: float = knob(
        1.0, "loss of a row beyond which it stops counting; 1 is that of eps = 0", bounds=(0, 1e6), search=(0.3, 3)
    )
    forget_null_drop: float = knob(
        0.0, "share of forget rows given the null label (SalUn: 0.1)", bounds=(0, 1), without_null=0
    )

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Ascend the loss of the forget rows."""
        yield {"forget": ascent_loss(diffusion, batch.forget, cap=self.cap, null_drop=self.forget_null_drop)}
