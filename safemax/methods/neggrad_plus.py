"""NegGrad+: gradient descent on the retained classes and ascent on the forgotten one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from safemax.data.batches import Batch
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.methods.gradient_ascent import ascent_loss
from safemax.training.method import Method, Terms


@dataclass
class NegGradPlus(Method):
    """NegGrad+ (Kurmanji et al., NeurIPS 2023): beta L_retain - (1 - beta) L_forget, both means over pixels and batch.

    The source does not bound L_forget and chooses beta so close to 1 (0.95 to 0.9999) that training ends before it
    diverges (preset `paper`); by default a forget row stops counting once the model does no better than eps = 0 on it.
    """

    paper: ClassVar[str] = "Kurmanji et al. (SCRUB), arXiv:2302.09880"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}
    presets: ClassVar[dict[str, dict[str, object]]] = {"paper": {"cap": 1e6}}

    beta: float = knob(
        0.95,
        "weight of the retain loss; the forget loss has 1 - beta (source: 0.95 to 0.9999)",
        bounds=(0, 1),
        search=(0.5, 0.9999),
    )
    cap: float = knob(
        1.0,
        "loss of a forget row beyond which it stops counting; 1 is that of eps = 0",
        bounds=(0, 1e6),
        search=(0.3, 3),
    )
    forget_null_drop: float = knob(0.0, "share of forget rows given the null label", bounds=(0, 1), without_null=0)
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1), without_null=0)

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Descend on the retain rows, then ascend on the forget rows; one graph at a time."""
        retain = diffusion.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)
        yield {"retain": self.beta * retain}
        forget = ascent_loss(diffusion, batch.forget, cap=self.cap, null_drop=self.forget_null_drop)
        yield {"forget": (1 - self.beta) * forget}
