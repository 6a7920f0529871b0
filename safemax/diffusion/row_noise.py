"""Random numbers by row: processes that share a batch give each row what one process alone would give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor

from safemax.data.row_share import RowShare

Draw = Callable[[int, Generator | None], Tensor]  # so many rows, from this generator


@dataclass(frozen=True)
class RowNoise:
    """How a process draws for its rows of a batch: for all rows, of which it keeps its own.

    Args:
        rows: its own, of the batch.
        total: rows of the batch; 0 where every process has as many as this one.
        world: number of processes.
        generator: the same in all processes; None is torch's own.
    """

    rows: slice
    total: int = 0
    world: int = 1
    generator: Generator | None = None

    @classmethod
    def of(cls, share: RowShare, generator: Generator) -> RowNoise:
        """Return how a process draws that has as many rows as the others."""
        return cls(share.rows, 0, share.world, generator)

    def __call__(self, own: int, draw: Draw) -> Tensor:
        """Return what is drawn for this process's rows, of which there are `own`."""
        return draw(self.total or own * self.world, self.generator)[self.rows]


ALONE = RowNoise(slice(None))
