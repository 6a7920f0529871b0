"""Retraining: the gold standard, a model of the same network that never saw the forgotten class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from safemax.data.batches import Batch
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.training.method import Method, Terms


@dataclass
class Retrain(Method):
    """Pretraining again on the retained classes alone, from weights drawn anew from the training's seed.

    The network keeps its K labels, so the forgotten class's embedding is never trained: asked for that label, the
    model answers to an unseen embedding, the values drawn at initialisation, and shows some mixture of what it knows.
    Train it as the base was trained; the defaults are those of the official CIFAR-10 base (800,000 steps of 128 rows,
    Adam at 2e-4, an average of 0.9999).
    """

    paper: ClassVar[str] = (
        "Ho et al., arXiv:2006.11239, without the class; exact unlearning: Bourtoule et al., arXiv:1912.03817"
    )
    training: ClassVar[dict[str, object]] = {"steps": 800_000, "lr": 2e-4, "ema": 0.9999, "forget_share": 0.0}
    needs_forget: ClassVar[bool] = False

    null_drop: float = knob(0.1, "share of rows given the null label, which guidance needs", bounds=(0, 1))

    def validate(self, model: Diffusion) -> None:
        """Dropping labels needs a null label to drop them to."""
        if self.null_drop:
            model.null(model.alpha_bar.long())

    def prepare(self, model: Diffusion, batches: Callable[[int], Batch]) -> None:
        """Forget everything: the network's own initial weights, drawn from torch's global generator."""
        network = model.denoiser
        network.load_state_dict(type(network).from_config(network.config).state_dict())

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows."""
        yield {"retain": model.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.null_drop)}
