"""A second Adam, for steps that the trainer's Adam should not remember (DualOptim)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from safemax.diffusion import layout


class SecondAdam:
    """Adam (0.9, 0.999) with moments of its own; call `step` from `Method.constrain`, when the gradients are final.

    Args:
        lr: its learning rate, constant.
    """

    def __init__(self, lr: float) -> None:
        self._lr = lr
        self._adam: torch.optim.Adam | None = None
        self._saved: dict[str, Tensor] = {}

    def step(self, weights: Sequence[Parameter]) -> None:
        """Take a step and clear the gradients, so that the trainer's Adam, which goes next, does nothing."""
        if self._adam is None:
            self._adam = torch.optim.Adam(weights, lr=self._lr, fused=True)
            if self._saved:
                groups = self._adam.state_dict()["param_groups"]
                self._adam.load_state_dict({"state": _nested(self._saved), "param_groups": groups})
                layout.align_moments(self._adam)
        self._adam.step()
        self._adam.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Return moments and step counts by name, for a method's state; {} before the first step."""
        if self._adam is None:
            return self._saved
        state = self._adam.state_dict()["state"]
        return {f"adam.{i:05d}.{name}": value for i, values in state.items() for name, value in values.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned, found in a method's state."""
        self._adam, self._saved = None, {name: value for name, value in state.items() if name.startswith("adam.")}


def _nested(saved: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in saved.items():
        _, number, key = name.split(".")
        state.setdefault(int(number), {})[key] = value
    return state
