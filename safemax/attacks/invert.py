"""Invert: search for a new label embedding of the class, with the network frozen, from a few images of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import Parameter

from safemax.attacks.base import Attack, Setting, Trial
from safemax.data.batches import Batch, Batches
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import sample
from safemax.knobs import knob
from safemax.training.hooks import Hooks
from safemax.training.method import Method, Terms
from safemax.training.settings import Training
from safemax.training.trainer import Trainer


@dataclass
class Inversion(Method):
    """The loss of textual inversion (arXiv:2208.01618) for rows of the label embedding; only the trained classes' rows move."""

    paper: ClassVar[str] = "arXiv:2308.01508"
    needs_forget: ClassVar[bool] = False
    noise_by_row: ClassVar[bool] = True

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Start from the embedding of the null label, or from the mean of all labels if there is none."""
        classes = torch.tensor(batches.retain_classes, device=diffusion.device)
        self.rows = diffusion.condition.rows_of(classes)
        null = diffusion.condition.rows_of(diffusion.null(classes[:1])) if diffusion.has_null else None
        for table in diffusion.label_tables():
            start = table.mean(0) if null is None else table[null]
            table.data[self.rows] = start.detach().clone()

    def trainable(self, diffusion: Diffusion) -> Iterable[Parameter]:
        """Return the tables of label embeddings."""
        return diffusion.label_tables()

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the images under the new embedding."""
        yield {"invert": diffusion.denoising_loss(batch.retain.x0, batch.retain.c)}

    def constrain(self, diffusion: Diffusion) -> None:
        """Zero the gradient of every other label."""
        for table in diffusion.label_tables():
            if table.grad is not None:
                moved = torch.zeros_like(table.grad)
                moved[self.rows] = table.grad[self.rows]
                table.grad.copy_(moved)


@dataclass(frozen=True)
class Invert(Attack):
    """Inversion of the class embedding: it finds what the network still knows when only the embedding was unlearned."""

    source: ClassVar[str] = "Circumventing Concept Erasure, arXiv:2308.01508"
    axis = {"invert": "optimisation steps"}

    invert_steps: int = knob(150, "steps of the search", bounds=(1, 100_000))
    invert_images: int = knob(20, "images of the class that the attacker has", bounds=(1, 100_000))
    invert_lr: float = knob(0.02, "learning rate of Adam", bounds=(0, 10))
    invert_batch_size: int = knob(32, "rows of a step", bounds=(1, 100_000))

    def trials(self, diffusion: Diffusion, setting: Setting) -> Iterator[Trial]:
        attacked = copy.deepcopy(diffusion)
        training = Training(
            steps=self.invert_steps, batch_size=self.invert_batch_size, lr=self.invert_lr, forget_share=0.0,
            seed=setting.seed, checkpoint_every=0,
        )  # fmt: skip
        Trainer(
            attacked, Inversion(), setting.known(self.invert_images), (), training,
            flip=setting.dataset.natural, hooks=Hooks(progress=False),
        ).fit()  # fmt: skip
        images = sample(attacked, setting.labels(), setting.sampler_for(attacked), seed=setting.seed)
        yield Trial("invert", self.invert_steps, images)
