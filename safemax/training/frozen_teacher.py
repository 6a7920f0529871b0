"""A frozen earlier self of a model: its weights alone, lent to the model's own network while it predicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter

from safemax.diffusion.model import Diffusion


class Teacher:
    """The weights that some parameters of a model had; one copy of them is all the memory that a teacher takes."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = list(weights)

    @classmethod
    def of(cls, parameters: Sequence[Parameter]) -> Teacher:
        """Return a teacher with the parameters' present values."""
        return cls([p.detach().clone() for p in parameters])

    @contextmanager
    def teaching(self, model: Diffusion, parameters: Sequence[Parameter]) -> Iterator[None]:
        """Make the model predict as the teacher: its weights, no graph, no dropout, for as long as the block lasts."""
        own = [p.data for p in parameters]
        for p, frozen in zip(parameters, self._weights, strict=True):
            p.data = frozen
        try:
            with torch.no_grad(), model.without_dropout():
                yield
        finally:
            for p, value in zip(parameters, own, strict=True):
                p.data = value

    def state(self) -> dict[str, Tensor]:
        """Return the weights by number, for a method's state."""
        return {f"teacher.{i:05d}": weight for i, weight in enumerate(self._weights)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Teacher:
        """Return the teacher of a state."""
        return cls([state[name] for name in sorted(state) if name.startswith("teacher.")])
