"""SalUn: random labelling or gradient ascent that moves only the weights most salient to the forget class."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Batches, Rows
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import predict
from safemax.knobs import knob
from safemax.method_tools import gradients
from safemax.method_tools.mask import Mask
from safemax.methods.gradient_ascent import ascent_loss
from safemax.methods.random_label import anchors, draw_anchors, imitation_loss
from safemax.training.method import Method, Terms


def largest(values: Tensor, share: float) -> Tensor:
    """Return which of N values are among the int(share N) largest, at least one, (N,) bool; of equal values the first."""
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
    over all weights together; the top `mask_ratio` may move. The gradient is clipped, then masked, so masked weights
    keep their exact bits; weight decay would move them, so the trainer rejects it.

    Units: the official forget loss is a mean over pixels, its retain loss a sum over an image's 3 * 32 * 32 values,
    so the official alpha of 1e-3 is 1e-3 * 3072 = 3.072 here; under `pixel_sum` (preset `paper`) alpha multiplies that sum
    and is 1e-3 at every size. Its gradient ascent sums over pixels in both terms: alpha
    stays 1e-3 there (preset `paper_gradient_ascent`; the common factor of 3072 matters to the clip alone).

    The presets follow the official code in three points: it drops labels on forget rows and, independently, on their
    targets, which trains the null label towards the anchor; it keeps dropout active in the target; and it computes the
    mask from the guided prediction at g = 3. The defaults do none of this: the mask differentiates the plain loss, which
    is the loss of the unlearning steps.
    """

    paper: ClassVar[str] = "Fan et al., arXiv:2310.12508"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {
            "alpha": 1e-3,
            "pixel_sum": True,
            "mask_guidance_scale": 3.0,
            "forget_null_drop": 0.1,
            "target_dropout": True,
        },
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
    pixel_sum: bool = knob(
        False, "alpha multiplies the loss summed over an image's values, not its mean (official: true)", added=True
    )
    anchor: str = knob(
        "next",
        "random_label: class whose prediction is the target, the next or one drawn for every row (official: next)",
        choices=("next", "random"),
    )
    target_dropout: bool = knob(False, "random_label: keep dropout active in the target (official: true)")
    cap: float = knob(
        1.0, "gradient_ascent: loss of a row beyond which it stops counting (official: none)", bounds=(0, 1e6)
    )
    mask_ratio: float = knob(0.5, "share of the weights that may move", bounds=(0, 1), search=(0.1, 0.9))
    mask_batches: int = knob(
        40, "forget batches in the saliency (40 x 128 rows: one pass over 5,000)", bounds=(1, 1_000_000)
    )
    mask_guidance_scale: float = knob(
        1.0, "guidance of the prediction whose loss is differentiated (official: 3)", bounds=(-20, 20), without_null=1
    )
    forget_null_drop: float = knob(
        0.0, "share of forget rows and targets given the null label (official: 0.1)", bounds=(0, 1), without_null=0
    )
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1), without_null=0)

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Rank the weights by saliency and make the mask."""
        diffusion.eval()
        self._anchors = anchors(diffusion, batches, self.anchor)
        total = [torch.zeros_like(p) for p in diffusion.parameters()]
        whole = batches.whole()
        for step in range(self.mask_batches):
            torch._foreach_add_(total, self._gradient(diffusion, whole(step).forget))
        self._mask = Mask(largest(torch.cat([g.flatten() for g in total]).abs_(), self.mask_ratio))

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows, then forget; one graph at a time."""
        retain = diffusion.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)
        scale = math.prod(diffusion.x0_shape) if self.pixel_sum else 1
        yield {"retain": self.alpha * scale * retain}
        yield {"forget": self._forget_loss(diffusion, batch.forget)}

    def constrain(self, diffusion: Diffusion) -> None:
        """Zero the gradient of every weight that the mask leaves out."""
        self._mask.zero_gradients(list(diffusion.parameters()))

    def prior(self) -> dict[str, object]:
        """Return the knobs of mask and anchors."""
        return {name: getattr(self, name) for name in ("anchor", "mask_ratio", "mask_batches", "mask_guidance_scale")}

    def state(self) -> dict[str, Tensor]:
        """Pack the mask into bits: 4.8 MB for 38.6 million weights, where the official file of int64 has 309 MB."""
        return {**self._mask.state(), "anchors": self._anchors}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._mask = Mask.from_state(state)
        self._anchors = state["anchors"]

    def _forget_loss(self, diffusion: Diffusion, rows: Rows) -> Tensor:
        if self.variant == "gradient_ascent":
            return ascent_loss(diffusion, rows, cap=self.cap, null_drop=self.forget_null_drop)
        anchor = draw_anchors(self._anchors, rows.c)
        return imitation_loss(
            diffusion, rows, anchor, null_drop=self.forget_null_drop, target_dropout=self.target_dropout
        )

    def _gradient(self, diffusion: Diffusion, rows: Rows) -> list[Tensor]:
        """Return the gradient of the loss summed over pixels, clipped to norm 1."""
        gradient = gradients.of_rows(diffusion, rows, self._guided_loss)
        norm = torch.stack(torch._foreach_norm(gradient)).norm()
        return list(torch._foreach_div(gradient, norm.clamp_min(1)))

    def _guided_loss(self, diffusion: Diffusion, rows: Rows) -> Tensor:
        eps, t = diffusion.noise_like(rows.x0), diffusion.times(len(rows))
        eps_pred = predict(diffusion, diffusion.diffuse(rows.x0, t, eps), t, rows.c, self.mask_guidance_scale)
        return (eps_pred - eps).square().sum((1, 2, 3)).mean()
