"""SCRUB: in alternate steps, move away from a frozen teacher on forget rows and back towards it on retain rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Batches, Rows
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.method_tools import gradients
from safemax.method_tools.frozen_teacher import Teacher
from safemax.method_tools.second_adam import SecondAdam
from safemax.training.method import Method, OptimizerStep, Terms


@dataclass
class SCRUB(Method):
    """SCRUB (Kurmanji et al., NeurIPS 2023), whose classifiers' answers are here predictions of noise.

    A max step maximises the student's distance to the teacher on forget rows, a min step minimises gamma times the task's
    loss plus alpha times that distance on retain rows; max steps end early, so that the last steps repair. Between two
    Gaussian denoising steps of equal variance the paper's KL divergence is the squared distance of the two predicted eps,
    up to a factor that depends on t alone; as in the DDPM's own loss that factor is left out.

    The official code alternates epochs (3 of 10 with a max part, of its notebook for CIFAR-5), here steps alternate. It
    does not bound the climb; here a row stops counting at `cap`. Student and teacher start equal, where the distance has
    no slope: the first min step breaks the tie, there as here. One Adam takes both kinds of steps (official), or each kind
    its own (`dual_adam`, DualOptim).
    """

    paper: ClassVar[str] = "Kurmanji et al., arXiv:2302.09880"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}
    presets: ClassVar[dict[str, dict[str, object]]] = {"paper": {"cap": 1e6}}

    alpha: float = knob(
        0.5, "weight of the distance to the teacher on retain rows (official: 0.5)", bounds=(0, 1e6), search=(0, 10)
    )
    gamma: float = knob(1.0, "weight of the denoising loss of retain rows (official: 1)", bounds=(0, 1e6))
    climb_share: float = knob(
        0.3, "share of the steps, from the first, that have a max step (official: 3 of 10 epochs)", bounds=(0, 1),
        search=(0.1, 1),
    )  # fmt: skip
    cap: float = knob(
        1.0, "squared distance of a forget row beyond which it stops counting", bounds=(0, 1e6), search=(0.3, 3)
    )
    dual_adam: bool = knob(False, "give the max steps an Adam of their own, at the same lr as below (DualOptim)")
    climb_lr: float = knob(1e-4, "learning rate of that Adam", bounds=(0, 10))
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1), without_null=0)

    _teacher: Teacher = field(init=False, repr=False, compare=False)
    _climbing: bool = field(init=False, repr=False, compare=False, default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._adam = SecondAdam(self.climb_lr)

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Copy the weights of the teacher."""
        self._teacher = Teacher.of(list(diffusion.parameters()))

    def step(self, diffusion: Diffusion, batch: Batch, optimizer_step: OptimizerStep) -> Terms:
        """Take a max step, for as long as there are any, then a min step."""
        terms: Terms = {}
        if self.steps_done < self.climb_share * self.run_steps:
            self._climbing = self.dual_adam
            terms = optimizer_step(self._climb, batch)
            self._climbing = False
        return {**terms, **optimizer_step(self.losses, batch)}

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Yield the terms of a min step, from one forward pass of the student."""
        rows = Rows(batch.retain.x0, diffusion.drop_labels(batch.retain.c, self.retain_null_drop))
        own, taught, eps = self._predictions(diffusion, rows)
        yield {
            "retain": self.gamma * (own - eps).square().mean(),
            "distance": self.alpha * (own - taught).square().mean(),
        }

    def constrain(self, diffusion: Diffusion) -> None:
        """Take a max step with its own Adam, where it has one."""
        if self._climbing:
            self._adam.step(gradients.trained(diffusion))

    def state(self) -> dict[str, Tensor]:
        """Return the teacher and the moments of the max steps."""
        return {**self._teacher.state(), **self._adam.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._teacher = Teacher.from_state(state)
        self._adam.load_state(state)

    def _climb(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        own, taught, _ = self._predictions(diffusion, batch.forget)
        yield {"forget": -(own - taught).square().mean((1, 2, 3)).clamp_max(self.cap).mean()}

    def _predictions(self, diffusion: Diffusion, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Return what student and teacher predict for the same noised rows, and the noise."""
        t, eps = diffusion.times(len(rows)), torch.randn_like(rows.x0)
        x_t = diffusion.diffuse(rows.x0, t, eps)
        with self._teacher.teaching(diffusion, list(diffusion.parameters())):
            taught = diffusion(x_t, t, rows.c)
        return diffusion(x_t, t, rows.c), taught, eps
