"""Whether every gradient was finite: known at once on a CPU, and every few steps on a GPU, which would have to wait for it."""

from __future__ import annotations

import torch
from torch import Tensor

from safemax.errors import NonFiniteError
from safemax.training.method import Terms

# Steps between two looks at what is on the device: each look waits for all its work.
EVERY = {"cuda": 10}


def steps_between(device: torch.device) -> int:
    """Return after how many steps a run waits for its device; 1 on a CPU, which is never behind."""
    return EVERY.get(device.type, 1)


class FiniteCheck:
    """Refuses steps with a gradient that is not finite.

    Args:
        optimizer: a fused one, whose kernel skips a step where `found_inf` is 1.
        lr: the learning rate that the message names.
        at_once: raise before the step is taken; else the kernel skips it, and `check` raises.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, lr: float, *, at_once: bool) -> None:
        self._optimizer, self._lr, self._at_once = optimizer, lr, at_once
        self._pending: list[tuple[int, Tensor, Terms]] = []

    def add(self, step: int, norm: Tensor, terms: Terms) -> None:
        """Note the gradient of the optimizer's next step.

        Args:
            step: its number, from 1.
            norm: of the gradient, a scalar.
            terms: of the loss, for the message.
        """
        self._pending.append((step, norm, terms))
        if self._at_once:
            self.check()
        else:
            self._optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # read by torch's kernel

    def check(self) -> None:
        """Raise NonFiniteError if a gradient noted since the last check was not finite."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        finite = torch.stack([norm for _, norm, _ in pending]).isfinite().tolist()
        for (step, _, terms), is_finite in zip(pending, finite, strict=True):
            if not is_finite:
                values = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
                raise NonFiniteError(f"step {step}: the gradient is not finite ({values}); lower lr, now {self._lr:g}")
