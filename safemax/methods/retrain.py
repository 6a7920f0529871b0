"""Retraining from scratch: the gold standard, a model of the same network that never saw the forgotten class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from safemax.data.batches import Batch, Batches
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.training.method import Method, Terms


@dataclass
class Retrain(Method):
    """Pretraining on the retained classes only, from new initial weights that follow from the training's seed.

    The network keeps its K labels, so the embedding of the forgotten class stays at its initial values: for that label
    the model draws some mixture of the classes it knows. Train it as the base was trained; the defaults are those of the
    official CIFAR-10 base (800,000 steps of 128 rows, Adam at 2e-4, a moving average of 0.9999).
    """

    paper: ClassVar[str] = (
        "Ho et al., arXiv:2006.11239, without the class; exact unlearning: Bourtoule et al., arXiv:1912.03817"
    )
    may_train: ClassVar[tuple[str, ...]] = ("all",)
    training: ClassVar[dict[str, object]] = {"steps": 800_000, "lr": 2e-4, "ema": 0.9999, "forget_share": 0.0}
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

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Replace all weights by new initial ones, drawn from torch's global generator."""
        network = diffusion.denoiser
        network.load_state_dict(type(network).from_config(network.config).state_dict())

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows."""
        x0, c = batch.retain.x0, batch.retain.c
        loss = diffusion.denoising_loss(x0, c, null_drop=self.null_drop, min_snr_gamma=self.min_snr_gamma)
        yield {"retain": loss}
