"""A frozen copy of a model's weights, swapped into its network to predict as the model did before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from safemax.diffusion import layout
from safemax.diffusion.model import Diffusion


class Teacher:
    """The earlier values of some parameters of a model; it needs no memory beyond one copy of them."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = list(weights)

    @classmethod
    def of(cls, parameters: Sequence[Parameter]) -> Teacher:
        """Return a teacher with a copy of the parameters' current values."""
        return cls([p.detach().clone() for p in parameters])

    @contextmanager
    def teaching(self, diffusion: Diffusion, parameters: Sequence[Parameter]) -> Iterator[None]:
        """Make the model predict as the teacher inside the block: with its weights, no graph and no dropout."""
        current = [p.data for p in parameters]
        # copied once where they lie otherwise, or each pass would convert them, and a compiled network be compiled anew
        self._weights = [layout.like(frozen, p) for p, frozen in zip(parameters, self._weights, strict=True)]
        for p, frozen in zip(parameters, self._weights, strict=True):
            p.data = frozen
        try:
            with torch.no_grad(), diffusion.without_dropout():
                yield
        finally:
            for p, value in zip(parameters, current, strict=True):
                p.data = value

    def state(self) -> dict[str, Tensor]:
        """Return the weights as named tensors, for a method's state."""
        return {f"teacher.{i:05d}": weight for i, weight in enumerate(self._weights)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Teacher:
        """Return the teacher whose weights a method's state holds."""
        return cls([state[name] for name in sorted(state) if name.startswith("teacher.")])
