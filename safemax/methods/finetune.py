"""Fine-tuning on the retained classes only; on all classes, from random weights, it is pretraining."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from safemax.data.batches import Batch
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.training.method import Method, Terms


@dataclass
class Finetune(Method):
    """The ordinary denoising loss on the retain rows: the weakest baseline, and how a base model is trained.

    Equation 2 of the SAFEMax paper, with label drop 0.1 as in the DDPM pretraining of SA and SalUn.
    """

    paper: ClassVar[str] = "Ho et al., arXiv:2006.11239; label drop of Ho and Salimans, arXiv:2207.12598"
    training: ClassVar[dict[str, object]] = {"forget_share": 0.0}
    needs_forget: ClassVar[bool] = False
    noise_by_row: ClassVar[bool] = True

    null_drop: float = knob(
        0.1, "share of rows given the null label, which guidance needs", bounds=(0, 1), without_null=0
    )
    min_snr_gamma: float = knob(
        0.0,
        "gamma of min-SNR weighting of the steps t, 5 in its paper; 0 weights all equally",
        bounds=(0, 1e6),
        added=True,
    )

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows."""
        x0, c = batch.retain.x0, batch.retain.c
        loss = diffusion.denoising_loss(x0, c, null_drop=self.null_drop, min_snr_gamma=self.min_snr_gamma)
        yield {"retain": loss}
