"""Expected targets (ours): SAFEMax with both targets replaced by their expectations, which removes their noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Batches, Rows
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.method_tools.frozen_teacher import Teacher
from safemax.methods.safemax import psi
from safemax.training.method import Method, Terms


def times_by_psi(n: int, T: int, lmbda: float, device: torch.device) -> Tensor:  # noqa: N803 - the paper's letter
    """Draw n steps t with probability proportional to psi(t) = exp(-lambda t / T), (n,) int64, stratified.

    By inverse transform sampling: t / T = -ln(1 - u (1 - exp(-lambda))) / lambda, with one u from each n-th of [0, 1).
    """
    u = (torch.arange(n, device=device) + torch.rand(n, device=device)) / n
    share = u if lmbda == 0 else -torch.log1p(-u * (1 - math.exp(-lmbda))) / lmbda
    return (share * T).long().clamp_max(T - 1)[torch.randperm(n, device=device)]


@dataclass
class ExpectedTargets(Method):
    """SAFEMax without the variance of its targets.

    Equation 3 of SAFEMax regresses on fresh noise; its mean, zero, gives the same expected gradient. The retain loss
    regresses on the noise of x_t; its mean given x_t is approximately what the model predicted before unlearning. So the
    target of forget rows is zero, and that of retain rows is the frozen model's prediction, null label included. Where
    nothing has to change, the gradient is exactly zero (dropout, another source of noise, is off in both models), and
    Adam, which scales every gradient to a step of similar size, does not move weights at random. The t of forget rows are
    drawn from psi instead of being weighted by it.

    The price over SAFEMax is one forward pass on the retain rows and one copy of the weights. The retained classes move
    so little that the forget loss can have a hundredth of the weight; a short moving average removes the noise of Adam's
    last steps (benchmarks/ours.py measures each ingredient).
    """

    paper: ClassVar[str] = "This project; builds on SAFEMax (Spartalis et al., 2025) and Rao-Blackwell"
    training: ClassVar[dict[str, object]] = {"steps": 250, "batch_size": 128, "lr": 1e-4, "ema": 0.95}
    needs_null: ClassVar[bool] = True

    lmbda: float = knob(
        1.0, "decay of psi(t) = exp(-lambda t/T), the distribution of t on forget rows", bounds=(0, 100), search=(0, 5)
    )
    retain_weight: float = knob(
        100.0,
        "weight of the retain loss; the forget loss has the mean of psi",
        bounds=(0, 1e6),
        search=(5, 500),
        log=True,
    )
    null_share: float = knob(0.2, "share of retain rows given the null label", bounds=(0, 1), search=(0.05, 0.5))
    zero_target: bool = knob(True, "ablation: target of forget rows is zero, not fresh noise")
    teacher_target: bool = knob(
        True, "ablation: target of retain rows is the frozen model's prediction, not their noise"
    )
    draw_by_psi: bool = knob(True, "ablation: draw t from psi, not uniformly with weights psi")

    _teacher: Teacher = field(init=False, repr=False, compare=False)

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Copy the weights whose predictions are the targets of retain rows."""
        self._teacher = Teacher.of(list(diffusion.parameters()))

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Run the frozen model on the retain rows, then the model on forget and retain rows in one pass."""
        forget, retain = batch.forget, batch.retain
        t_forget, weight = self._forget_times(diffusion, len(forget))
        x_forget = diffusion.diffuse(forget.x0, t_forget, torch.randn_like(forget.x0))
        x_retain, t_retain, c_retain, retain_target = self._retained(diffusion, retain)
        forget_target = self._forget_target(diffusion, x_forget, t_forget, forget.c)
        x_t, t, c = torch.cat([x_forget, x_retain]), torch.cat([t_forget, t_retain]), torch.cat([forget.c, c_retain])
        with diffusion.without_dropout() if self.teacher_target else nullcontext():
            error = (diffusion(x_t, t, c) - torch.cat([forget_target, retain_target])).square().mean((1, 2, 3))
        yield {
            "forget": (weight * error[: len(forget)]).mean(),
            "retain": self.retain_weight * error[len(forget) :].mean(),
        }

    def state(self) -> dict[str, Tensor]:
        return self._teacher.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._teacher = Teacher.from_state(state)

    def _forget_times(self, diffusion: Diffusion, n: int) -> tuple[Tensor, Tensor]:
        """Return t and the weight of each row; both variants have the same expectation."""
        if not self.draw_by_psi:
            t = diffusion.times(n)
            return t, psi(t, diffusion.T, self.lmbda)
        mean = psi(torch.arange(diffusion.T, device=diffusion.device), diffusion.T, self.lmbda).mean()
        return times_by_psi(n, diffusion.T, self.lmbda, diffusion.device), mean.expand(n)

    def _forget_target(self, diffusion: Diffusion, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """Return the target of forget rows."""
        return torch.zeros_like(x_t) if self.zero_target else torch.randn_like(x_t)

    def _retained(self, diffusion: Diffusion, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x_t, t, labels and target of the retain rows."""
        t, eps = diffusion.times(len(rows)), torch.randn_like(rows.x0)
        x_t, c = diffusion.diffuse(rows.x0, t, eps), diffusion.drop_labels(rows.c, self.null_share)
        if not self.teacher_target:
            return x_t, t, c, eps
        with self._teacher.teaching(diffusion, list(diffusion.parameters())):
            return x_t, t, c, diffusion(x_t, t, c)
