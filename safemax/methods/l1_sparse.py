"""l1-sparse: fine-tune on the retained classes under a fading L1 penalty, so that weights only the forgotten class uses decay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from safemax.data.batches import Batch
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.method_tools import gradients
from safemax.method_tools.sparsity import fading_l1
from safemax.training.method import Method, Terms


@dataclass
class L1Sparse(Method):
    """Sparsity-aware unlearning (Jia et al., NeurIPS 2023): the retain loss plus alpha_k ||theta||_1, alpha_k falling to 0.

    The official code has classifiers only, trained by SGD, and its README leaves alpha to the user; the default here is
    that of MUNBa's official command for a class. Under Adam a weight whose retain gradient is small moves by lr a step
    towards 0, whatever alpha is.
    """

    paper: ClassVar[str] = "Jia et al., arXiv:2304.04934"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "lr": 1e-4, "forget_share": 0.0}
    needs_forget: ClassVar[bool] = False

    alpha: float = knob(
        1e-4, "weight of the L1 norm of all weights in the first step", bounds=(0, 1e3), search=(1e-7, 1e-3), log=True
    )
    null_drop: float = knob(0.1, "share of rows given the null label", bounds=(0, 1), without_null=0)

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows, and shrink every weight."""
        loss = diffusion.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.null_drop)
        penalty = fading_l1(gradients.trained(diffusion), self.alpha, self.steps_done, self.run_steps)
        yield {"retain": loss, "l1": penalty}
