"""Expected targets (ours): SAFEMax with both its targets replaced by their expectations, so that no noise moves a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Rows
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.methods.safemax import psi
from safemax.training.frozen_teacher import Teacher
from safemax.training.method import Method, Terms


def times_by_psi(n: int, T: int, lmbda: float, device: torch.device) -> Tensor:  # noqa: N803 - the paper's letter
    """Draw n steps with probability proportional to psi(t) = exp(-lambda t / T), (n,) int64, one from each n-th of the law.

    By the inverse of the cumulative law, t / T = -ln(1 - u (1 - exp(-lambda))) / lambda, u stratified over [0, 1).
    """
    u = (torch.arange(n, device=device) + torch.rand(n, device=device)) / n
    share = u if lmbda == 0 else -torch.log1p(-u * (1 - math.exp(-lmbda))) / lmbda
    return (share * T).long().clamp_max(T - 1)[torch.randperm(n, device=device)]


@dataclass
class ExpectedTargets(Method):
    """SAFEMax without the variance of its targets.

    Equation 3 regresses on fresh noise, whose mean, zero, has the same expected gradient (methods: ||eps||^2 has no cross
    term); the retain loss regresses on the noise of x_t, whose mean given x_t is what the model predicted before. So forget
    rows aim at zero, and retain rows at the frozen model's own prediction, null label included. Where nothing is to change
    the gradient is then exactly zero (dropout, another noise, is off in both models), and Adam, which scales every gradient
    to a step, walks no weight at random. Steps t of forget rows are drawn from psi instead of weighted by it. One pass
    without a graph more than SAFEMax, on the retain rows; one copy of the weights. So little moves the retained classes
    that the forget rows can be given a hundredth of the weight, and what Adam's last steps still disturb, a short average
    takes out (benchmarks/ours.py measures each ingredient).
    """

    paper: ClassVar[str] = "This project; builds on SAFEMax (Spartalis et al., 2025) and Rao-Blackwell (methods.md 4.4)"
    training: ClassVar[dict[str, object]] = {"steps": 250, "batch_size": 128, "lr": 1e-4, "ema": 0.95}
    needs_null: ClassVar[bool] = True

    lmbda: float = knob(
        1.0, "decay of psi(t) = exp(-lambda t/T), the law of forget rows' t", bounds=(0, 100), search=(0, 5)
    )
    retain_weight: float = knob(
        100.0, "weight of the retain loss beside the mean of psi", bounds=(0, 1e6), search=(5, 500), log=True
    )
    null_share: float = knob(0.2, "share of retain rows given the null label", bounds=(0, 1), search=(0.05, 0.5))
    zero_target: bool = knob(True, "ablation: aim forget rows at zero, not at fresh noise")
    teacher_target: bool = knob(True, "ablation: aim retain rows at the frozen model's prediction, not at their noise")
    draw_by_psi: bool = knob(True, "ablation: draw t by psi, not uniformly and weighted by psi")

    _teacher: Teacher = field(init=False, repr=False, compare=False)

    def prepare(self, model: Diffusion, batches: Callable[[int], Batch]) -> None:
        """Keep the weights that retain rows are held to."""
        self._teacher = Teacher.of(list(model.parameters()))

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """One pass over forget and retain rows together, after the frozen model's on the retain rows."""
        forget, retain = batch.forget, batch.retain
        t_forget, weight = self._forget_times(model, len(forget))
        x_forget = model.diffuse(forget.x0, t_forget, torch.randn_like(forget.x0))
        x_retain, t_retain, c_retain, target = self._retained(model, retain)
        aim = torch.zeros_like(forget.x0) if self.zero_target else torch.randn_like(forget.x0)
        x_t, t, c = torch.cat([x_forget, x_retain]), torch.cat([t_forget, t_retain]), torch.cat([forget.c, c_retain])
        with model.without_dropout() if self.teacher_target else nullcontext():
            error = (model(x_t, t, c) - torch.cat([aim, target])).square().mean((1, 2, 3))
        yield {
            "forget": (weight * error[: len(forget)]).mean(),
            "retain": self.retain_weight * error[len(forget) :].mean(),
        }

    def state(self) -> dict[str, Tensor]:
        return self._teacher.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._teacher = Teacher.from_state(state)

    def _forget_times(self, model: Diffusion, n: int) -> tuple[Tensor, Tensor]:
        """Return t and the weight of each row; both ways have the same expectation."""
        if not self.draw_by_psi:
            t = model.times(n)
            return t, psi(t, model.T, self.lmbda)
        mean = psi(torch.arange(model.T, device=model.device), model.T, self.lmbda).mean()
        return times_by_psi(n, model.T, self.lmbda, model.device), mean.expand(n)

    def _retained(self, model: Diffusion, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x_t, t, labels and target of the retain rows."""
        t, eps = model.times(len(rows)), torch.randn_like(rows.x0)
        x_t, c = model.diffuse(rows.x0, t, eps), model.drop_labels(rows.c, self.null_share)
        if not self.teacher_target:
            return x_t, t, c, eps
        with self._teacher.teaching(model, list(model.parameters())):
            return x_t, t, c, model(x_t, t, c)
