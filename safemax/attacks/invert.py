"""Invert: search a new embedding for the class, the network frozen, from a few images of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import Parameter

from safemax.attacks.base import Attack, Setting, Trial
from safemax.data.batches import Batch
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import sample
from safemax.knobs import check, knob
from safemax.training.method import Method, Terms
from safemax.training.target_labels import classes
from safemax.training.trainer import Training, fit


@dataclass
class Inversion(Method):
    """Textual inversion's loss (arXiv:2208.01618) on rows of the label embedding: only those of the batch's classes move."""

    paper: ClassVar[str] = "arXiv:2308.01508"
    needs_forget: ClassVar[bool] = False

    def prepare(self, model: Diffusion, batches: Callable[[int], Batch]) -> None:
        """Start from the null label, or from the mean of all labels where there is none."""
        (rows,) = self.trainable(model)
        self.rows = torch.tensor(classes(batches)[1], device=rows.device)
        start = rows[model.num_classes] if model.has_null else rows.mean(0)
        rows.data[self.rows] = start.detach().clone()

    def trainable(self, model: Diffusion) -> Iterable[Parameter]:
        """The label embedding alone."""
        return [model.denoiser.class_embedding.weight]

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the images under the sought embedding."""
        yield {"invert": model.denoising_loss(batch.retain.x0, batch.retain.c)}

    def constrain(self, model: Diffusion) -> None:
        """Leave every other label as it is."""
        (rows,) = self.trainable(model)
        if rows.grad is not None:
            moved = torch.zeros_like(rows.grad)
            moved[self.rows] = rows.grad[self.rows]
            rows.grad.copy_(moved)


@dataclass(frozen=True)
class Invert(Attack):
    """Class-embedding inversion: what the rest of the network still knows when the label is asked for in other words."""

    source: ClassVar[str] = "Circumventing Concept Erasure, arXiv:2308.01508"
    axis = {"invert": "optimisation steps"}

    invert_steps: int = knob(150, "steps of the search", bounds=(1, 100_000))
    invert_images: int = knob(20, "images of the class that the attacker has", bounds=(1, 100_000))
    invert_lr: float = knob(0.02, "learning rate of Adam", bounds=(0, 10))
    invert_batch_size: int = knob(32, "rows of a step", bounds=(1, 100_000))

    def __post_init__(self) -> None:
        check(self)

    def trials(self, subject: Diffusion, setting: Setting) -> Iterator[Trial]:
        copied = copy.deepcopy(subject)
        training = Training(
            steps=self.invert_steps, batch_size=self.invert_batch_size, lr=self.invert_lr, forget_share=0.0,
            seed=setting.seed, checkpoint_every=0,
        )  # fmt: skip
        fit(
            copied, Inversion(), setting.known(self.invert_images), (), training,
            flip=setting.dataset.natural, progress=False,
        )  # fmt: skip
        images = sample(copied, setting.labels(), setting.sampler_for(copied), seed=setting.seed)
        yield Trial("invert", self.invert_steps, images)
