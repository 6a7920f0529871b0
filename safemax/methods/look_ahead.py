"""Look-ahead (ours): expected targets that also hold after a simulated attacker has begun to relearn the class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.method_tools import gradients
from safemax.methods.expected_targets import ExpectedTargets
from safemax.training.method import OptimizerStep, Terms

RELEARN, CAPTURE, OUTER = "relearn", "capture", "outer"


@dataclass
class LookAhead(ExpectedTargets):
    """Expected targets against relearning: the forget loss is also minimised where an attacker's first steps lead.

    Each step simulates a few relearning steps, the denoising loss on some forget rows along the sign of its gradient (what
    Adam's first steps do), takes the gradient of the forget loss there, and applies it at the weights from which the
    attacker started: first-order meta-learning (Finn et al., 2017; as a defence Henderson et al., 2023, and Tamirisa et
    al., 2024). The weights settle where the way back is long.

    lambda is 0 here: a class relearns from high t, where psi = exp(-lambda t/T) pushes least; and the retain weight is a
    tenth, because the class must be gone and not only hidden. `ahead_steps=0` is the control without the term.

    Not proven: in what was seen so far, on one class of digits (docs/numbers.md), the control did as well.
    """

    paper: ClassVar[str] = (
        "This project; first-order meta-learning: arXiv:1703.03400; against relearning: arXiv:2211.14946, arXiv:2408.00761"
    )
    training: ClassVar[dict[str, object]] = {"steps": 300, "batch_size": 128, "lr": 1e-4, "ema": 0.95}
    per_part: ClassVar[bool] = False

    lmbda: float = knob(
        0.0, "decay of psi(t) = exp(-lambda t/T), the distribution of t on forget rows", bounds=(0, 100), search=(0, 5)
    )
    retain_weight: float = knob(
        10.0, "weight of the retain loss; each forget loss has weight 1", bounds=(0, 1e6), search=(1, 500), log=True
    )
    ahead_weight: float = knob(
        1.0, "weight of the forget loss after relearning", bounds=(0, 1e6), search=(0.1, 10), log=True
    )
    ahead_steps: int = knob(2, "relearning steps that are simulated; 0 simulates none", bounds=(0, 100))
    ahead_lr: float = knob(
        5e-4, "length of a simulated step in each weight", bounds=(0, 1), search=(1e-4, 2e-3), log=True
    )
    ahead_images: int = knob(16, "forget rows that the simulated attacker has", bounds=(1, 1_000_000))

    def __post_init__(self) -> None:
        super().__post_init__()
        self._phase = OUTER
        self._captured: list[Tensor] = []

    def step(self, diffusion: Diffusion, batch: Batch, optimizer_step: OptimizerStep) -> Terms:
        """Relearn, take the forget loss's gradient there, go back, and step with it and the usual losses."""
        self._captured = []
        ahead = self._look_ahead(diffusion, batch, optimizer_step) if self.ahead_steps else {}
        return {**ahead, **optimizer_step(self.losses, batch)}

    def backward(self, groups: Iterable[Terms], diffusion: Diffusion, accumulate: Callable[[Tensor], None]) -> Terms:
        """Add the gradient that was taken ahead before the outer step's is clipped."""
        terms = super().backward(groups, diffusion, accumulate)
        if self._phase == OUTER and self._captured:
            gradients.add(gradients.trained(diffusion), self._captured)
        return terms

    @torch.no_grad()
    def constrain(self, diffusion: Diffusion) -> None:
        """In a simulated step move each weight by its gradient's sign; ahead keep the gradient. The trainer's Adam does nothing."""
        if self._phase == OUTER:
            return
        weights = gradients.trained(diffusion)
        found = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        if self._phase == RELEARN:
            torch._foreach_sub_(list[Tensor](weights), [g.sign() for g in found], alpha=self.ahead_lr)
        else:
            self._captured = [g.clone() for g in found]
        diffusion.zero_grad()

    def _look_ahead(self, diffusion: Diffusion, batch: Batch, optimizer_step: OptimizerStep) -> Terms:
        weights = gradients.trained(diffusion)
        before = [w.detach().clone() for w in weights]
        self._phase = RELEARN
        for _ in range(self.ahead_steps):
            optimizer_step(self._relearn_loss, batch, clip=math.inf)
        self._phase = CAPTURE
        terms = optimizer_step(self._ahead_loss, batch, clip=math.inf)
        self._phase = OUTER
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](weights), before)
        return terms

    def _relearn_loss(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        rows = batch.forget[: self.ahead_images]
        yield {"relearn": diffusion.denoising_loss(rows.x0, rows.c)}

    def _ahead_loss(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        rows = batch.forget
        t, weight = self._forget_times(diffusion, len(rows))
        x_t = diffusion.diffuse(rows.x0, t, torch.randn_like(rows.x0))
        target = torch.zeros_like(rows.x0) if self.zero_target else torch.randn_like(rows.x0)
        error = (diffusion(x_t, t, rows.c) - target).square().mean((1, 2, 3))
        yield {"ahead": self.ahead_weight * (weight * error).mean()}
