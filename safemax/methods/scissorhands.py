"""Scissorhands: re-initialise the weights most tied to the forget class, then repair what the rest lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from safemax.data.batches import Batch, Rows
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import predict
from safemax.knobs import knob
from safemax.methods.gradient_ascent import ascent_loss
from safemax.training import gradients
from safemax.training.method import Method, Terms


def connected(saliency: list[Tensor], share: float) -> list[Tensor]:
    """Return where the largest ceil(share N) of N saliencies over all weights lie, as bool tensors; 0 takes none."""
    flat = torch.cat([each.flatten() for each in saliency])
    count = math.ceil(share * len(flat))
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(count).indices] = True
    parts = chosen.split([each.numel() for each in saliency])
    return [part.view_as(each) for part, each in zip(parts, saliency, strict=True)]


@dataclass
class Scissorhands(Method):
    """Scissorhands (Wu and Harandi, ECCV 2024): trim by connection sensitivity, then repair in the penalty form.

    Trim: |gradient| of the guided prediction's loss is summed over a few forget batches, without dropout; the share
    `trim` of weights with the largest |gradient x weight| is drawn anew (truncated normal of deviation 0.02, biases 0,
    gains of normalisation 1). Repair: descend L_retain - lambda L_forget, as the official code for diffusion does. The
    paper's gradient projection, which that code has for classifiers alone, is not here.

    All losses are means over pixels, as there. That code ranks all weights but draws anew only those of two
    self-attention blocks of Stable Diffusion, at g = 8.5, and stops after 79 steps of lr 2e-5, since nothing bounds
    -L_forget; here all that rank are drawn anew at the g = 3 of the DDPM family, and a forget row beyond `cap` is left
    alone (preset `paper`: none). The trainer's clip of 1 holds in the repair, where the official code has none.
    """

    paper: ClassVar[str] = "Wu and Harandi, arXiv:2401.06187"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}
    presets: ClassVar[dict[str, dict[str, object]]] = {"paper": {"cap": 1e6}}

    trim: float = knob(
        0.001,
        "share of the weights that is drawn anew (official: 0.001 for a class)",
        bounds=(0, 1),
        search=(1e-4, 0.05),
        log=True,
    )
    trim_batches: int = knob(10, "forget batches in the saliency (official: 10)", bounds=(1, 1_000_000))
    trim_guidance_scale: float = knob(
        3.0, "guidance of the prediction that is differentiated; 1 is unguided", bounds=(-20, 20)
    )
    lmbda: float = knob(
        0.1, "weight of the forget loss that is climbed (official: 0.1)", bounds=(0, 1e6), search=(0.01, 1), log=True
    )
    cap: float = knob(
        1.0,
        "loss of a forget row beyond which it is left alone; 1 is that of eps = 0",
        bounds=(0, 1e6),
        search=(0.3, 3),
    )
    forget_null_drop: float = knob(0.0, "share of forget rows given the null label", bounds=(0, 1))
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1))

    def validate(self, model: Diffusion) -> None:
        """Label drop and guidance need a null label."""
        if self.forget_null_drop or self.retain_null_drop or self.trim_guidance_scale != 1:
            model.null(torch.zeros(1, dtype=torch.int64))

    def prepare(self, model: Diffusion, batches: Callable[[int], Batch]) -> None:
        """Trim the weights in place."""
        model.eval()
        weights = list(model.parameters())
        total = [torch.zeros_like(w) for w in weights]
        for step in range(self.trim_batches):
            found = gradients.of(self._guided_loss(model, batches(step).forget), weights)
            torch._foreach_add_(total, torch._foreach_abs(found))
        saliency = [(g * w.detach()).abs() for g, w in zip(total, weights, strict=True)]
        for (name, weight), cut in zip(model.named_parameters(), connected(saliency, self.trim), strict=True):
            weight.data = torch.where(cut, _fresh(name, weight), weight.detach())

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """OptimizerStep on the retain rows, climb on the forget rows; one graph at a time."""
        yield {"retain": model.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)}
        forget = ascent_loss(model, batch.forget, cap=self.cap, null_drop=self.forget_null_drop)
        yield {"forget": self.lmbda * forget}

    def _guided_loss(self, model: Diffusion, rows: Rows) -> Tensor:
        t, eps = model.times(len(rows)), torch.randn_like(rows.x0)
        eps_pred = predict(model, model.diffuse(rows.x0, t, eps), t, rows.c, self.trim_guidance_scale)
        return (eps_pred - eps).square().mean()


def _fresh(name: str, weight: Parameter) -> Tensor:
    if weight.ndim > 1:
        return torch.nn.init.trunc_normal_(torch.empty_like(weight), std=0.02)
    return torch.ones_like(weight) if name.endswith("weight") else torch.zeros_like(weight)
