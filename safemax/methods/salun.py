"""SalUn: random labelling or gradient ascent that moves only the weights most salient to the forget class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from safemax.data.batches import Batch, Rows
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import predict
from safemax.knobs import knob
from safemax.methods.gradient_ascent import ascent_loss
from safemax.methods.random_label import anchors, drawn, imitation_loss
from safemax.training import gradients
from safemax.training.method import Method, Terms


def largest(values: Tensor, share: float) -> Tensor:
    """Return where the int(share N) largest of N values lie, at least one, bool (N,); of equal ones the first."""
    count = max(1, int(share * len(values)))
    threshold = values.kthvalue(len(values) - count + 1).values
    chosen = values > threshold
    ties = torch.nonzero(values == threshold).flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


@dataclass
class SalUn(Method):
    """Saliency unlearning (Fan et al., ICLR 2024).

    Saliency is |sum over batches of the gradient of the forget rows' denoising loss, each clipped to norm 1|, ranked
    over all weights together; the top `mask_ratio` may move. The gradient is clipped, then masked, so a masked weight
    stays bit for bit what it was; weight decay would move it, and the trainer refuses that.

    Units: the official forget loss is a mean over pixels, its retain loss a sum over an image's 3 * 32 * 32 values,
    so the official alpha of 1e-3 is 1e-3 * 3072 = 3.072 here. Its gradient ascent sums over pixels in both terms: alpha
    stays 1e-3 there (preset `paper_gradient_ascent`; the common factor of 3072 matters to the clip alone).

    The official code drops labels on forget rows and, apart, on their targets, which trains the null label towards the
    anchor, leaves dropout on in the target, and masks by the guided prediction at g = 3; the presets do so. By default
    none of it: the mask differentiates the plain loss, which is what is descended later.
    """

    paper: ClassVar[str] = "Fan et al., arXiv:2310.12508"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {"mask_guidance_scale": 3.0, "forget_null_drop": 0.1, "target_dropout": True},
        "paper_gradient_ascent": {
            "variant": "gradient_ascent",
            "alpha": 1e-3,
            "cap": 1e6,
            "mask_guidance_scale": 3.0,
            "forget_null_drop": 0.1,
        },
    }

    variant: str = knob("random_label", "forget loss under the mask", choices=("random_label", "gradient_ascent"))
    alpha: float = knob(
        3.072,
        "weight of the retain loss, mean over pixels (official: 1e-3 x 3072)",
        bounds=(0, 1e6),
        search=(0.3, 30),
        log=True,
    )
    anchor: str = knob(
        "next",
        "random_label: class that is imitated, the next or one drawn for every row (official: next)",
        choices=("next", "random"),
    )
    target_dropout: bool = knob(False, "random_label: leave dropout on in the target (official: true)")
    cap: float = knob(
        1.0, "gradient_ascent: loss of a row beyond which it is left alone (official: none)", bounds=(0, 1e6)
    )
    mask_ratio: float = knob(0.5, "share of the weights that may move", bounds=(0, 1), search=(0.1, 0.9))
    mask_batches: int = knob(
        40, "forget batches in the saliency (40 x 128 rows: one pass over 5,000)", bounds=(1, 1_000_000)
    )
    mask_guidance_scale: float = knob(
        1.0, "guidance of the prediction whose loss is differentiated (official: 3)", bounds=(-20, 20)
    )
    forget_null_drop: float = knob(
        0.0, "share of forget rows and targets given the null label (official: 0.1)", bounds=(0, 1)
    )
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1))

    def validate(self, model: Diffusion) -> None:
        """Label drop and guidance need a null label."""
        if self.forget_null_drop or self.retain_null_drop or self.mask_guidance_scale != 1:
            model.null(torch.zeros(1, dtype=torch.int64))

    def prepare(self, model: Diffusion, batches: Callable[[int], Batch]) -> None:
        """Rank the weights by saliency and keep the mask."""
        model.eval()
        self._anchors = anchors(model, batches, self.anchor)
        total = [torch.zeros_like(p) for p in model.parameters()]
        for step in range(self.mask_batches):
            torch._foreach_add_(total, self._gradient(model, batches(step).forget))
        self._mask = largest(torch.cat([g.flatten() for g in total]).abs_(), self.mask_ratio)

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows, then forget; one graph at a time."""
        retain = model.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)
        yield {"retain": self.alpha * retain}
        yield {"forget": self._forget_loss(model, batch.forget)}

    def constrain(self, model: Diffusion) -> None:
        """Zero the gradient of every weight that the mask leaves out."""
        weights = list(model.parameters())
        for p, keep in zip(weights, self._mask.split([p.numel() for p in weights]), strict=True):
            p.grad.mul_(keep.view_as(p))  # type: ignore[union-attr]  # every weight has a gradient

    def prior(self) -> dict[str, object]:
        """Mask and anchors follow their own knobs."""
        return {name: getattr(self, name) for name in ("anchor", "mask_ratio", "mask_batches", "mask_guidance_scale")}

    def state(self) -> dict[str, Tensor]:
        """Eight weights of the mask in a byte: 4.8 MB for 38.6 million, where the official file of int64 takes 309."""
        bits = torch.from_numpy(np.packbits(self._mask.cpu().numpy()))
        return {"mask": bits, "size": torch.tensor(len(self._mask)), "anchors": self._anchors}

    def load_state(self, state: dict[str, Tensor]) -> None:
        bits = np.unpackbits(state["mask"].cpu().numpy(), count=int(state["size"]))
        self._mask = torch.from_numpy(bits).bool().to(state["mask"].device)
        self._anchors = state["anchors"]

    def _forget_loss(self, model: Diffusion, rows: Rows) -> Tensor:
        if self.variant == "gradient_ascent":
            return ascent_loss(model, rows, cap=self.cap, null_drop=self.forget_null_drop)
        anchor = drawn(self._anchors, rows.c)
        return imitation_loss(model, rows, anchor, null_drop=self.forget_null_drop, target_dropout=self.target_dropout)

    def _gradient(self, model: Diffusion, rows: Rows) -> list[Tensor]:
        """Return the gradient of the loss summed over pixels, clipped to norm 1."""
        eps, t = torch.randn_like(rows.x0), model.times(len(rows))
        eps_pred = predict(model, model.diffuse(rows.x0, t, eps), t, rows.c, self.mask_guidance_scale)
        loss = (eps_pred - eps).square().sum((1, 2, 3)).mean()
        gradient = gradients.of(loss, list(model.parameters()))
        norm = torch.stack(torch._foreach_norm(gradient)).norm()
        return [g / norm.clamp_min(1) for g in gradient]
