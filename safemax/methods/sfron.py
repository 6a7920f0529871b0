"""SFR-on: for every batch a masked, adaptively weighted ascent on the forget rows, then a descent on the retain rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from safemax.data.batches import Batch, Batches, Rows
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import predict
from safemax.knobs import knob
from safemax.method_tools import gradients
from safemax.method_tools.gradients import Gradient
from safemax.method_tools.mask import Mask
from safemax.training.method import Method, OptimizerStep, Terms

EPSILON = 1e-15  # added to both Fisher informations, so that a weight that matters to neither set may move (official)


def adaptive_weights(loss: Tensor, power: float) -> Tensor:
    """Return a weight for each row, (N,), proportional to 1 / (loss^power + 1e-8), with mean 1 and without a graph."""
    weight = 1 / (loss.detach().pow(power) + 1e-8)
    return weight / weight.mean()


@dataclass
class SFRon(Method):
    """SFR-on (Huang et al., NeurIPS 2024): saliency by Fisher ratio, adaptive coefficients, a repair step after each.

    Prior: F is the mean over batches of the squared gradient, each clipped to norm 1, of the guided prediction's loss
    summed over pixels. A weight may move in forget steps if (F_forget + 1e-15) / (F_retain + 1e-15) >= `threshold`. The
    official F uses 40 forget and 352 retain batches of 128. Forget step k: minus the adaptively weighted loss, times a
    coefficient that falls as (1 + cos(pi k / decay_steps)) / 2; its gradient is masked, then clipped. Retain step: the
    ordinary loss, all weights.

    Units: both official losses are sums over the 3 * 32 * 32 values of an image, so the coefficients of 10 and 1 are
    30,720 and 3,072 for our means. With them the clip of 1 is active in nearly every step and leaves little more than the
    gradient's direction. Under `pixel_sum` (preset `paper`) they multiply the sums and are 10 and 1 at every size.

    One Adam takes both steps, as in the official code. In a forget step its moments from earlier retain steps move masked
    weights too, although they have no gradient. Preset `paper` keeps this fault; by default those weights are restored.
    The official label drop of 0.1 on forget rows trains the null label to be wrong on them; only `paper` does so.
    """

    paper: ClassVar[str] = "Huang et al., arXiv:2409.19732"
    per_part: ClassVar[bool] = False
    training: ClassVar[dict[str, object]] = {"steps": 150, "batch_size": 256, "lr": 1e-4}
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {
            "forget_weight": 10.0,
            "retain_weight": 1.0,
            "pixel_sum": True,
            "hold": False,
            "forget_null_drop": 0.1,
        }
    }

    forget_weight: float = knob(
        30_720.0,
        "coefficient of the forget loss at step 0 (official: 10 x 3072)",
        bounds=(0, 1e9),
        search=(1, 1e5),
        log=True,
    )
    retain_weight: float = knob(3072.0, "coefficient of the retain loss (official: 1 x 3072)", bounds=(0, 1e9))
    pixel_sum: bool = knob(
        False, "the two coefficients multiply sums over an image's values, not means (official: true)", added=True
    )
    decay_steps: int = knob(
        0,
        "steps after which the forget coefficient is 0; 0 means all steps of the run (official: all 150)",
        bounds=(0, 10_000_000),
    )
    power: float = knob(0.5, "a row of loss l is weighted by 1 / l^power (official: 0.5)", bounds=(0, 10))
    threshold: float = knob(
        1.0, "least Fisher ratio of the weights that may move in forget steps (official: 1)", bounds=(0, 1e15)
    )
    fisher_batches: int = knob(40, "batches in each Fisher information", bounds=(1, 1_000_000))
    fisher_guidance_scale: float = knob(
        3.0, "guidance of the prediction in F (official: 3); 1 is unguided", bounds=(-20, 20), without_null=1
    )
    hold: bool = knob(True, "restore masked weights after a forget step, since momentum moves them (official: false)")
    forget_null_drop: float = knob(
        0.0, "share of forget rows given the null label (official: 0.1)", bounds=(0, 1), without_null=0
    )
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1), without_null=0)

    _mask: Mask = field(init=False, repr=False, compare=False)
    _forgetting: bool = field(init=False, repr=False, compare=False, default=False)

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Estimate both Fisher informations and make the mask."""
        diffusion.eval()
        steps, whole = range(self.fisher_batches), batches.whole()
        forget = self._fisher(diffusion, (whole(step).forget for step in steps))
        retain = self._fisher(diffusion, (whole(step).retain for step in steps))
        ratio = [(f + EPSILON) / (r + EPSILON) for f, r in zip(forget, retain, strict=True)]
        self._mask = Mask(torch.cat([each.flatten() for each in ratio]) >= self.threshold)

    def step(self, diffusion: Diffusion, batch: Batch, optimizer_step: OptimizerStep) -> Terms:
        """Take a forget step, then a retain step, each with its own backward, clipping and optimizer step."""
        weights = list(diffusion.parameters())
        before = [w.detach().clone() for w in weights] if self.hold else []
        self._forgetting = True
        terms = optimizer_step(self._forget_loss, batch)
        self._forgetting = False
        if self.hold:
            self._mask.restore(weights, before)
        return terms | optimizer_step(self.losses, batch)

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Yield the loss of the retain step."""
        loss = diffusion.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)
        yield {"retain": self.retain_weight * self._scale(diffusion) * loss}

    def backward(self, groups: Iterable[Terms], diffusion: Diffusion, accumulate: Callable[[Tensor], None]) -> Terms:
        """Mask the forget gradient here, because it must be clipped after masking."""
        terms = super().backward(groups, diffusion, accumulate)
        if self._forgetting:
            self._mask.zero_gradients(list(diffusion.parameters()))
        return terms

    def prior(self) -> dict[str, object]:
        """Return the knobs of the mask."""
        return {name: getattr(self, name) for name in ("threshold", "fisher_batches", "fisher_guidance_scale")}

    def state(self) -> dict[str, Tensor]:
        """Return the mask as bits."""
        return self._mask.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._mask = Mask.from_state(state)

    def _scale(self, diffusion: Diffusion) -> int:
        return math.prod(diffusion.x0_shape) if self.pixel_sum else 1

    def _forget_loss(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        rows = batch.forget
        t, eps = diffusion.times(len(rows)), torch.randn_like(rows.x0)
        eps_pred = diffusion(
            diffusion.diffuse(rows.x0, t, eps), t, diffusion.drop_labels(rows.c, self.forget_null_drop)
        )
        loss = (eps_pred - eps).square().mean((1, 2, 3))
        decay = (1 + math.cos(math.pi * min(self.steps_done / (self.decay_steps or self.run_steps), 1))) / 2
        adapted = self._scale(diffusion) * (adaptive_weights(loss, self.power) * loss).mean()
        yield {"forget": -self.forget_weight * decay * adapted}

    def _fisher(self, diffusion: Diffusion, batches: Iterable[Rows]) -> Gradient:
        total = [torch.zeros_like(w) for w in diffusion.parameters()]
        for rows in batches:
            gradient = gradients.of_rows(diffusion, rows, self._guided_loss)
            share = 1 / get_total_norm(gradient).clamp_min(1).square() / self.fisher_batches
            torch._foreach_add_(total, torch._foreach_mul(torch._foreach_mul(gradient, gradient), share))
        return total

    def _guided_loss(self, diffusion: Diffusion, rows: Rows) -> Tensor:
        t, eps = diffusion.times(len(rows)), diffusion.noise_like(rows.x0)
        eps_pred = predict(diffusion, diffusion.diffuse(rows.x0, t, eps), t, rows.c, self.fisher_guidance_scale)
        return (eps_pred - eps).square().sum((1, 2, 3)).mean()
