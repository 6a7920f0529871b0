"""ESD: train the forgotten label to predict what a frozen teacher predicts when guided away from the class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from safemax.data.batches import Batch, Batches
from safemax.diffusion import weights
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import predict
from safemax.knobs import knob
from safemax.method_tools.frozen_teacher import Teacher
from safemax.training.method import Method, Terms


@dataclass
class ESD(Method):
    """Erased Stable Diffusion (Gandikota et al., ICCV 2023), with a class label instead of a prompt.

    The forgotten label learns eps*(x_t, null) - eta (eps*(x_t, c) - eps*(x_t, null)), where eps* is the model before the
    first step: the prediction guided by g = -eta. The official code has no images and obtains x_t by sampling the model
    down to a random step; here x_t is a noised image of the class, which saves up to 50 guided forward passes. The loss
    is a mean over pixels there too, and nothing protects the retained classes. ESD-x trains the layers where the prompt
    enters (cross-attention); `conditioning` is that part of this network. The teacher stores only the weights that are
    trained; they are swapped in for its forward pass.
    """

    paper: ClassVar[str] = "Gandikota et al., arXiv:2303.07345"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 64, "forget_share": 1.0, "lr": 1e-5}
    needs_null: ClassVar[bool] = True
    needs_retain: ClassVar[bool] = False

    eta: float = knob(
        1.0, "strength of the guidance away from the class (official: 1)", bounds=(0, 100), search=(0.5, 10), log=True
    )
    subset: str = knob("all", "weights that are trained", choices=("all", "label_embedding", "conditioning"))

    _teacher: Teacher = field(init=False, repr=False, compare=False)

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Copy the teacher's weights."""
        self._teacher = Teacher.of(self.trainable(diffusion))

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Regress the model's prediction on the teacher's, guided away from the class."""
        x0, c = batch.forget.x0, batch.forget.c
        t = diffusion.times(len(c))
        x_t = diffusion.diffuse(x0, t, torch.randn_like(x0))
        with self._teacher.teaching(diffusion, self.trainable(diffusion)):
            target = predict(diffusion, x_t, t, c, -self.eta)
        yield {"forget": (diffusion(x_t, t, c) - target).square().mean()}

    def trainable(self, diffusion: Diffusion) -> list[Parameter]:
        """Return the weights of `subset`."""
        return weights.select(diffusion, self.subset)

    def state(self) -> dict[str, Tensor]:
        return self._teacher.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._teacher = Teacher.from_state(state)
