"""ESD: teach the forgotten label to point away from its own class, as a frozen teacher sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from safemax.data.batches import Batch
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import predict
from safemax.knobs import knob
from safemax.training.frozen_teacher import Teacher
from safemax.training.method import Method, Terms

# Where the label enters: its embedding, and the layers that carry it, added to t's, into the residual blocks.
SUBSETS = {
    "all": ("",),
    "label_embedding": ("class_embedding.",),
    "conditioning": ("class_embedding.", "time_emb_proj."),
}


@dataclass
class ESD(Method):
    """Erased Stable Diffusion (Gandikota et al., ICCV 2023) with a class label in place of a prompt.

    The forgotten label learns eps*(x_t, null) - eta (eps*(x_t, c) - eps*(x_t, null)), eps* being the model before the
    first step: the prediction guided by g = -eta. The official code has no images and draws x_t by sampling the model
    down to a random step; here x_t is noised from images of the class, up to 50 guided forwards cheaper. The loss is a
    mean over pixels there too, and nothing holds the retained classes. ESD-x trains where the prompt enters
    (cross-attention): `conditioning` is that part of this network. Of the teacher only the weights in training are
    kept, and swapped in for its pass.
    """

    paper: ClassVar[str] = "Gandikota et al., arXiv:2303.07345"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 64, "forget_share": 1.0, "lr": 1e-5}
    needs_null: ClassVar[bool] = True
    needs_retain: ClassVar[bool] = False

    eta: float = knob(
        1.0, "strength of the guidance away from the class (official: 1)", bounds=(0, 100), search=(0.5, 10), log=True
    )
    subset: str = knob("all", "weights that are trained", choices=tuple(SUBSETS))

    _teacher: Teacher = field(init=False, repr=False, compare=False)

    def prepare(self, model: Diffusion, batches: Callable[[int], Batch]) -> None:
        """Keep the teacher's weights."""
        self._teacher = Teacher.of(self.trainable(model))

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Regress the student's prediction on the teacher's, guided away from the class."""
        x0, c = batch.forget.x0, batch.forget.c
        t = model.times(len(c))
        x_t = model.diffuse(x0, t, torch.randn_like(x0))
        with self._teacher.teaching(model, self.trainable(model)):
            target = predict(model, x_t, t, c, -self.eta)
        yield {"forget": (model(x_t, t, c) - target).square().mean()}

    def trainable(self, model: Diffusion) -> list[Parameter]:
        """The chosen subset."""
        parts = SUBSETS[self.subset]
        return [p for name, p in model.named_parameters() if any(part in name for part in parts)]

    def state(self) -> dict[str, Tensor]:
        return self._teacher.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._teacher = Teacher.from_state(state)
