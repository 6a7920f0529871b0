"""Restricted gradient: climb on the forget class and descend on the rest, each along what does not harm the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Rows
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.training import gradients
from safemax.training.method import Method, Terms


@dataclass
class RestrictedGradient(Method):
    """Restricted gradient (Ko et al., NeurIPS 2024): a truncated ascent and a descent, projected where they conflict.

    With g_f the gradient of minus the truncated forget loss and g_r that of the retain loss, the step is
    P(g_f) + retain_weight P(g_r), P removing a component along the other (unprojected) gradient where g_f.g_r < 0.

    The official code trains an EDM: the squared error of each pixel of the predicted image is cut at `ceiling` = 0.1.
    The prediction x0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar) turns an error of eps into sqrt((1 - abar) / abar) of
    it, so here the squared error of eps is cut at ceiling abar_t / (1 - abar_t); EDM's own weighting of noise levels is
    left to ours. Both losses are means over pixels; there they are sums, which Adam without a clip does not see. Its
    retain set of 50 images a class, swept in full each step, gives every step diverse classes; retain rows drawn over
    all classes do so here. No clipping, as there (clip 1e6).
    """

    paper: ClassVar[str] = (
        "Ko et al., Boosting Alignment for Post-Unlearning Text-to-Image Generative Models, arXiv:2412.07808"
    )
    per_part: ClassVar[bool] = False
    training: ClassVar[dict[str, object]] = {"steps": 781, "batch_size": 128, "lr": 1e-5, "clip": 1e6}

    ceiling: float = knob(
        0.1,
        "squared error of a pixel of x0 beyond which it is left alone (official: 0.1)",
        bounds=(0, 1e6),
        search=(0.01, 1),
        log=True,
    )
    retain_weight: float = knob(
        5.0, "weight of the projected retain gradient (official: 5)", bounds=(0, 1e6), search=(0.5, 50), log=True
    )
    retain_null_drop: float = knob(
        0.1, "share of retain rows given the null label (official: its model has none)", bounds=(0, 1)
    )

    def validate(self, model: Diffusion) -> None:
        """Dropping labels needs a null label to drop them to."""
        if self.retain_null_drop:
            model.null(torch.zeros(1, dtype=torch.int64))

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Climb on the forget rows where they are still denoised well; denoise the retain rows."""
        yield {"forget": -self._truncated_loss(model, batch.forget)}
        yield {"retain": model.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)}

    def backward(self, groups: Iterable[Terms], model: Diffusion, accumulate: Callable[[Tensor], None]) -> Terms:
        """Project each gradient on the other's orthogonal complement where they conflict, and add them."""
        weights = gradients.trained(model)
        terms, (forget, retain) = gradients.separate(groups, weights, accumulate)
        ascent, descent = gradients.without_conflict(forget, retain), gradients.without_conflict(retain, forget)
        gradients.add(weights, gradients.combine(ascent, descent, 1.0, self.retain_weight))
        return terms

    def _truncated_loss(self, model: Diffusion, rows: Rows) -> Tensor:
        t, eps = model.times(len(rows)), torch.randn_like(rows.x0)
        error = (model(model.diffuse(rows.x0, t, eps), t, rows.c) - eps).square()
        alpha_bar = model.alpha_bar[t].view(-1, 1, 1, 1)
        return torch.minimum(error, self.ceiling * alpha_bar / (1 - alpha_bar)).mean()
