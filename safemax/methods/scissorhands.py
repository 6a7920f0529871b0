"""Scissorhands: re-initialise the weights most connected to the forget class, then repair the retained classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from safemax.data.batches import Batch, Batches, Rows
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import predict
from safemax.diffusion.weights import WITHOUT_ADAPTERS
from safemax.knobs import knob
from safemax.method_tools import gradients
from safemax.methods.gradient_ascent import ascent_loss
from safemax.training.method import Method, Terms


def connected(saliency: list[Tensor], share: float) -> list[Tensor]:
    """Return which weights have the ceil(share N) largest of all N saliencies, as bool tensors; none for a share of 0."""
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
    `trim` of weights with the largest |gradient x weight| is re-initialised (truncated normal of deviation 0.02, biases
    0, gains of normalisation 1). Repair: minimise L_retain - lambda L_forget, as the official code for diffusion does.
    The paper's gradient projection, which that code has for classifiers only, is not implemented here.

    All losses are means over pixels, as there. That code ranks all weights but re-initialises only those of two
    self-attention blocks of Stable Diffusion, at g = 8.5, and stops after 79 steps of lr 2e-5, because nothing bounds
    -L_forget. Here all top-ranked weights are re-initialised, at the g = 3 of the DDPM family, and a forget row beyond
    `cap` stops counting (preset `paper`: no cap). The repair clips gradients to norm 1; the official code does not.
    """

    paper: ClassVar[str] = "Wu and Harandi, arXiv:2401.06187"
    may_train: ClassVar[tuple[str, ...]] = WITHOUT_ADAPTERS
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}
    presets: ClassVar[dict[str, dict[str, object]]] = {"paper": {"cap": 1e6}}

    trim: float = knob(
        0.001,
        "share of the weights that are re-initialised (official: 0.001 for a class)",
        bounds=(0, 1),
        search=(1e-4, 0.05),
        log=True,
    )
    trim_batches: int = knob(10, "forget batches in the saliency (official: 10)", bounds=(1, 1_000_000))
    trim_guidance_scale: float = knob(
        3.0, "guidance of the prediction that is differentiated; 1 is unguided", bounds=(-20, 20), without_null=1
    )
    lmbda: float = knob(
        0.1,
        "weight of the forget loss, which is maximised (official: 0.1)",
        bounds=(0, 1e6),
        search=(0.01, 1),
        log=True,
    )
    cap: float = knob(
        1.0,
        "loss of a forget row beyond which it stops counting; 1 is that of eps = 0",
        bounds=(0, 1e6),
        search=(0.3, 3),
    )
    forget_null_drop: float = knob(0.0, "share of forget rows given the null label", bounds=(0, 1), without_null=0)
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1), without_null=0)

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Re-initialise the trimmed weights in place."""
        diffusion.eval()
        weights, whole = list(diffusion.parameters()), batches.whole()
        total = [torch.zeros_like(w) for w in weights]
        for step in range(self.trim_batches):
            gradient = gradients.of_rows(diffusion, whole(step).forget, self._guided_loss)
            torch._foreach_add_(total, torch._foreach_abs(gradient))
        saliency = [(g * w.detach()).abs() for g, w in zip(total, weights, strict=True)]
        for (name, weight), cut in zip(diffusion.named_parameters(), connected(saliency, self.trim), strict=True):
            weight.data = torch.where(cut, _fresh(name, weight), weight.detach())

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Descend on the retain rows, then ascend on the forget rows; one graph at a time."""
        yield {"retain": diffusion.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)}
        forget = ascent_loss(diffusion, batch.forget, cap=self.cap, null_drop=self.forget_null_drop)
        yield {"forget": self.lmbda * forget}

    def _guided_loss(self, diffusion: Diffusion, rows: Rows) -> Tensor:
        t, eps = diffusion.times(len(rows)), diffusion.noise_like(rows.x0)
        eps_pred = predict(diffusion, diffusion.diffuse(rows.x0, t, eps), t, rows.c, self.trim_guidance_scale)
        return (eps_pred - eps).square().mean()


def _fresh(name: str, weight: Parameter) -> Tensor:
    if weight.ndim > 1:
        return torch.nn.init.trunc_normal_(torch.empty_like(weight), std=0.02)
    return torch.ones_like(weight) if name.endswith("weight") else torch.zeros_like(weight)
