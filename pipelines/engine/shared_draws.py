"""Under torchrun, all processes examine: rank 0 leads and alone has a run, the others take part in what it hands them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pipelines.engine.signals import StopSignal
from safemax.diffusion import sampling, team
from safemax.diffusion.team import Job
from safemax.evaluation import shared_judging
from safemax.training.devices import accelerator_for, number_of_processes
from safemax.training.settings import Training

EXAMINING: Mapping[str, Job] = {sampling.JOB: sampling.draw_along, shared_judging.JOB: shared_judging.judge_along}


@contextmanager
def shared_draws() -> Iterator[None]:
    """Share draws, judging, attacks and the training of gold models inside with the ranks that `follow_draws`; for rank 0."""
    if number_of_processes() > 1:
        accelerator_for(Training())  # connects the processes, where no training has
    with team.leading():
        yield


def follow_draws(stop: StopSignal, jobs: Mapping[str, Job] | None = None) -> None:
    """Take part in what rank 0 hands out, until it is done; for all other ranks.

    Args:
        stop: ends the wait, and a draw; a job that trains defers it to the end of a step.
        jobs: what rank 0 may hand out besides draws and images to judge, by name.
    """
    device = accelerator_for(Training()).device
    with stop.interruptible():
        team.follow({**EXAMINING, **(jobs or {})}, device)
