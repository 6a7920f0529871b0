"""Restricted gradient: ascent on the forget class and descent on the rest, each projected so as not to harm the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Rows
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.method_tools import gradients
from safemax.training.method import Method, Terms


@dataclass
class RestrictedGradient(Method):
    """Restricted gradient (Ko et al., NeurIPS 2024): a truncated ascent and a descent, projected where they conflict.

    With g_f the gradient of minus the truncated forget loss and g_r that of the retain loss, the step is
    P(g_f) + retain_weight P(g_r); where g_f.g_r < 0, P removes the component along the other (unprojected) gradient.

    The official code trains an EDM and cuts the squared error of each pixel of the predicted image at `ceiling` = 0.1.
    With x0 = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar), an error of eps becomes sqrt((1 - alpha_bar) / alpha_bar)
    times that error of x0, so here the squared error of eps is cut at ceiling alpha_bar_t / (1 - alpha_bar_t). EDM's
    weighting of noise levels is not used. Both losses are means over pixels; the official sums differ by a factor that
    Adam without a clip ignores. Its retain set of 50 images a class is used in full in each step, for diverse classes;
    here retain rows are drawn from all classes. Gradients are not clipped, as there (clip 1e6).
    """

    paper: ClassVar[str] = (
        "Ko et al., Boosting Alignment for Post-Unlearning Text-to-Image Generative Models, arXiv:2412.07808"
    )
    per_part: ClassVar[bool] = False
    training: ClassVar[dict[str, object]] = {"steps": 781, "batch_size": 128, "lr": 1e-5, "clip": 1e6}

    ceiling: float = knob(
        0.1,
        "squared error of a pixel of x0 beyond which it stops counting (official: 0.1)",
        bounds=(0, 1e6),
        search=(0.01, 1),
        log=True,
    )
    retain_weight: float = knob(
        5.0, "weight of the projected retain gradient (official: 5)", bounds=(0, 1e6), search=(0.5, 50), log=True
    )
    retain_null_drop: float = knob(
        0.1, "share of retain rows given the null label (official: its model has none)", bounds=(0, 1), without_null=0
    )

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Ascend on forget pixels that are still denoised well; denoise the retain rows."""
        yield {"forget": -self._truncated_loss(diffusion, batch.forget)}
        yield {"retain": diffusion.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)}

    def backward(self, groups: Iterable[Terms], diffusion: Diffusion, accumulate: Callable[[Tensor], None]) -> Terms:
        """Add the two gradients, each projected on the other's orthogonal complement if they conflict."""
        weights = gradients.trained(diffusion)
        terms, (forget, retain) = gradients.separate(groups, weights, accumulate)
        ascent, descent = gradients.without_conflict(forget, retain), gradients.without_conflict(retain, forget)
        gradients.add(weights, gradients.combine(ascent, descent, 1.0, self.retain_weight))
        return terms

    def _truncated_loss(self, diffusion: Diffusion, rows: Rows) -> Tensor:
        t, eps = diffusion.times(len(rows)), torch.randn_like(rows.x0)
        error = (diffusion(diffusion.diffuse(rows.x0, t, eps), t, rows.c) - eps).square()
        alpha_bar = diffusion.alpha_bar[t].view(-1, 1, 1, 1)
        return torch.minimum(error, self.ceiling * alpha_bar / (1 - alpha_bar)).mean()
