"""The rows of a batch that each of several processes computes, and the whole that they make together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, distributed


@dataclass(frozen=True)
class RowShare:
    """One process's rows of any batch: rank, rank + world, ..., so that every process has as many of each kind.

    Args:
        rank: the index of the process.
        world: their number.
    """

    rank: int = 0
    world: int = 1

    @property
    def rows(self) -> slice:
        """This process's rows; rank 0 has one, if there is one."""
        return slice(self.rank, None, self.world)

    def counts(self, total: int) -> list[int]:
        """Return how many of so many rows each process has."""
        return [len(range(rank, total, self.world)) for rank in range(self.world)]


def of_this_process() -> RowShare:
    """Return the share of this process in torch's default group; all rows where it is alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return RowShare()
    return RowShare(distributed.get_rank(), distributed.get_world_size())


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return a batch of the rows of all processes, by rank, (n, ...) each."""
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


def summed(tensors: list[Tensor]) -> list[Tensor]:
    """Add tensors up over the processes, in place, and return them."""
    if of_this_process().world > 1:
        for tensor in tensors:
            # memory is what is added: gradients of convolutions may lie in another order here than in another process
            part = tensor.contiguous()
            distributed.all_reduce(part)
            tensor.copy_(part)
    return tensors
