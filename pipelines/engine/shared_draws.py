"""Under torchrun, all processes draw: rank 0 leads and alone has a run, the others compute the rows that it hands them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.engine.signals import StopSignal
from safemax.diffusion import sampling, team
from safemax.training.devices import accelerator_for, number_of_processes
from safemax.training.settings import Training


@contextmanager
def shared_draws() -> Iterator[None]:
    """Share every draw inside with the ranks that `follow_draws`; for rank 0. Alone, nothing changes."""
    if number_of_processes() > 1:
        accelerator_for(Training())  # connects the processes, where no training has
    with team.leading():
        yield


def follow_draws(stop: StopSignal) -> None:
    """Draw what rank 0 hands out, until it is done; for all other ranks."""
    device = accelerator_for(Training()).device
    with stop.interruptible():
        sampling.follow(device)
