"""Fine-tuning on the retained classes alone; over all classes, from random weights, it is pretraining."""

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
    """The ordinary denoising loss on the rows that are not forgotten: the weakest baseline, and the loop that trains a base.

    Equation 2 of the SAFEMax paper, label drop 0.1 as in the DDPM pretraining of SA and SalUn.
    """

    paper: ClassVar[str] = "Ho et al., arXiv:2006.11239; label drop of Ho and Salimans, arXiv:2207.12598"
    training: ClassVar[dict[str, object]] = {"forget_share": 0.0}
    needs_forget: ClassVar[bool] = False

    null_drop: float = knob(0.1, "share of rows given the null label, which guidance needs", bounds=(0, 1))

    def validate(self, model: Diffusion) -> None:
        """Dropping labels needs a null label to drop them to."""
        if self.null_drop and not model.has_null:
            model.null(model.alpha_bar.long())

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows."""
        yield {"retain": model.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.null_drop)}
