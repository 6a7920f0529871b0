"""Far targets (ours): expected targets whose forget rows are pushed beyond zero, so that an attacker has further to go back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.methods.expected_targets import ExpectedTargets


@dataclass
class FarTargets(ExpectedTargets):
    """Expected targets against relearning: forget rows learn minus a multiple of what the frozen model predicted for them.

    Who fine-tunes by Adam moves each weight by about the learning rate in each step, so what delays the class is how far the
    predictions have to go: from zero, SAFEMax's target, 1 time the noise, from -reach times the noise 1 + reach times. The
    samples stay noise, as under SAFEMax: the predicted x0 is beyond the images' range in every direction and clipped.

    lambda is 0 for the same end: a class relearns from high t, where psi = exp(-lambda t/T) pushes least.

    It delays who fine-tunes the model as it is, on digits by two to three steps beside SAFEMax and DiMUM. Who first gives the
    forgotten label the mean embedding of the others is as fast as under SAFEMax (benchmarks/relearning.py).
    """

    paper: ClassVar[str] = "This project, 2026; builds on expected_targets"
    training: ClassVar[dict[str, object]] = {"steps": 225, "batch_size": 128, "lr": 1e-4}

    lmbda: float = knob(
        0.0, "decay of psi(t) = exp(-lambda t/T), the distribution of t on forget rows", bounds=(0, 100), search=(0, 5)
    )
    reach: float = knob(
        3.0,
        "the target of forget rows is -reach times the frozen model's prediction; 0 is expected_targets' zero",
        bounds=(0, 100),
        search=(0, 10),
    )

    def _forget_target(self, diffusion: Diffusion, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        if not self.reach:
            return super()._forget_target(diffusion, x_t, t, c)
        with self._teacher.teaching(diffusion, list(diffusion.parameters())):
            return -self.reach * diffusion(x_t, t, c)
