"""Gradient ascent: climb the denoising loss of the forget class."""

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


def ascent_loss(model: Diffusion, rows: Rows, *, cap: float, null_drop: float = 0.0) -> Tensor:
    """Return minus the mean over rows of min(l, cap), l being a row's denoising loss, a mean over pixels.

    Minus a loss has no lower bound: a row beyond the cap gives no gradient. At a cap of 1 a row is left alone once it
    is denoised no better than by predicting eps = 0, whose loss is E eps^2 = 1.
    """
    eps, t = torch.randn_like(rows.x0), model.times(len(rows))
    eps_pred = model(model.diffuse(rows.x0, t, eps), t, model.drop_labels(rows.c, null_drop))
    return -(eps_pred - eps).square().mean((1, 2, 3)).clamp_max(cap).mean()


@dataclass
class GradientAscent(Method):
    """Gradient ascent on the forget rows alone (NegGrad of Golatkar et al., 2020; Thudi et al., 2022).

    Nothing holds the retained classes, so it takes few steps and only forget rows. The sources have no bound on the
    loss (preset `paper`); the cap of 1 by default stops at ignorance.
    """

    paper: ClassVar[str] = "Thudi et al., arXiv:2109.13398; Golatkar et al., arXiv:1911.04933"
    training: ClassVar[dict[str, object]] = {"steps": 100, "lr": 1e-5, "forget_share": 1.0}
    presets: ClassVar[dict[str, dict[str, object]]] = {"paper": {"cap": 1e6}}
    needs_retain: ClassVar[bool] = False

    cap: float = knob(
        1.0, "loss of a row beyond which it is left alone; 1 is that of eps = 0", bounds=(0, 1e6), search=(0.3, 3)
    )
    forget_null_drop: float = knob(0.0, "share of forget rows given the null label (SalUn: 0.1)", bounds=(0, 1))

    def validate(self, model: Diffusion) -> None:
        """Dropping labels needs a null label to drop them to."""
        if self.forget_null_drop:
            model.null(torch.zeros(1, dtype=torch.int64))

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Climb the forget rows' loss."""
        yield {"forget": ascent_loss(model, batch.forget, cap=self.cap, null_drop=self.forget_null_drop)}
